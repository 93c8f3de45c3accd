"""Analyse a trained model: which tokens fork, which streams are attended to, how the budget is used."""
