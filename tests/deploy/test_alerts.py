"""The alerts: tested by promtool, and listed in docs/OPERATION.md."""

import re
import shutil
import subprocess

import pytest
import yaml

from tests.deploy.harness import DEPLOY, ROOT, RULES

CASES = [
    case
    for test in yaml.safe_load((DEPLOY / "alerts.test.yml").read_text(encoding="utf-8"))["tests"]
    for case in test["alert_rule_test"]
]
PAGE = (ROOT / "docs" / "OPERATION.md").read_text(encoding="utf-8")
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool (Debian's package prometheus) is not installed"
)


@needs_promtool
@pytest.mark.parametrize("command", ["check config prometheus.yml", "test rules alerts.test.yml"])
def test_promtool_finds_nothing_wrong(command: str) -> None:
    ran = subprocess.run(["promtool", *command.split()], cwd=DEPLOY, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_each_is_seen_to_fire_and_not_to(rule: dict[str, str]) -> None:
    cases = [bool(case.get("exp_alerts")) for case in CASES if case["alertname"] == rule["alert"]]
    assert {True, False} == set(cases)


def test_each_is_told() -> None:
    told = re.findall(r"^\| `(Thoughtbubbles\w+)` \| (\w+), (\w+) \|", PAGE, re.MULTILINE)
    assert told == [(rule["alert"], rule["labels"]["severity"], rule.get("for", "0m")) for rule in RULES]
