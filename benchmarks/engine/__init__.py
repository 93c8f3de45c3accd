"""The engine alone, without a server."""
