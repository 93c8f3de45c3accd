"""The queries of deploy/, and a Prometheus to run them."""

import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.server.harness import eventually

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "thoughtbubbles.json").read_text(encoding="utf-8"))
RULES = yaml.safe_load((DEPLOY / "alerts.yml").read_text(encoding="utf-8"))["groups"][0]["rules"]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


@dataclass(frozen=True)
class Query:
    """One PromQL expression and where it is from."""

    where: str
    expression: str
    legend: str = ""
    """What names its lines, with {{label}}."""


ALERTS = [Query(rule["alert"], rule["expr"], rule["annotations"]["summary"]) for rule in RULES]


def grafana(where: str, target: dict[str, Any]) -> Query:
    """A query as Grafana sends it when every server is chosen."""
    expression = target["expr"].replace("$instance", ".*").replace("$__rate_interval", "1m")
    return Query(where, expression, target.get("legendFormat", ""))


DRAWN = [grafana(panel["title"], target) for panel in PANELS for target in panel["targets"]]
MARKED = [grafana(each["name"], each) for each in DASHBOARD["annotations"]["list"]]


@contextmanager
def scraping(url: str, folder: Path) -> Iterator[httpx.Client]:
    """A Prometheus with the configuration and the alerts of deploy/, but the server at `url`, scraped all the time."""
    config = (DEPLOY / "prometheus.yml").read_text(encoding="utf-8")
    config = config.replace("server:8000", url.removeprefix("http://")).replace("15s", "200ms")
    (folder / "prometheus.yml").write_text(config)
    (folder / "alerts.yml").write_bytes((DEPLOY / "alerts.yml").read_bytes())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
        httpx.Client(base_url=f"http://{address}", timeout=10) as client,
    ):
        try:
            eventually(lambda: answers(client))
            yield client
        finally:
            process.terminate()


def answers(prometheus: httpx.Client) -> bool:
    """Whether it has come up."""
    try:
        return prometheus.get("/-/ready").status_code == 200
    except httpx.ConnectError:
        return False


def found(prometheus: httpx.Client, expression: str) -> list[dict[str, Any]]:
    """The series that an expression gives now."""
    told = prometheus.get("/api/v1/query", params={"query": expression}).json()
    assert told["status"] == "success", f"{expression}: {told}"
    return told["data"]["result"]
