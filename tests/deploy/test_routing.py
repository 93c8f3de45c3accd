"""What the router compares, what the autoscaler makes of engines' queues, and what the command refuses."""

import json
import warnings
from types import SimpleNamespace

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its own code, while it is imported
    pytest.importorskip("ray.serve", reason="needs Ray: pip install '.[ray]'")

from deploy import ray_serve
from deploy.replicas.exchange import HttpRequest
from deploy.replicas.ingress import COMPARED_CHARACTERS, beginning
from deploy.replicas.scaling import replicas_wanted


def compared(body: object) -> list[str]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return [each.prompt for each in beginning(HttpRequest(scope={}, body=content))]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"prompt": "The river"}, "The river"),
        ({"prompt": "The river", "fork_ratio": 1.5}, "1.5 The river"),
        ({"prompt": ["one", "two"]}, '["one", "two"]'),
        ({"prompt": [3, 4]}, "[3, 4]"),
        ({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None}]}, '["hi", null]'),
        ({"prompt": "x" * (COMPARED_CHARACTERS + 1)}, "x" * COMPARED_CHARACTERS),
    ],
)
def test_prompts_are_compared_by_their_beginning(body: object, text: str) -> None:
    assert compared(body) == [text]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", {}, {"prompt": ""}, {"prompt": None}, {"messages": 3}, {"messages": [3]}], ids=repr
)
def test_what_is_no_prompt_is_not_compared(body: object) -> None:
    """Ray's router divides by the length of what it compares."""
    assert compared(body) == []


@pytest.mark.parametrize(
    ("requests", "waiting", "wanted"),
    [
        (4, [0, 0], 0.5),
        (4, [0.5, 0.25], 0.5),  # now and then, for a moment
        (32, [0, 0], 4),
        (2, [24, 0], 5),
        (40, [8, 8], 5),
    ],
)
def test_replicas_are_wanted_for_requests_or_for_sequences_that_wait(
    requests: int, waiting: list[float], wanted: float
) -> None:
    context = SimpleNamespace(
        current_num_replicas=2,
        total_num_requests=requests,
        aggregated_metrics={"num_requests_waiting": dict(enumerate(waiting))},
        config=SimpleNamespace(target_ongoing_requests=8, get_target_ongoing_requests=lambda: 8),
    )
    assert replicas_wanted(context)[0] == wanted


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--max-replicas", "none"], "--max-replicas: invalid int value: 'none'"),
        (["--max-replicas", "0"], "max_replicas Input should be greater than or equal to 1"),
        (["--min-replicas", "3", "--max-replicas", "2"], "max_replicas must be at least min_replicas (3)"),
        (["--dtype", "int8"], "dtype must be float32 or bfloat16, not 'int8'"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_is_said_before_ray_starts(
    given: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["ray_serve", *given])
    with pytest.raises(SystemExit) as ended:
        ray_serve.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.rstrip().endswith(said)
