"""Read documents, encode them to token files, and load batches for training."""
