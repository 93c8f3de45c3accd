"""Grammars that completions must match: compiled once, by llguidance, and followed token by token."""
