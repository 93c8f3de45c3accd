"""Data to checkpoint: prepare a corpus, train on it, evaluate the result. Imports `model` and nothing else of ours."""
