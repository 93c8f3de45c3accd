"""Triton kernels of decode and prefill steps. Imported only on a CUDA device or with Triton's interpreter.

Kernels are launched by keyword. Each reads its number of live rows from device memory and does nothing beyond it, so
that one captured graph serves any number of streams, which the host does not know. Letters, here and in the modules:
B batch slots, M rows that there may be, S live streams of all slots end to end, C = 2S candidates, D model width,
N heads, H head width, V vocabulary.
"""
