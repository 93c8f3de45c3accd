"""API keys: who is let in, and that keys are nowhere to be read."""

import re
from pathlib import Path

import httpx
import pytest

from tests.server.harness import Serve
from tests.server.test_operation import samples
from thoughtbubbles.server.app import KEYLESS
from thoughtbubbles.server.keys import NO_KEYS, ApiKeys
from thoughtbubbles.server.settings import help_texts

KEYS = ApiKeys.of(["sk-one", " sk-zwei-ü "], "here")


@pytest.mark.parametrize(
    ("shown", "admitted"),
    [
        ("Bearer sk-one", True), ("bearer  sk-one ", True), ("Bearer sk-zwei-ü", True),
        ("", False), ("Bearer ", False), ("sk-one", False), ("Basic sk-one", False), ("Bearer sk-on", False),
        ("Bearer sk-one2", False), ("Bearer SK-ONE", False), ("Bearer sk-one, sk-zwei-ü", False),
    ],
)  # fmt: skip
def test_who_is_admitted(shown: str, admitted: bool) -> None:
    assert KEYS.admit(shown.encode()) is admitted
    assert NO_KEYS.admit(shown.encode())


def test_a_file_of_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# who\nsk-one\n\n  sk-zwei-ü\n#sk-gone\n")
    assert ApiKeys.read(file) == KEYS
    # As Windows' editor saves it.
    file.write_bytes("\ufeffsk-one # the first's\r\n  # indented\r\nsk-zwei-ü\t#\r\n".encode())
    assert ApiKeys.read(file) == KEYS
    file.write_text("sk#1")
    assert ApiKeys.read(file) == ApiKeys.of(["sk#1"], "here")
    file.write_text("# nobody\n\n")
    with pytest.raises(ValueError, match="keys has no key"):
        ApiKeys.read(file)


def test_a_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("sk-one", encoding="utf-16")
    with pytest.raises(ValueError, match="keys is not text in UTF-8"):
        ApiKeys.read(file)


def test_every_key_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparison never ends early: its time would reveal which key matched, and how much of it."""
    compared = []
    monkeypatch.setattr("thoughtbubbles.server.keys.hmac.compare_digest", lambda a, b: compared.append(b) or a == b)
    for shown in (b"Bearer sk-one", b"Bearer sk-zwei", b""):
        compared.clear()
        KEYS.admit(shown)
        assert sorted(compared) == sorted(KEYS.digests)


def test_what_needs_a_key(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("sk-from-the-file")
    with serve(api_keys=KEYS, api_keys_file=file) as server:
        needing = ["/v1/completions", "/v1/completions/x/cancel", "/v1/models", "/v1/models/tiny", "/tokenize",
                   "/detokenize", "/tokenizer_info", "/v1/chat/completions", "/nowhere"]  # fmt: skip
        for number, path in enumerate(needing, 1):
            for shown in ({}, {"authorization": "Bearer sk-wrong"}):
                answer = server.client.post(path, headers=shown, json={})
                assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key"), path
            assert answer.headers["x-should-retry"] == "false"
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.headers["x-request-id"]
            assert "sk-" not in answer.text
            assert samples(server)["request_rejected_total", "invalid_api_key"] == 2 * number
        for path in KEYLESS:
            assert server.client.get(path).status_code == 200, path
        for key in ("sk-one", "sk-zwei-ü", "sk-from-the-file"):
            headers = {"authorization": f"Bearer {key}".encode()}
            assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == 200


def test_the_setting_and_the_page_tell_what_needs_no_key() -> None:
    prose = help_texts()["api_keys_file"]
    page = (Path(__file__).parents[2] / "docs" / "API.md").read_text(encoding="utf-8")
    for told in prose.partition(" but ")[2], page.partition("Bearer KEY`;")[2].partition("need none.")[0]:
        assert set(re.findall(r"/[\w.*/]*", told)) == {
            re.sub("^/playground/.*", "/playground/*", path) for path in KEYLESS
        }
