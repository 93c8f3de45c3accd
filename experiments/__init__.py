"""Experiments that train models to answer a question, each with its plan in docs/experiments/."""
