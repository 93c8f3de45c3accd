"""Do forks help where a problem is harder? The plan is docs/experiments/tasks.md."""
