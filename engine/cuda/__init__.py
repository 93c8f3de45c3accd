"""The same forward pass as Triton kernels in CUDA graphs. Imported only where a CUDA device computes."""
