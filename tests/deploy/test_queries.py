"""Every query of dashboard and alerts, against what a server shows and what a real Prometheus makes of it."""

import math
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import promql_parser
import pytest
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.server.serving import serving
from tests.deploy.harness import ALERTS, DASHBOARD, DRAWN, MARKED, PANELS, Query, found, scraping
from tests.server.harness import eventually

QUERIES = [*ALERTS, *DRAWN, *MARKED]
TARGET = {"job", "instance"}
"""Labels that Prometheus gives every series of a server."""
ITS_OWN = {"up": TARGET, "ALERTS": {"alertname", "alertstate"}}
"""Series of Prometheus itself."""

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus (Debian's package prometheus) is not installed"
)


@pytest.fixture(scope="module")
def server() -> Iterator[httpx.Client]:
    """The shipped checkpoint behind a real server, which takes one request at a time and lets one wait."""
    limits = ("--threads", "1", "--max-batch-size", "1", "--max-waiting-streams", "8", "--max-client-share", "1")
    with serving(*limits) as (address, _), httpx.Client(base_url=address, timeout=60) as client:
        yield client


def ask(server: httpx.Client) -> set[int]:
    """A little load: some are answered, as a whole or as a stream, and one is refused, should all come together."""
    bodies = [{"prompt": "The river", "max_tokens": 24, "stream": number % 2 == 0} for number in range(5)]
    with ThreadPoolExecutor(len(bodies)) as pool:
        return set(pool.map(lambda body: server.post("/v1/completions", json=body).status_code, bodies))


@pytest.fixture(scope="module")
def shown(server: httpx.Client) -> dict[str, set[str]]:
    """Every sample in /metrics and the names of its labels."""
    eventually(lambda: ask(server) == {200, 429})
    families = text_string_to_metric_families(server.get("/metrics").text)
    return ITS_OWN | {sample.name: TARGET | set(sample.labels) for family in families for sample in family.samples}


@pytest.fixture(scope="module")
def prometheus(server: httpx.Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A Prometheus that has looked before the load, while and after."""
    with scraping(str(server.base_url), tmp_path_factory.mktemp("prometheus")) as client:
        rate = 'rate(thoughtbubbles_request_rejected_total{reason="queue_full"}[1m]) > 0'
        eventually(lambda: bool(ask(server) and found(client, rate)), seconds=60)
        ask(server)  # now that it looks, everything happens once more
        yield client


def parts(expression: str, kind: type[Any]) -> list[Any]:
    """The nodes of one kind in an expression. `ValueError` when it is not PromQL."""
    nodes: list[Any] = []
    promql_parser.walk(promql_parser.parse(expression), nodes.append)
    return [node for node in nodes if isinstance(node, kind)]


def named_labels(expression: str) -> set[str]:
    """What an expression groups by and joins on."""
    grouped = [node.modifier.labels for node in parts(expression, promql_parser.AggregateExpr) if node.modifier]
    joins = [node.modifier for node in parts(expression, promql_parser.BinaryExpr) if node.modifier]
    joined = [[*join.matching.labels, *(join.group_labels or ())] for join in joins if join.matching]
    return {label for labels in (*grouped, *joined) for label in labels}


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.where)
def test_it_asks_for_what_is_shown(query: Query, shown: dict[str, set[str]]) -> None:
    selectors = parts(query.expression, promql_parser.VectorSelector)
    assert selectors
    for selector in selectors:
        assert selector.name in shown
        assert {matcher.name for matcher in selector.matchers.matchers} <= shown[selector.name]
    assert named_labels(query.expression) <= set().union(*(shown[selector.name] for selector in selectors))


@needs_prometheus
@pytest.mark.parametrize("query", DRAWN, ids=lambda query: query.where)
def test_its_panel_has_lines(query: Query, prometheus: httpx.Client) -> None:
    def lines() -> list[dict[str, Any]]:
        series = found(prometheus, query.expression)
        return [] if any(math.isnan(float(each["value"][1])) for each in series) else series

    eventually(lambda: lines() != [])
    for each in lines():
        assert set(re.findall(r"{{(\w+)}}", query.legend)) <= set(each["metric"])


@needs_prometheus
@pytest.mark.parametrize("alert", ALERTS, ids=lambda query: query.where)
def test_its_alert_looks_at_something(alert: Query, prometheus: httpx.Client) -> None:
    """At every series, with the very values of labels that it names."""
    for selector in parts(alert.expression, promql_parser.VectorSelector):
        series = found(prometheus, selector.prettify())
        assert series, selector.prettify()
        assert set(re.findall(r"\$labels\.(\w+)", alert.legend)) <= set(series[0]["metric"])


@needs_prometheus
def test_prometheus_evaluates_every_alert(prometheus: httpx.Client) -> None:
    (group,) = prometheus.get("/api/v1/rules").json()["data"]["groups"]
    assert [rule["name"] for rule in group["rules"]] == [alert.where for alert in ALERTS]
    assert {(rule["health"], rule.get("lastError", "")) for rule in group["rules"]} == {("ok", "")}


def test_every_family_of_metrics_is_drawn(shown: dict[str, set[str]]) -> None:
    names = {name for query in DRAWN for name in re.findall(r"thoughtbubbles_\w+", query.expression)}
    drawn = {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}
    ours = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown if name not in ITS_OWN}
    assert drawn == {
        name for name in ours if not name.endswith("_created") and name != "thoughtbubbles_request_accepted_total"
    }


def test_panels_have_their_own_names_places_and_one_datasource() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    assert {panel["datasource"]["uid"] for panel in PANELS} == {"${datasource}"}
    cells = [
        (column, line)
        for place in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for column in range(place["x"], place["x"] + place["w"])
        for line in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(column for column, _ in cells) < 24
