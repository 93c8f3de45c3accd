"""deploy/kubernetes.yaml is Kubernetes', and fits the image, the server's limits, routes and metrics."""

import re
import shutil
import subprocess
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any

import kubernetes_validate
import promql_parser
import pytest
import yaml

from tests.deploy.harness import DEPLOY, ROOT
from tests.server.harness import Serve
from thoughtbubbles.server.bridge.worker import STOP_SECONDS
from thoughtbubbles.server.lifecycle import FLUSH_SECONDS
from thoughtbubbles.server.observe.histograms import PREFIX
from thoughtbubbles.server.observe.metrics import GAUGES
from thoughtbubbles.server.settings import ServerSettings
from thoughtbubbles.server.sources import PREFIX as VARIABLE

Object = dict[str, Any]
OLDEST, NEWEST = "1.30", kubernetes_validate.latest_version()
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def objects(text: str) -> dict[str, Object]:
    return {each["kind"]: each for each in yaml.safe_load_all(text)}


PLAIN = objects((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8"))
POD = PLAIN["Deployment"]["spec"]["template"]
(SERVER,) = POD["spec"]["containers"]
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


@pytest.fixture(scope="module")
def gpu() -> dict[str, Object]:
    """What kustomize makes of it."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    return objects(subprocess.run(["kubectl", "kustomize", DEPLOY], capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("kind", PLAIN)
def test_the_schema_admits_it(kind: str, version: str) -> None:
    kubernetes_validate.validate(PLAIN[kind], version, strict=True)


def test_the_schema_refuses_what_kubernetes_does_not_know() -> None:
    wrong = deepcopy(PLAIN["Deployment"])
    wrong["spec"]["template"]["spec"]["enableServiceLink"] = False
    with pytest.raises(kubernetes_validate.ValidationError, match="enableServiceLink"):
        kubernetes_validate.validate(wrong, NEWEST, strict=True)


def test_each_finds_the_others() -> None:
    name, labels = PLAIN["Deployment"]["metadata"]["name"], POD["metadata"]["labels"]
    assert {each["metadata"]["name"] for each in PLAIN.values()} == {name}
    selectors = [PLAIN[kind]["spec"]["selector"]["matchLabels"] for kind in ("Deployment", "PodDisruptionBudget")]
    assert [*selectors, PLAIN["Service"]["spec"]["selector"]] == [labels] * 3
    assert PLAIN["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == name
    assert "replicas" not in PLAIN["Deployment"]["spec"]


def test_it_runs_the_image_as_it_is_built() -> None:
    assert f"--tag {SERVER['image']} " in DOCKERFILE
    (port,) = SERVER["ports"]
    assert f"EXPOSE {port['containerPort']}\n" in DOCKERFILE
    assert port["containerPort"] == ServerSettings().port
    assert {port["name"]} == {SERVER[probe]["httpGet"]["port"] for probe in PROBES}
    assert f"USER {POD['spec']['securityContext']['runAsUser']}\n" in DOCKERFILE


def test_no_variable_is_unknown_to_the_server() -> None:
    """Nor would one that Kubernetes adds be known: THOUGHTBUBBLES_SERVICE_HOST."""
    names = {variable["name"] for variable in SERVER["env"]}
    assert names <= {VARIABLE + setting.name.upper() for setting in fields(ServerSettings)}
    assert POD["spec"]["enableServiceLinks"] is False


def test_the_probes_ask_what_the_server_answers(serve: Serve) -> None:
    with serve() as server:
        paths = {SERVER[probe]["httpGet"]["path"] for probe in PROBES}
        assert {path: server.client.get(path).status_code for path in paths} == dict.fromkeys(paths, 200)
        server.service.worker.draining = True
        assert server.client.get(SERVER["readinessProbe"]["httpGet"]["path"]).status_code == 503
        assert server.client.get(SERVER["livenessProbe"]["httpGet"]["path"]).status_code == 200


def test_a_server_has_time_to_drain() -> None:
    settings = ServerSettings()
    needed = SERVER["lifecycle"]["preStop"]["sleep"]["seconds"] + settings.drain_seconds + STOP_SECONDS + FLUSH_SECONDS
    assert POD["spec"]["terminationGracePeriodSeconds"] >= 2 * needed


def test_the_memory_holds_the_cache_and_as_much_again() -> None:
    assert int(SERVER["resources"]["requests"]["memory"].removesuffix("Gi")) << 30 >= 2 * ServerSettings().cache_bytes


def test_it_scales_on_gauges_that_the_server_has_and_the_adapter_passes_on() -> None:
    metrics = [each["pods"] for each in PLAIN["HorizontalPodAutoscaler"]["spec"]["metrics"]]
    targets = {each["metric"]["name"].removeprefix(PREFIX): int(each["target"]["averageValue"]) for each in metrics}
    assert set(targets) <= set(GAUGES)
    assert next(iter(targets)) == "num_requests_waiting"
    assert targets["num_requests_running"] < ServerSettings().max_batch_size
    (rule,) = yaml.safe_load((DEPLOY / "prometheus-adapter.yaml").read_text(encoding="utf-8"))["rules"]["custom"]
    (pattern,) = re.findall(r'__name__=~"([^"]*)"', rule["seriesQuery"])
    assert all(re.fullmatch(pattern, PREFIX + name) for name in targets)
    promql_parser.parse(rule["seriesQuery"])
    filled = {"Series": PREFIX + "num_requests_waiting", "LabelMatchers": 'namespace="a",pod=~"b|c"', "GroupBy": "pod"}
    promql_parser.parse(re.sub(r"<<\.(\w+)>>", lambda found: filled[found[1]], rule["metricsQuery"]))


def test_prometheus_finds_the_pods_and_gives_them_the_labels_that_the_adapter_asks_for() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus.kubernetes.yml").read_text(encoding="utf-8"))
    (job,) = config["scrape_configs"]
    (plain,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    assert job["job_name"] == plain["job_name"]  # by which alerts know it
    kept = {rule["source_labels"][0]: rule["regex"] for rule in job["relabel_configs"] if rule.get("action") == "keep"}
    ((label, value),) = POD["metadata"]["labels"].items()
    assert kept == {
        f"__meta_kubernetes_pod_label_{re.sub(r'[./]', '_', label)}": value,
        "__meta_kubernetes_pod_container_port_name": SERVER["ports"][0]["name"],
    }
    (rule,) = yaml.safe_load((DEPLOY / "prometheus-adapter.yaml").read_text(encoding="utf-8"))["rules"]["custom"]
    given = {each["target_label"] for each in job["relabel_configs"] if "target_label" in each}
    assert given == set(rule["resources"]["overrides"])


def test_prometheus_admits_its_configuration(tmp_path: Path) -> None:
    """But for the discovery, without which Debian builds it."""
    if shutil.which("promtool") is None:
        pytest.skip("promtool (Debian's package prometheus) is not installed")
    shutil.copy(DEPLOY / "alerts.yml", tmp_path)
    config = (DEPLOY / "prometheus.kubernetes.yml").read_text(encoding="utf-8")
    discovery = "kubernetes_sd_configs: [{role: pod}]"
    assert discovery in config
    (tmp_path / "prometheus.yml").write_text(config.replace(discovery, "static_configs: [{targets: [server:8000]}]"))
    command = ["promtool", "check", "config", tmp_path / "prometheus.yml"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_a_gpu_is_one_patch_away(gpu: dict[str, Object]) -> None:
    for each in gpu.values():
        kubernetes_validate.validate(each, NEWEST, strict=True)
    (server,) = gpu["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert f"--tag {server['image']} --build-arg TORCH=" in DOCKERFILE
    assert server["resources"]["limits"] == {"nvidia.com/gpu": "1", "memory": "8Gi"}
    assert server["resources"]["requests"] == SERVER["resources"]["requests"] | {"memory": "4Gi"}
    rest = {kind: each for kind, each in gpu.items() if kind != "Deployment"}
    assert rest == {kind: each for kind, each in PLAIN.items() if kind != "Deployment"}
