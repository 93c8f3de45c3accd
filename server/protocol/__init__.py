"""The wire contract: requests, their checks, answers and errors (API.md §1 to §4)."""
