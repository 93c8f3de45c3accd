"""Hostile clients and broken files against a server."""
