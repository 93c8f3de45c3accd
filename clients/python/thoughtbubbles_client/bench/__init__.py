"""A load generator: sends completion requests concurrently and measures latency and throughput as clients see them.

`python -m thoughtbubbles_client.bench URL`, or `thoughtbubbles bench URL` if the server is installed, too.
"""
