"""The version of this package, which servers see in the User-Agent."""

__version__ = "0.1.0"
