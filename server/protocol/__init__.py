"""The wire format: requests and their checks, answers, and errors (API.md §1 to §4). It sends and receives nothing."""
