"""A pytest plugin that turns skips into failures in CI, where `.ci/run` installs all that tests need."""

import os
import re
from collections.abc import Generator
from typing import TypeVar

import pytest

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)

MAY_BE_MISSING = re.compile("CUDA device|needs Ray|needs HAProxy|needs Helm|needs the extra wandb|this processor lacks")
"""What `.ci/run` does not install: a GPU, instruction sets, two large packages, HAProxy, whose tests of several servers
can fail by time on a busy machine, and Helm, which Debian has not."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return fail_if_skipped((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return fail_if_skipped((yield))


def fail_if_skipped(report: Report) -> Report:
    """Turn a skip into a failure with its reason if CI is set, unless the reason is among MAY_BE_MISSING."""
    if os.environ.get("CI", "false") == "false" or not report.skipped or hasattr(report, "wasxfail"):
        return report
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not MAY_BE_MISSING.search(reason):
        report.outcome = "failed"
        report.longrepr = f"{reason.removeprefix('Skipped: ')}\nCI is set: nothing may be skipped for what is missing."
    return report
