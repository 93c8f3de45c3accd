"""Tokens and text: the tokenizer and the chat template of a checkpoint."""
