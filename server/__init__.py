"""OpenAI-style HTTP around the engine: wire formats, the engine's thread, metrics, operation (API.md)."""
