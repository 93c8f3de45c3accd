"""The version of this package, which servers see in the User-Agent."""

__version__ = "0.2.0"
