"""Triton kernels of the decode step. Imported only where a CUDA device decodes, or Triton's interpreter plays one.

Every kernel takes its number of live rows from device memory and returns at once beyond it, so that one captured graph
serves any number of streams without the host knowing it. Letters, here and in the modules: B places of the batch,
S live streams of all of them laid end to end, C = 2S candidates, D model width, N heads, H head width, V vocabulary.
"""
