"""docs/OPERATION.md lists every setting with its default, and every metric."""

import re
from dataclasses import fields
from pathlib import Path

from tests.server.harness import Running
from thoughtbubbles.server.observe.metrics import CLOSE_REASONS
from thoughtbubbles.server.settings import ServerSettings, help_texts

PAGE = (Path(__file__).parents[2] / "docs" / "OPERATION.md").read_text(encoding="utf-8")


def test_every_setting_is_told() -> None:
    told = {name: rest for name, *rest in re.findall(r"^\| `(\w+)` \| (?:`([^`]*)`)? *\| (.*) \|$", PAGE, re.MULTILINE)}
    texts = help_texts()
    for setting in fields(ServerSettings):
        plain = isinstance(setting.default, str | int | float)
        default, prose = told[setting.name]
        assert default.lower() == (str(setting.default).lower() if plain else ""), setting.name
        assert prose == texts[setting.name]


def test_every_metric_is_told(server: Running) -> None:
    families = re.findall(r"^# TYPE thoughtbubbles_(\w+) (\w+)$", server.client.get("/metrics").text, re.MULTILINE)
    assert families
    for name, kind in families:
        if not name.endswith("_created"):
            assert re.search(rf"`{name}[`{{]", PAGE), (name, kind)


def test_every_reason_why_a_connection_ends_is_in_the_table() -> None:
    table = PAGE.partition("## Connections")[2].partition("\n## ")[0]
    reasons = [
        name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    ]
    assert reasons == [*CLOSE_REASONS]
