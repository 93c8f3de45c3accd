"""What operators see of requests and of the engine: metrics, logs and traces (API.md §7)."""
