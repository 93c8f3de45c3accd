"""The routes, and the document that describes them (API.md §5)."""
