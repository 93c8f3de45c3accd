"""Which checkpoint does the repository ship? The plan is docs/experiments/checkpoint.md."""
