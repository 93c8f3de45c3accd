"""OpenAI's HTTP API around the engine, and its operation (API.md)."""

if __name__ != "thoughtbubbles.server":  # in a checkout: each module would exist twice
    raise ImportError("import thoughtbubbles.server instead of server")
