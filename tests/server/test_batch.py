"""`thoughtbubbles batch`: the answers of the server without a server, each once, however often it is killed."""

import io
import json
import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import thoughtbubbles
from tests.engine.embedded import embed
from tests.server.conftest import CHAT_TEMPLATE
from tests.server.harness import Json, MakeEngine, Running, eventually
from thoughtbubbles.model import Thoughtbubbles, Tokenizer, save_checkpoint
from thoughtbubbles.server.batch import runner
from thoughtbubbles.server.batch.output_file import open_output
from thoughtbubbles.server.bridge import loading
from thoughtbubbles.server.settings import ServerSettings

ROOT = Path(__file__).parents[2]
TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hi"}]

REQUESTS: Sequence[tuple[str, Json]] = [
    (TEXT, {"prompt": "The river", "max_tokens": 20, "seed": 3, "ignore_eos": True, "return_token_ids": True}),
    (TEXT, {"prompt": ["a", "bcd"], "n": 3, "seed": 4, "temperature": 0.8, "top_p": 0.9, "return_fork_counts": True}),
    (TEXT, {"prompt": [[65, 66], [256]], "max_tokens": 1, "temperature": 0, "logprobs": 2, "echo": True, "seed": 1}),
    (TEXT, {"prompt": "abc", "max_tokens": 0, "echo": True, "logprobs": 0}),
    (TEXT, {"prompt": "x", "n": 2, "best_of": 5, "seed": 9, "stop": ["e", "é"], "unknown": 1}),
    (TEXT, {"seed": -(1 << 63), "n": 2, "max_tokens": 30, "fork_ratio": 3, "model": "tiny"}),
    (TEXT, {"prompt": "dynamics", "seed": 5, "fork_selection": "dynamic", "return_fork_counts": True}),
    (CHAT, {"messages": HELLO, "seed": 6, "n": 2, "max_tokens": 9, "logprobs": True, "top_logprobs": 2}),
    (CHAT, {"messages": HELLO, "seed": 7}),
    (TEXT, {"prompt": "x", "temperature": 3}),
    (TEXT, {"prompt": "x", "n": "two"}),
    (TEXT, {"prompt": "x", "model": "another"}),
    (TEXT, {"prompt": "x" * 60}),
    (TEXT, {"prompt": [999]}),
    (TEXT, {"prompt": "x", "response_format": {"type": "yaml"}}),
    (TEXT, {"prompt": "x", "guided_choice": ["yes", "no"], "seed": 1}),
    (CHAT, {"messages": HELLO, "guided_regex": "(a"}),
    (TEXT, {"prompt": "x", "stream_options": {}}),
    (CHAT, {}),
    (CHAT, {"messages": HELLO, "tools": [{}]}),
    (CHAT, {"messages": [{"role": "user", "content": "x" * 64}]}),
]  # fmt: skip
SEEDED = [(TEXT, {"prompt": f"number {i}", "seed": i, "max_tokens": 3 + i % 20}) for i in range(60)]

Batch = Callable[..., int]


