"""The examples of the client's README, one after the other as a reader runs them."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "clients" / "python" / "README.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8000"


def test_every_example_runs(talking_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    examples = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(examples) == README.count("```python") > 5
    names: dict[str, object] = {}
    for number, example in enumerate(examples):
        exec(compile(example.replace(ADDRESS, talking_url), f"README example {number}", "exec"), names)
        told = capsys.readouterr()
        assert told.out.strip(), example
        assert told.err == "", example
    for name in ("client", "patient"):
        names[name].close()  # type: ignore[attr-defined]
