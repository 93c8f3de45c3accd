"""A server in a process of its own, measured by its clients."""
