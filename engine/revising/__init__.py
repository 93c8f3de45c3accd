"""The forward pass of requests without pages: under `dynamic` and `fixed`, or with interventions in their forks."""
