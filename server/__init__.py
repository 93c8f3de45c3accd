"""OpenAI-style HTTP around the engine: wire formats, the engine's thread, metrics, operation (API.md)."""

if __name__ != "thoughtbubbles.server":  # in a checkout, which would have each module a second time
    raise ImportError("import thoughtbubbles.server instead of server")
