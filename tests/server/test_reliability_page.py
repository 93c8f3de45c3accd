"""docs/RELIABILITY.md names tests that are there, and every fault of the abuse run."""

import re
from pathlib import Path

from benchmarks.server.abuse.__main__ import FAULTS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "RELIABILITY.md").read_text(encoding="utf-8")


def test_every_fault_has_a_test_that_is_there() -> None:
    rows = [line for line in PAGE.partition("## The abuse run")[0].splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 20
    for row in rows:
        tests = re.findall(r"`(tests/\S+\.py)::(\w+)`", row)
        assert tests, row
        for file, name in tests:
            assert re.search(rf"^def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), name


def test_every_fault_of_the_abuse_run_is_told_in_its_order() -> None:
    assert re.findall(r"`(\w+)`(?=[^|]*\|[^|]*\|$)", PAGE.partition("## The abuse run")[2], re.MULTILINE) == [*FAULTS]
