"""From data to a checkpoint: prepare a corpus, train on it, evaluate the result. Imports no floor but `model`."""

if __name__ != "thoughtbubbles.training":  # imported by its folder in a checkout: each module would exist twice
    raise ImportError("import thoughtbubbles.training instead of training")
