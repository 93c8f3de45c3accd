"""What stands between two matrix products of a training step, one Triton kernel forward and one backward each."""
