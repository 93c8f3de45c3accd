"""A checkpoint's tokenizer and chat template."""
