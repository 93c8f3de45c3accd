"""When do forks help language modelling? The plan is docs/experiments/language.md."""
