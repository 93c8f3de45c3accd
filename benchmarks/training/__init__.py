"""The training step, on one GPU and on several."""
