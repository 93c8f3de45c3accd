"""The Helm chart makes what the manifests have, and inference-pool.yaml fits both."""

import shutil
import subprocess
from dataclasses import fields
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.deploy.harness import DEPLOY
from tests.deploy.test_kubernetes import NEWEST, OLDEST, PLAIN, POD, SERVER, objects
from thoughtbubbles.server.settings import ServerSettings

Object = dict[str, Any]
CHART = DEPLOY / "chart"
POOL = objects((DEPLOY / "inference-pool.yaml").read_text(encoding="utf-8"))
helm = pytest.mark.skipif(shutil.which("helm") is None, reason="needs Helm")
ADDED = {"app.kubernetes.io/instance", "app.kubernetes.io/version", "app.kubernetes.io/managed-by", "helm.sh/chart"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["helm", *arguments], capture_output=True, text=True, check=False)


def template(*arguments: str, name: str = "thoughtbubbles") -> dict[str, Object]:
    ran = run("template", name, str(CHART), *arguments)
    assert ran.returncode == 0, ran.stderr
    return objects(ran.stdout)


def without_added_labels(value: Any) -> Any:  # noqa: ANN401 (any YAML)
    """The object with the labels that the manifests have alone."""
    if isinstance(value, dict):
        return {key: without_added_labels(each) for key, each in value.items() if key not in ADDED}
    return [without_added_labels(each) for each in value] if isinstance(value, list) else value


@helm
@pytest.mark.parametrize("values", [[], ["--values", str(CHART / "values-gpu.yaml")]])
def test_helm_finds_nothing(values: list[str]) -> None:
    ran = run("lint", "--strict", str(CHART), *values)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@helm
def test_it_makes_what_the_manifest_has() -> None:
    assert without_added_labels(template()) == PLAIN


@helm
def test_its_gpu_values_make_what_kustomize_makes() -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    ran = subprocess.run(["kubectl", "kustomize", DEPLOY], capture_output=True, text=True, check=True)
    made, patched = template("--values", str(CHART / "values-gpu.yaml")), objects(ran.stdout)
    assert without_added_labels(made) == patched


@helm
@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize(
    "flags",
    [
        "",
        "autoscaling.enabled=false,replicas=3,service.type=LoadBalancer,apiKeys.secret=keys,image.pullPolicy=Always",
        "checkpoint.claim=models,checkpoint.folder=mine,settings.cache_bytes=4294967296,podAnnotations.a=b",
        "nodeSelector.disk=ssd,tolerations[0].key=gpu,tolerations[0].operator=Exists,image.pullSecrets[0].name=a",
    ],
)
def test_the_schemas_admit_it(flags: str, version: str) -> None:
    for each in template("--set", flags).values():
        kubernetes_validate.validate(each, version, strict=True)


@helm
def test_settings_become_variables_as_they_are_written() -> None:
    made = template("--set", "settings.cache_bytes=4294967296,settings.cors_origins={https://a,https://b}")
    (server,) = made["Deployment"]["spec"]["template"]["spec"]["containers"]
    variables = {each["name"]: each.get("value") for each in server["env"]}
    assert variables["THOUGHTBUBBLES_CACHE_BYTES"] == "4294967296"
    assert variables["THOUGHTBUBBLES_CORS_ORIGINS"] == "https://a,https://b"


@helm
def test_releases_do_not_select_each_others_pods() -> None:
    one, two = (template(name=name)["Service"]["spec"]["selector"] for name in ("one", "two"))
    assert one != two


@helm
@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("imag.tag=x", "'imag' not allowed"),
        ("settings.api_keys=secret", "invalid propertyName 'api_keys'"),
        ("settings.PORT=1", "invalid propertyName 'PORT'"),
        ("inferencePool.enabled=true", "inferencePool.endpointPicker.name is the service of the endpoint picker"),
    ],
)
def test_wrong_values_are_refused(flags: str, reason: str) -> None:
    ran = run("template", "a", str(CHART), "--set", flags)
    assert ran.returncode != 0
    assert reason in ran.stderr


@helm
def test_a_pool_is_one_value_away_and_turns_on_what_the_picker_reads() -> None:
    made = template("--set", "inferencePool.enabled=true,inferencePool.endpointPicker.name=thoughtbubbles-epp")
    assert without_added_labels(made["InferencePool"]) == POOL["InferencePool"]
    pod = made["Deployment"]["spec"]["template"]
    assert made["InferencePool"]["spec"]["selector"]["matchLabels"] == pod["metadata"]["labels"]
    (server,) = pod["spec"]["containers"]
    assert {"name": "THOUGHTBUBBLES_GATEWAY_METRICS", "value": "true"} in server["env"]


def test_the_pool_selects_the_manifests_pods_and_the_route_the_pool() -> None:
    spec = POOL["InferencePool"]["spec"]
    assert spec["selector"]["matchLabels"] == POD["metadata"]["labels"]
    assert [each["number"] for each in spec["targetPorts"]] == [each["containerPort"] for each in SERVER["ports"]]
    (rule,) = POOL["HTTPRoute"]["spec"]["rules"]
    (backend,) = rule["backendRefs"]
    assert f"{backend['group']}/v1" == POOL["InferencePool"]["apiVersion"]
    assert backend["name"] == POOL["InferencePool"]["metadata"]["name"]
    assert rule["timeouts"]["request"] == f"{ServerSettings().request_timeout_seconds:.0f}s"


def test_every_setting_of_the_values_is_one_of_the_server() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    assert set(values["settings"]) <= {setting.name for setting in fields(ServerSettings)}


def test_the_chart_has_the_version_of_the_server() -> None:
    import thoughtbubbles

    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert (chart["version"], chart["appVersion"]) == (thoughtbubbles.__version__,) * 2
