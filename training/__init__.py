"""Data to checkpoint: prepare a corpus, train on it, evaluate the result. Imports `model` and nothing else of ours."""

if __name__ != "thoughtbubbles.training":  # in a checkout, which would have each module a second time
    raise ImportError("import thoughtbubbles.training instead of training")
