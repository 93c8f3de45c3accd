"""200 clients against a queue for some 50: the short form of benchmarks/server/load.py, bounded by requests."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from benchmarks.server.load import Load, counted, lost, put_load
from tests.server.harness import Running, Serve, eventually


def load_of_200(server: Running) -> Load:
    """Each asks twice. No step ends before more have asked than the queue holds, however slow they are."""
    commands = server.service.worker._thread._commands
    server.engine.hold()
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(asyncio.run, put_load(server.url, clients=200, seconds=600, requests=2, max_tokens=16))
        eventually(lambda: commands.qsize() > 150, seconds=120)
        server.engine.let_go()
        return asked.result()


def test_200_clients_lose_nothing(serve: Serve) -> None:
    with serve(max_waiting_streams=1500) as server:
        load = load_of_200(server)
        eventually(server.service.worker.idle.is_set)
        eventually(lambda: not server.engine.has_work)
        eventually(lambda: lost(load, counted(server.url)) == [])
        assert load.outcomes.total() == 400
        assert load.outcomes["refused"] > 0, "the queue was never full"
        assert load.outcomes["done"] > 0
        assert server.engine.stats().cache_streams == 0
        server.engine.cache.check_integrity()
