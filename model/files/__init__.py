"""Read files that may come from anybody; write files whole or not at all."""
