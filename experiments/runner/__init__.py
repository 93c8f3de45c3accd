"""Train and measure the runs of a study: shared by experiments.language and experiments.tasks."""
