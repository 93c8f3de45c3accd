"""What is observed of requests and of the engine: metrics, logs and traces."""
