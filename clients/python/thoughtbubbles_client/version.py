"""The version of this package, sent in the User-Agent."""

__version__ = "0.2.0"