@pytest.fixture(scope="module")
def talking(model: Thoughtbubbles, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a folder, with a chat template."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    save_checkpoint(folder, model, tokenizer, {}, chat_template=CHAT_TEMPLATE)
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "in.jsonl"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


@pytest.fixture
def batch(talking: Path, source: Path, output: Path) -> Batch:
    """Run the command on these lines, by default on those that are there: its exit code."""

    def run(lines: Sequence[str] | None = None, *options: str) -> int:
        if lines is not None:
            source.write_text("".join(f"{each}\n" for each in lines), encoding="utf-8")
        return thoughtbubbles.main(command(source, output, talking, *options))

    return run


def command(source: Path, output: Path, checkpoint: Path, *options: str) -> list[str]:
    limits = ["--threads", "1", "--cache-bytes", str(1 << 22), "--max-batch-size", "4"]
    return ["batch", str(source), str(output), str(checkpoint), *limits, *options]


@pytest.fixture
def engine(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the command run the server's tiny model, not a checkpoint's."""
    monkeypatch.setattr(loading, "load_model", make_engine)


def line(custom_id: object, body: object, url: str = TEXT, method: str = "POST") -> str:
    return json.dumps({"custom_id": custom_id, "method": method, "url": url, "body": body})


def lines_of(requests: Sequence[tuple[str, Json]]) -> list[str]:
    return [line(f"request {number}", body, url) for number, (url, body) in enumerate(requests)]


def records(output: Path) -> list[Json]:
    return [json.loads(text) for text in output.read_bytes().splitlines()]


def answers(output: Path) -> dict[str, Json]:
    """The response of each custom_id; each is there once."""
    found = records(output)
    assert len({each["custom_id"] for each in found}) == len(found)
    return {each["custom_id"]: each["response"] for each in found}


def errors(output: Path) -> list[tuple[int, str | None, str]]:
    """Line number, custom_id and code of each line that has no request."""
    bad = [each for each in records(output) if each["error"] is not None]
    assert all(each["response"] is None for each in bad)
    return [(each["error"]["line"], each["custom_id"], each["error"]["code"]) for each in bad]


def lasting(body: Json) -> Json:
    """What is the same in two answers to one request: not ids, times, and what the cache had."""
    kept = {name: value for name, value in body.items() if name not in {"id", "created"}}
    if "usage" in kept:
        kept["usage"] = {name: value for name, value in kept["usage"].items() if name.endswith("tokens")}
        del kept["usage"]["stream_tokens"]
    return kept


def rounded(value: object) -> object:
    """Log-probabilities as API.md promises them, to 1e-4: sums differ by the batch that they are computed in."""
    match value:
        case dict():
            return {name: rounded(each) for name, each in value.items()}
        case list():
            return [rounded(each) for each in value]
        case float():
            return pytest.approx(value, abs=1e-4)
        case _:
            return value


def test_answers_and_errors_equal_those_over_http(server: Running, batch: Batch, output: Path) -> None:
    assert batch(lines_of(REQUESTS)) == 1
    found = answers(output)
    assert len(found) == len(REQUESTS)
    for number, (url, body) in enumerate(REQUESTS):
        response, mine = server.client.post(url, json=body), found[f"request {number}"]
        assert mine["status_code"] == response.status_code, mine
        assert lasting(mine["body"]) == rounded(lasting(response.json()))
        assert mine["body"].keys() == response.json().keys()
        header = response.headers.get("x-ignored-parameters")
        assert mine.get("ignored_parameters") == (None if header is None else header.split(", "))
    assert {response["status_code"] for response in found.values()} == {200, 400, 404}


def test_the_lines_are_openais(batch: Batch, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert batch([line("é", {"prompt": "a", "seed": 1}), "", line("chat", {"messages": HELLO}, CHAT)]) == 0
    (first, second) = sorted(records(output), key=lambda each: each["custom_id"])
    assert list(first) == ["id", "custom_id", "response", "error"]
    assert list(first["response"]) == ["status_code", "request_id", "body"]
    assert first["id"].startswith("batch_req_")
    assert first["response"]["request_id"].startswith("req-")
    assert first["error"] is None
    assert first["response"]["body"]["object"] == "chat.completion"
    assert second["response"]["body"]["object"] == "text_completion"
    assert (
        len({each["id"] for each in (first, second)} | {each["response"]["request_id"] for each in (first, second)})
        == 4
    )
    shown = capsys.readouterr()
    assert shown.out == f"{output}: 2 lines answered; errors: 0\n"
    assert shown.err == "", "no progress bar outside a terminal"


def test_a_killed_batch_goes_on(batch: Batch, talking: Path, source: Path, output: Path) -> None:
    """The first process blocks after 40 steps, in which some lines end and others do not, and is killed."""
    source.write_text("\n".join([*lines_of(SEEDED), "nonsense"]))
    script = f"""
import sys, time
import thoughtbubbles
from thoughtbubbles.engine import Engine

step, steps = Engine.step, 0

def blocked(self):
    global steps
    steps += 1
    while steps > 40:
        time.sleep(1)
    return step(self)

Engine.step = blocked
sys.exit(thoughtbubbles.main({command(source, output, talking)!r}))
"""
    survivors = b""
    for _ in range(2):
        with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT) as process:
            try:
                eventually(lambda before=survivors: output.exists() and output.stat().st_size > len(before), 60)
                with pytest.raises(OSError, match="being written by another batch"), open_output(output):
                    pass
            finally:
                process.send_signal(signal.SIGKILL)
        assert output.read_bytes().startswith(survivors)
        survivors = output.read_bytes()
    assert 1 < survivors.count(b"\n") < len(SEEDED)
    assert batch() == 1
    assert errors(output) == [(61, None, "invalid_json")]
    resumed = choices(output)
    assert len(resumed) == len(SEEDED)
    output.unlink()
    assert batch() == 1
    assert choices(output) == resumed


def choices(output: Path) -> dict[str, Json]:
    """The choices of each line that has a request; each is there once."""
    return {name: response["body"]["choices"] for name, response in answers(output).items() if response}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_progress(batch: Batch, engine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", shown := Terminal())
    assert batch([*lines_of(SEEDED[:2]), "{"]) == 1
    assert "3/3 " in shown.getvalue()
    assert "errors=1" in shown.getvalue()


@pytest.mark.parametrize("left", [1, 20, 300, -1])
def test_a_torn_last_line_is_answered_again(batch: Batch, output: Path, left: int) -> None:
    assert batch(lines_of(SEEDED[:5])) == 0
    whole = output.read_bytes()
    *kept, last = whole.splitlines(keepends=True)
    output.write_bytes(b"".join([*kept, last[:left]]))
    assert batch() == 0
    assert output.read_bytes().startswith(b"".join(kept))
    again = records(output)[-1]
    assert again["custom_id"] == json.loads(last)["custom_id"]
    assert again["id"] != json.loads(last)["id"]
    assert again["response"]["body"]["choices"] == json.loads(last)["response"]["body"]["choices"]
    assert len(answers(output)) == 5


def test_what_is_answered_is_not_computed_again(
    batch: Batch, output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [*lines_of(SEEDED[:3]), "{", line("refused", {"n": 0})]
    assert batch(lines) == 1
    before = output.read_bytes()
    monkeypatch.setattr(loading, "load_model", lambda _settings: pytest.fail("the checkpoint is loaded"))
    assert batch() == 1
    assert output.read_bytes() == before
    assert capsys.readouterr().out.endswith(": 5 lines answered, 5 of them by an earlier run; errors: 2\n")
    monkeypatch.undo()
    assert batch([*lines[:3], line("mended", {"seed": 1})]) == 0, "a bad line that has become a good one is answered"
    assert output.read_bytes().startswith(before)
    assert answers_of(output, "mended")[0]["response"]["status_code"] == 200


def answers_of(output: Path, custom_id: str) -> list[Json]:
    return [each for each in records(output) if each["custom_id"] == custom_id]


def test_a_bad_line_is_an_error_and_stops_no_other(batch: Batch, output: Path) -> None:
    good = {"prompt": "a", "seed": 1}
    lines = [
        line("first", good),
        "not JSON",
        "[1]",
        '{"custom_id": "nan", "method": "POST", "url": "/v1/completions", "body": {"n": NaN}}',
        "",
        "[" * 5000,
        json.dumps({"method": "POST", "url": TEXT, "body": good}),
        line(7, good),
        line("", good),
        line("get", good, method="GET"),
        line("embeddings", good, url="/v1/embeddings"),
        line("no object", "text"),
        json.dumps({"custom_id": "no body", "method": "POST", "url": TEXT}),
        line("first", good),
        line("get", good),
        line("long", {"prompt": "a" * 500}),
        line("last", good),
    ]
    assert batch(lines, "--max-body-bytes", "400") == 1
    assert errors(output) == [
        (2, None, "invalid_json"),
        (3, None, "invalid_json"),
        (4, None, "invalid_json"),
        (6, None, "request_too_large"),
        (7, None, "missing_required_parameter"),
        (8, None, "invalid_type"),
        (9, "", "empty_string"),
        (10, "get", "invalid_value"),
        (11, "embeddings", "invalid_value"),
        (12, "no object", "invalid_type"),
        (13, "no body", "missing_required_parameter"),
        (14, "first", "duplicate_custom_id"),
        (15, "get", "duplicate_custom_id"),
        (16, None, "request_too_large"),
    ]
    good_ids = [each["custom_id"] for each in records(output) if each["error"] is None]
    assert sorted(good_ids) == ["first", "last"]
    assert records(output)[0]["error"]["message"].startswith("Line 2 is not valid JSON: ")
    before = output.read_bytes()
    assert batch(None, "--max-body-bytes", "400") == 1
    assert output.read_bytes() == before


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
@pytest.mark.parametrize("start", ["", "\N{ZERO WIDTH NO-BREAK SPACE}"])
def test_a_line_as_long_as_the_limit_is_read(batch: Batch, source: Path, output: Path, start: str, end: str) -> None:
    text = line("a", {"prompt": "a", "seed": 1})
    source.write_bytes((start + text + end).encode())
    assert batch(None, "--max-body-bytes", str(len(text) - 1)) == 1
    assert errors(output) == [(1, None, "request_too_large")]
    assert batch(None, "--max-body-bytes", str(len(text))) == 0


def test_streams_are_refused(batch: Batch, output: Path, engine: None) -> None:
    bodies = [(TEXT, {"stream": True}), (CHAT, {"messages": HELLO, "stream": True}), (TEXT, {"stream": False})]
    assert batch(lines_of(bodies)) == 1
    found = answers(output)
    for name in ("request 0", "request 1"):
        assert found[name]["status_code"] == 400
        assert found[name]["body"]["error"]["code"] == "unsupported_parameter"
        assert found[name]["body"]["error"]["param"] == "stream"
    assert found["request 2"]["status_code"] == 200


def test_logits_that_are_not_finite_end_one_line(
    batch: Batch, output: Path, make_engine: MakeEngine, model: Thoughtbubbles, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_engine(ServerSettings(max_batch_size=4))
    monkeypatch.setattr(loading, "load_model", lambda _settings: made)
    embed(monkeypatch, model, 200, math.nan)
    broken = [
        (TEXT, {"prompt": [[65], [200]], "n": 2, "seed": 1, "max_tokens": 60, "ignore_eos": True}) for _ in range(3)
    ]
    fine = [(TEXT, {"prompt": "a", "seed": i}) for i in range(9)]
    assert batch(lines_of([*broken, *fine])) == 1
    found = answers(output)
    assert [found[f"request {i}"]["status_code"] for i in range(12)] == [500] * 3 + [200] * 9
    assert found["request 0"]["body"]["error"]["code"] == "non_finite_logits"
    assert made[0].stats().generation_tokens_total < 9 * 16 + 60, "the other choices of a failed line are aborted"


def test_a_full_queue_is_waited_for(batch: Batch, output: Path, engine: None) -> None:
    """The queue has space for one of these lines at a time, or for some of another's choices."""
    bodies = [(TEXT, {"prompt": "abcdefghij", "n": 6, "seed": i, "max_tokens": 3}) for i in range(8)]
    refused = (TEXT, {"prompt": "abcdefghij", "n": 9})
    assert batch(lines_of([*bodies, refused, *bodies]), "--max-waiting-streams", "130") == 1
    found = answers(output)
    assert found.pop("request 8")["status_code"] == 400
    assert {each["status_code"] for each in found.values()} == {200}
    assert len(found) == 16


def test_what_the_engine_refuses_is_an_error(batch: Batch, output: Path) -> None:
    bodies = [(TEXT, {"prompt": "a", "max_tokens": 60, "fork_ratio": 4, "n": 2}), (TEXT, {"seed": 1, "max_tokens": 2})]
    assert batch(lines_of(bodies), "--cache-bytes", "90000") == 1
    found = answers(output)
    assert found["request 0"]["status_code"] == 400
    assert found["request 0"]["body"]["error"]["param"] == "fork_ratio"
    assert found["request 1"]["status_code"] == 200


def test_an_unexpected_exception_ends_one_line(
    batch: Batch, output: Path, engine: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    planned = runner._planned

    def failing(each: runner.Line, served: object) -> object:
        if each.number == 2:
            raise RuntimeError("a mistake of ours")
        return planned(each, served)

    monkeypatch.setattr(runner, "_planned", failing)
    assert batch(lines_of(SEEDED[:3])) == 1
    found = answers(output)
    assert [found[f"request {i}"]["status_code"] for i in range(3)] == [200, 500, 200]
    assert found["request 1"]["body"]["error"]["code"] == "internal_error"
    assert "a mistake of ours" not in json.dumps(found)
    assert "a mistake of ours" in caplog.text


def test_settings_come_from_the_environment_too(
    batch: Batch, output: Path, engine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THOUGHTBUBBLES_MAX_CHOICES", "2")
    monkeypatch.setenv("THOUGHTBUBBLES_MAX_CLIENT_SHARE", "0.01")
    assert batch(lines_of([(TEXT, {"n": 3})])) == 1
    assert "at most 2" in answers(output)["request 0"]["body"]["error"]["message"]
    options = ["--max-choices", "9", "--max-waiting-streams", "1000"]
    assert batch([line("share", {"n": 5})], *options) == 0, "a batch has no share of the queue"


@pytest.fixture
def refusal(batch: Batch, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """Run the command, which refuses the files before it loads the checkpoint: what it prints."""

    def run() -> str:
        monkeypatch.setattr(loading, "load_model", lambda _settings: pytest.fail("the checkpoint is loaded"))
        assert batch() == 2
        return capsys.readouterr().err

    return run


def test_an_input_that_cannot_be_read(refusal: Callable[[], str], source: Path, output: Path) -> None:
    assert refusal() == f"thoughtbubbles: error: {source}: no such file\n"
    source.mkdir()
    assert refusal() == f"thoughtbubbles: error: {source} is not a regular file\n"
    source.rmdir()
    os.mkfifo(source)
    assert refusal() == f"thoughtbubbles: error: {source} is not a regular file\n"
    assert not output.exists()


def test_an_output_that_cannot_be_written(refusal: Callable[[], str], source: Path, output: Path) -> None:
    source.write_text(line("a", {}))
    output.mkdir()
    assert refusal() == f"thoughtbubbles: error: {output} is not a regular file\n"
    output.rmdir()
    output.symlink_to(output.parent / "absent" / "out.jsonl")
    assert refusal() == f"thoughtbubbles: error: {output}: no such file or directory\n"
    output.unlink()
    output.symlink_to(source)
    assert refusal() == f"thoughtbubbles: error: {output} is the input, too: choose another output file\n"


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(("count", "limit"), [(4, 1000), (1, 100)])
def test_a_full_disk_is_named_and_the_next_run_goes_on(
    batch: Batch, source: Path, output: Path, capsys: pytest.CaptureFixture[str], *, count: int, limit: int
) -> None:
    """Also if it is full within the last line, of which a part is written."""
    source.write_text("".join(f"{line(str(number), {'prompt': 'a'})}\n" for number in range(count)))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        assert batch() == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert capsys.readouterr().err == f"thoughtbubbles: error: {output}: file too large\n"
    assert output.stat().st_size == limit
    assert batch() == 0
    assert answers(output).keys() == set("0123"[:count])


@pytest.mark.parametrize(
    ("content", "number"),
    [
        (b"my only copy", 1),
        (b"\x00" * 50, 1),
        (b'{"id":"batch_req_1","custom_id":"a","response":{"status_code":200},"error":null}\nnotes', 2),
        (b"{}\n", 1),
        (b'{"custom_id":["a"],"response":{"status_code":200},"error":null}\n', 1),
        (b'{"custom_id":"a","response":null,"error":null}\n', 1),
        (b"[]\n", 1),
        (b"\n", 1),
    ],
)
def test_an_output_that_is_something_else_stays(
    refusal: Callable[[], str], source: Path, output: Path, content: bytes, number: int
) -> None:
    source.write_text(line("a", {}))
    output.write_bytes(content)
    assert f"{output}, line {number} is not a line of a batch's output" in refusal()
    assert output.read_bytes() == content
