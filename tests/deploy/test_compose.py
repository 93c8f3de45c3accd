"""deploy/compose.yaml and what it mounts fit together, and the server's limits."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.harness import DASHBOARD, DEPLOY
from thoughtbubbles.server.settings import ServerSettings


class Loader(yaml.SafeLoader):
    """Knows Compose's tag for a value that takes nothing over from the files before."""


Loader.add_constructor("!reset", lambda loader, node: loader.construct_sequence(node))


def read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.load((DEPLOY / name).read_text(encoding="utf-8"), Loader)
    return content


COMPOSE = read("compose.yaml")
SERVICES = COMPOSE["services"]
PROVISIONING = "grafana/provisioning"


@pytest.mark.parametrize("name", SERVICES)
def test_each_is_pinned_and_reached_from_this_machine_alone(name: str) -> None:
    _, _, tag = SERVICES[name]["image"].partition(":")
    assert tag not in {"", "latest"}
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name]["ports"])


def test_what_is_mounted_is_there() -> None:
    mounts = [mount.split(":")[0] for service in SERVICES.values() for mount in service.get("volumes", ())]
    for source in mounts:
        assert (DEPLOY / source).exists() if source.startswith(".") else source in COMPOSE["volumes"], source


def test_the_server_has_settings_it_knows_and_time_to_drain() -> None:
    server = SERVICES["server"]
    known = {f"THOUGHTBUBBLES_{setting.name.upper()}" for setting in fields(ServerSettings)}
    assert set(server["environment"]) <= known
    assert int(server["stop_grace_period"].removesuffix("s")) >= 2 * ServerSettings().drain_seconds


def test_prometheus_finds_the_server_and_the_alerts() -> None:
    config = read("prometheus.yml")
    (targets,) = config["scrape_configs"][0]["static_configs"]
    (target,) = targets["targets"]
    assert target.partition(":")[0] in SERVICES
    mounted = {Path(mount.split(":")[1]).name for mount in SERVICES["prometheus"]["volumes"]}
    assert {"prometheus.yml", *config["rule_files"]} <= mounted


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    (source,) = read(f"{PROVISIONING}/datasources/prometheus.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert source["jsonData"]["timeInterval"] == read("prometheus.yml")["global"]["scrape_interval"]
    (provider,) = read(f"{PROVISIONING}/dashboards/thoughtbubbles.yaml")["providers"]
    mounts = dict(mount.split(":")[:2] for mount in SERVICES["grafana"]["volumes"])
    assert mounts[f"./{PROVISIONING}"] == "/etc/grafana/provisioning"
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    assert {each["name"] for each in DASHBOARD["templating"]["list"]} == {"datasource", "instance"}


def test_a_gpu_changes_the_server_alone() -> None:
    assert set(read("compose.gpu.yaml")["services"]) == {"server"}
    assert read("compose.gpu.yaml")["services"]["server"]["image"] != SERVICES["server"]["image"]


SEVERAL = read("compose.gpus.yaml")["services"]
SERVERS = {name: service for name, service in SEVERAL.items() if "deploy" in service}


def test_of_several_gpus_each_has_a_server_and_haproxy_alone_has_a_port() -> None:
    devices = [service["deploy"]["resources"]["reservations"]["devices"] for service in SERVERS.values()]
    assert [device["device_ids"] for (device,) in devices] == [["0"], ["1"]]
    assert all(service["ports"] == [] for service in SERVERS.values())
    assert SEVERAL["haproxy"]["ports"] == SERVICES["server"]["ports"]
    assert re.search(r":\d+\.\d+\.\d+$", SEVERAL["haproxy"]["image"])


def test_haproxy_and_prometheus_know_every_server() -> None:
    variables = SEVERAL["haproxy"]["environment"]
    addresses = [f"{name}:8000" for name in SERVERS]
    assert [variables[f"SERVER_{number}"] for number in range(1, len(variables))] == addresses
    one, several = read("prometheus.yml"), read("prometheus.gpus.yml")
    (targets,) = several["scrape_configs"][0]["static_configs"]
    assert targets["targets"] == addresses
    one["scrape_configs"][0]["static_configs"] = several["scrape_configs"][0]["static_configs"]
    assert one == several


@pytest.mark.parametrize("name", ["haproxy", "prometheus"])
def test_what_is_mounted_for_several_gpus_is_there(name: str) -> None:
    assert all((DEPLOY / mount.split(":")[0]).exists() for mount in SEVERAL[name]["volumes"])
