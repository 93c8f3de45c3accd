"""Evaluation sets in their published formats, scored as lm-evaluation-harness scores them."""
