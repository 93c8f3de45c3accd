"""The forward pass under `dynamic` and `fixed`, which revise earlier tokens, and the state of each request."""
