"""200 clients against a queue for some 50: the short form of benchmarks/server/load.py, bounded by requests."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from benchmarks.server.clients import Answer, Load, outcomes, put_load
from benchmarks.server.load import Mixture, lost
from benchmarks.server.serving import read_metrics
from tests.server.harness import Running, Serve, eventually


def load_of_200(server: Running) -> list[Answer]:
    """Send two requests from each client; no step ends before more have arrived than the queue accepts."""
    commands = server.service.worker._thread._commands
    server.engine.hold()
    with ThreadPoolExecutor() as pool:
        load = Load(address=server.url, request=Mixture(max_tokens=16).request, clients=200, requests=2)
        asked = pool.submit(asyncio.run, put_load(load))
        eventually(lambda: commands.qsize() > 150, seconds=120)
        server.engine.let_go()
        return asked.result()


def test_200_clients_lose_nothing(serve: Serve) -> None:
    with serve(max_waiting_streams=1500) as server:
        seen = outcomes(load_of_200(server))
        eventually(server.service.worker.idle.is_set)
        eventually(lambda: not server.engine.has_work)
        eventually(lambda: lost(seen, read_metrics(server.url)) == [])
        assert seen.total() == 400
        assert seen["429"] > 0, "the queue was never full"
        assert seen["200"] > 0
        assert server.engine.stats().cache_streams == 0
        server.engine.cache.check_integrity()
