"""HTTP statuses of errors are given in server/protocol/errors.py alone, and the bridge knows no HTTP."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from thoughtbubbles.engine import ClientQueueFull, InvalidRequest, QueueFull
from thoughtbubbles.server.bridge import errors
from thoughtbubbles.server.protocol.handlers import api_error, load_api_error

SERVER = Path(__file__).parents[2] / "server"
INVALID = InvalidRequest("seed must be an integer", code="invalid_value", param="seed")
ANSWERS = [
    (errors.RefusedError(INVALID, 7), 400, "invalid_value", None),
    (errors.RefusedError(QueueFull("the queue is full"), 7), 429, "queue_full", 7),
    (errors.RefusedError(ClientQueueFull("your share is full"), 7), 429, "client_queue_full", 7),
    (errors.UnavailableError("starting"), 503, "starting", 1),
    (errors.TimeLimitError(2.5), 408, "timeout", None),
    (errors.CancelledError(), 499, "cancelled", None),
    (errors.ServerStoppedError(), 503, "draining", 1),
    (errors.NonFiniteLogitsError(), 500, "non_finite_logits", None),
    (errors.GrammarFailedError("too many states"), 400, "grammar_too_complex", None),
    (errors.EngineFailedError(), 500, "engine_failed", None),
]

LOAD_ANSWERS = [
    (errors.LoadRefusedError("no such folder"), 400, "checkpoint_refused"),
    (errors.LoadInProgressError(), 409, "load_in_progress"),
    (errors.LoadTimeoutError(2.5), 408, "load_timeout"),
    (errors.LoadFailedError("MemoryError"), 500, "load_failed"),
]


@pytest.mark.parametrize(("error", "status", "code", "retry_after"), ANSWERS)
def test_each_error_of_the_bridge_has_its_answer(
    error: errors.GenerationError, status: int, code: str, retry_after: int | None
) -> None:
    answer = api_error(error)
    assert (answer.status, answer.code, answer.retry_after) == (status, code, retry_after)


@pytest.mark.parametrize(("error", "status", "code"), LOAD_ANSWERS)
def test_each_error_of_a_load_has_its_answer(error: errors.LoadError, status: int, code: str) -> None:
    answer = load_api_error(error)
    assert (answer.status, answer.code) == (status, code)


def test_no_error_of_the_bridge_is_without_an_answer() -> None:
    assert {type(error) for error, *_ in LOAD_ANSWERS} == set(errors.LoadError.__subclasses__())
    assert {type(error) for error, *_ in ANSWERS} == set(errors.GenerationError.__subclasses__())


def statuses(source: str) -> Iterator[str]:
    """Where `source` makes an `ApiError`, or a response whose status is a number."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            given = [each.value for each in node.keywords if each.arg == "status_code"]
            if ast.unparse(node.func).endswith("ApiError") or any(isinstance(each, ast.Constant) for each in given):
                yield ast.unparse(node)


def test_statuses_of_errors_are_given_in_one_file() -> None:
    found = {path: list(statuses(path.read_text(encoding="utf-8"))) for path in SERVER.rglob("*.py")}
    assert [path.relative_to(SERVER).as_posix() for path in found if found[path]] == ["protocol/errors.py"]


@pytest.mark.parametrize("source", ["raise errors.ApiError(400, 'no', code='no')", "Response(b'', status_code=404)"])
def test_a_status_elsewhere_is_seen(source: str) -> None:
    assert list(statuses(source)) == [source.removeprefix("raise ")]


def test_the_bridge_imports_no_http() -> None:
    for path in (SERVER / "bridge").glob("*.py"):
        imported = [node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        assert not {"fastapi", "starlette", "uvicorn"} & {str(module).partition(".")[0] for module in imported}, path
