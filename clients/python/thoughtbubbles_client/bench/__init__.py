"""A load generator: so many clients at once ask a server for completions, and what they see is measured.

`python -m thoughtbubbles_client.bench URL`, or `thoughtbubbles bench URL` where the server is installed too.
"""
