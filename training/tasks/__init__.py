"""Read evaluation sets in their published formats, and score them as lm-evaluation-harness does."""
