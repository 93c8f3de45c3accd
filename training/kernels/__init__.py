"""Triton kernels for everything between two matrix products of a training step: one forward and one backward each."""
