"""An engine in a process of its own, on a CPU, that obeys a file: the test writes what it is to do next.

`python -m tests.server.ordered FILE …` is the server with such an engine.
"""

import argparse
import sys
import threading
from functools import partial
from pathlib import Path

from thoughtbubbles.engine import Engine, TokenEvent
from thoughtbubbles.server import service
from thoughtbubbles.server.__main__ import add_arguments, run
from thoughtbubbles.server.bridge.loading import load_model
from thoughtbubbles.server.bridge.process import run_engine_process
from thoughtbubbles.server.core import ServedModel
from thoughtbubbles.server.settings import ServerSettings


class BurstError(Exception):
    """One that no pickle can make again: of its arguments it keeps the first."""

    def __init__(self, what: str, _when: int) -> None:
        super().__init__(what)


class OrderedEngine(Engine):
    """The real engine, steered by a file: an order for the next step, or a limit of all tokens; free without it.

    At the limit it takes no step and continues to execute commands.
    """

    orders: Path

    @property
    def has_work(self) -> bool:
        order = self._order()
        held = order.isdigit() and self.stats().generation_tokens_total >= int(order)
        return super().has_work and not held

    def step(self) -> list[TokenEvent]:
        match self._order():
            case "hang":
                threading.Event().wait()
            case "burst":
                raise BurstError("a tensor burst", 3)
        return super().step()

    def _order(self) -> str:
        return self.orders.read_text() if self.orders.exists() else ""


def order(orders: Path, what: str | int) -> None:
    """Write it, so that it is read whole."""
    orders.with_suffix(".new").write_text(str(what))
    orders.with_suffix(".new").replace(orders)


def load_ordered(orders: Path, settings: ServerSettings) -> tuple[Engine, ServedModel]:
    """What the server's loader gives it, obeying the file; no file, and loading never ends."""
    if not orders.exists():
        threading.Event().wait()
    engine, served = load_model(settings)
    engine.__class__ = OrderedEngine
    engine.orders = orders
    return engine, served


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("orders", type=Path)
    add_arguments(parser)
    args = parser.parse_args()
    service.run_engine = run_engine_process
    service.load_model = partial(load_ordered, args.orders)
    return run(args)


if __name__ == "__main__":
    sys.exit(main())
