"""docs/SCALING.md has the measured numbers, and the cache has the size of its arithmetic."""

import json
import re

from benchmarks.server.scaling import cache_bytes
from tests.deploy.harness import ROOT
from thoughtbubbles.engine import EngineConfig
from thoughtbubbles.model import ModelConfig, shipped_checkpoint
from thoughtbubbles.server.settings import ServerSettings

PAGE = (ROOT / "docs" / "SCALING.md").read_text(encoding="utf-8")
RESULT = (ROOT / "benchmarks" / "results" / "scaling.txt").read_text(encoding="utf-8")
SHIPPED = ModelConfig.from_dict(json.loads((shipped_checkpoint() / "config.json").read_text())["model"])


def test_the_table_is_what_the_benchmark_printed() -> None:
    (table,) = re.findall(r"^```\n(replicas, .*?)```", PAGE, re.MULTILINE | re.DOTALL)
    assert RESULT.endswith(table)


def test_a_token_takes_the_bytes_that_the_page_adds_up() -> None:
    (terms,) = re.findall(r"at most: ([\d×+*() \n]+)= 43,048 bytes", PAGE)
    added = eval(terms.replace("×", "*").replace("\n", " "))  # numbers and signs alone, as the pattern says
    assert added == cache_bytes(SHIPPED, 4) == 43_048
    assert f"{ServerSettings().cache_bytes // added:,}" in PAGE


def test_what_the_page_says_of_the_queue_is_the_default() -> None:
    streams = ServerSettings().max_waiting_streams
    assert streams == EngineConfig().max_waiting_streams
    assert f"{streams:,}" in PAGE
    assert f"holds {streams // (200 * 2)} prompts of 200 tokens at ratio {SHIPPED.ratio:g}" in PAGE
