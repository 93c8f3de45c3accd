"""What people use of the engine in a terminal: `thoughtbubbles generate` and `thoughtbubbles chat`."""
