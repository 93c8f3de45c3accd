"""Documents on disk, token files made of them, and the batches that training reads."""
