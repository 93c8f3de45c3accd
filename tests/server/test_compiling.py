"""A grammar that is new to the engine's process is compiled beside its steps, as is the case on a GPU."""

import errno
import queue
import threading
from collections.abc import Iterator
from itertools import count

import pytest

from tests.engine.conftest import lively_model
from thoughtbubbles.engine import Engine, EngineConfig, Grammar, SamplingParams, TokenEvent
from thoughtbubbles.engine.structured.compiler import GrammarCompiler
from thoughtbubbles.model import Tokenizer
from thoughtbubbles.server.bridge.commands import Abort, Add, Command
from thoughtbubbles.server.bridge.loop import Aborted, Accepted, Refused, Report, Stepped, run_engine
from thoughtbubbles.server.core import EngineRequest, ServedModel

SECONDS = 30


class Loop:
    """An engine's loop on a thread, and what it reports."""

    def __init__(self) -> None:
        self.commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self.reports: queue.SimpleQueue[Report] = queue.SimpleQueue()
        self.seen: list[Report] = []
        self._thread = threading.Thread(target=run_engine, args=(self._load, self.commands, self.reports.put))
        self._thread.start()

    def _load(self) -> tuple[Engine, ServedModel]:
        tokenizer = Tokenizer({bytes([byte]): byte for byte in range(256)}, "bytes")
        engine = Engine(lively_model(), tokenizer, EngineConfig(page_size=4, cache_bytes=1 << 22))
        served = ServedModel(
            name="m", config=engine.model.config, tokenizer=tokenizer, max_model_len=64, max_waiting_streams=999,
            max_choices=8, parameters=1, device="cpu", weights_version="w",
        )  # fmt: skip
        return engine, served

    def add(self, *names: str, grammar: Grammar | None = None, max_tokens: int = 9) -> None:
        params = SamplingParams(max_tokens=max_tokens, grammar=grammar, ignore_eos=grammar is None)
        requests = [EngineRequest(request_id=name, prompt=[1, 2], params=params) for name in names]
        self.commands.put(Add(requests, 0.0))

    def events(self, name: str) -> list[TokenEvent]:
        """What was reported of a request."""
        steps = (each for each in self.seen if isinstance(each, Stepped))
        return [event for step in steps for event in step.events if event.request_id == name]

    def finish(self, name: str) -> list[TokenEvent]:
        """Wait for the last event of a request, and return all."""
        while not (found := self.events(name)) or found[-1].finish_reason is None:
            self.seen.append(self.reports.get(timeout=SECONDS))
        return found

    def until(self, kind: type[Accepted | Aborted | Refused], name: str) -> Report:
        """Wait for a report about a request."""
        while True:
            self.seen.append(report := self.reports.get(timeout=SECONDS))
            if isinstance(report, kind) and name in report.request_ids:
                return report

    def end(self) -> None:
        self.commands.put(None)
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Compiles nothing until it is set."""
    may = threading.Event()
    compile_ = GrammarCompiler._compile

    def slowly(self: GrammarCompiler, grammar: Grammar) -> object:
        assert may.wait(SECONDS)
        return compile_(self, grammar)

    monkeypatch.setattr(GrammarCompiler, "_compile", slowly)
    yield may
    may.set()


@pytest.fixture
def loop(compiles: threading.Event) -> Iterator[Loop]:
    loop = Loop()
    yield loop
    compiles.set()
    loop.end()


def test_others_step_meanwhile(loop: Loop, compiles: threading.Event) -> None:
    loop.add("a", "b", grammar=Grammar.choice(["yes", "no"]))
    loop.add("free")
    assert len(loop.finish("free")) == 9
    assert not any(isinstance(each, Accepted) and "a" in each.request_ids for each in loop.seen)
    compiles.set()
    for name in "ab":
        assert "".join(event.text for event in loop.finish(name)) in {"yes", "no"}


def test_an_idle_engine_goes_on_once_it_is_compiled(loop: Loop, compiles: threading.Event) -> None:
    loop.add("a", grammar=Grammar.choice(["yes"]))
    loop.add("free", max_tokens=1)
    loop.finish("free")
    compiles.set()
    assert "".join(event.text for event in loop.finish("a")) == "yes"


def test_a_mistake_is_refused(loop: Loop, compiles: threading.Event) -> None:
    compiles.set()
    loop.add("a", grammar=Grammar(kind="regex", text="(a"))
    refused = loop.until(Refused, "a")
    assert isinstance(refused, Refused)
    assert "unclosed group" in str(refused.refusal)


def test_a_grammar_for_which_no_process_can_be_started_is_refused_alone(
    loop: Loop, compiles: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when memory is short: the engine goes on, and a later try may succeed."""
    compiles.set()
    loop.add("free")

    start, tries = GrammarCompiler._start_checker, count()

    def fail(compiler: GrammarCompiler) -> object:
        if next(tries) < 20:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return start(compiler)  # nothing is tried so often

    with monkeypatch.context() as failing:
        failing.setattr(GrammarCompiler, "_start_checker", fail)
        loop.add("a", grammar=Grammar.choice(["yes"]))
        refused = loop.until(Refused, "a")
    assert isinstance(refused, Refused)
    assert "temporarily unavailable" in str(refused.refusal)
    assert len(loop.finish("free")) == 9
    loop.add("b", grammar=Grammar.choice(["yes"]))
    assert "".join(event.text for event in loop.finish("b")) == "yes"


def test_one_that_is_aborted_meanwhile_is_never_computed(loop: Loop, compiles: threading.Event) -> None:
    """It counts as accepted and aborted, as any other."""
    loop.add("gone", grammar=Grammar.choice(["yes"]))
    loop.commands.put(Abort(["gone"], "abort"))
    loop.until(Aborted, "gone")
    assert [each.request_ids for each in loop.seen if isinstance(each, Accepted)] == [["gone"]]
    compiles.set()
    loop.add("a", grammar=Grammar.choice(["yes"]))
    loop.finish("a")
    assert not loop.events("gone")


def test_the_loop_ends_while_a_grammar_is_compiled(loop: Loop) -> None:
    loop.add("a", grammar=Grammar.choice(["yes"]))
    loop.add("free", max_tokens=1)
    loop.finish("free")
    loop.end()
    loop.commands.put(None)
