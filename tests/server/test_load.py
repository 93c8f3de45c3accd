"""200 clients against a queue for some 50: the short form of benchmarks/load.py, bounded by requests."""

import asyncio

from benchmarks.load import counted, lost, put_load
from tests.server.harness import Serve, eventually


def test_200_clients_lose_nothing(serve: Serve) -> None:
    with serve(max_waiting_streams=1500) as server:
        load = asyncio.run(put_load(server.url, clients=200, seconds=30, requests=2, max_tokens=16))
        eventually(server.service.worker.idle.is_set)
        eventually(lambda: not server.engine.has_work)
        eventually(lambda: lost(load, counted(server.url)) == [])
        assert load.outcomes.total() == 400
        assert load.outcomes["refused"] > 0, "the queue was never full"
        assert load.outcomes["done"] > 100
        assert server.engine.stats().cache_streams == 0
        server.engine.cache.check_integrity()
