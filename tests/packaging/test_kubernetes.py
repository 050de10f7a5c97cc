"""deploy/kubernetes: valid, consistent, and what it starts accepts its arguments."""

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import msgspec
import pytest
import yaml

from cli.frontend import FrontendConfig
from cli.serve import ServeConfig
from runtime.config import parse_config
from runtime.options import ProcessOptions
from tests.packaging import manifests
from tests.packaging.kserve_schema import KINDS as KSERVE_KINDS
from tests.packaging.manifests import FOLDER, Manifest, Workload
from wire.pool import KSERVE
from worker.config import WorkerConfig

PROJECT = tomllib.loads((FOLDER.parents[1] / "pyproject.toml").read_text())["project"]
COMMANDS = {"serve": ServeConfig, "frontend": FrontendConfig, "worker": WorkerConfig}
# The oldest Kubernetes with the sleep action on, and the newest whose schemas are installed.
KUBERNETES = ("1.30", "1.37")
# What a process may take to close once its drain is over.
CLOSE_S = 30
KUSTOMIZATIONS = sorted(path.parent for path in FOLDER.rglob("kustomization.yaml"))
STANDALONE = [FOLDER / "plain" / "fetch-model.yaml"]
WORKLOADS = {
    f"{folder.relative_to(FOLDER)}-{workload.name}": workload
    for folder in KUSTOMIZATIONS
    for workload in manifests.workloads(manifests.built(folder))
}
JOBS = {
    workload.name: workload
    for path in STANDALONE
    for workload in manifests.workloads(manifests.read(path))
}
each_server = pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
each_pod = pytest.mark.parametrize(
    "workload", [*WORKLOADS.values(), *JOBS.values()], ids=[*WORKLOADS, *JOBS]
)
each_folder = pytest.mark.parametrize(
    "folder", KUSTOMIZATIONS, ids=lambda path: str(path.relative_to(FOLDER))
)


def validate(manifest: Manifest) -> None:
    if manifest["kind"] in KSERVE_KINDS:
        msgspec.convert(manifest, KSERVE_KINDS[manifest["kind"]])
        return
    for version in KUBERNETES:
        kubernetes_validate.validate(manifest, version, strict=True)


def settings(workload: Workload) -> Any:
    """The configuration that a container's arguments make, read as the process reads it."""
    container = workload.container
    command, *args = container["args"]
    for variable in container.get("env", ()):
        assert variable["valueFrom"]["fieldRef"]["fieldPath"] == "status.podIP"
        args = [arg.replace(f"$({variable['name']})", "10.0.0.7") for arg in args]
    config, behind = parse_config(
        COMMANDS[command], args, prog=command, description="", environment={}
    )
    assert behind == []
    assert isinstance(config, ProcessOptions)
    return config


def mounts(workload: Workload) -> dict[str, bool]:
    """{path: whether it can be written to}."""
    return {
        mount["mountPath"]: not mount.get("readOnly", False)
        for mount in workload.container["volumeMounts"]
    }


def probes(workload: Workload) -> dict[str, Manifest]:
    return {key: it for key, it in workload.container.items() if key.endswith("Probe")}


@each_folder
def test_what_a_folder_builds_is_valid(folder: Path) -> None:
    for manifest in manifests.built(folder):
        validate(manifest)


@pytest.mark.parametrize("path", STANDALONE, ids=lambda path: path.name)
def test_what_is_applied_by_itself_is_valid(path: Path) -> None:
    for manifest in manifests.read(path):
        validate(manifest)


@each_folder
def test_a_folder_is_evaluated_here_as_by_kustomize(folder: Path) -> None:
    if shutil.which("kustomize"):
        command = ["kustomize", "build"]
    elif shutil.which("kubectl"):
        command = ["kubectl", "kustomize"]
    else:
        pytest.skip("neither kustomize nor kubectl is installed")
    done = subprocess.run(
        [*command, str(folder)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    theirs = list(yaml.safe_load_all(done.stdout))
    assert in_order(theirs) == in_order(manifests.built(folder))


def in_order(built: list[Manifest]) -> list[str]:
    return sorted(json.dumps(manifest, sort_keys=True) for manifest in built)


def test_every_file_is_part_of_something() -> None:
    used = {
        (folder / name).resolve()
        for folder in KUSTOMIZATIONS
        for name in manifests.read(folder / "kustomization.yaml")[0]["resources"]
    }
    files = {path for path in FOLDER.rglob("*.yaml") if path.name != "kustomization.yaml"}
    assert files == {path for path in used if path.is_file()} | set(STANDALONE)


@pytest.mark.parametrize("kind", ["Deployment", "ServingRuntime", "InferenceService"])
def test_the_check_finds_a_misspelt_field(kind: str) -> None:
    everything = [it for folder in KUSTOMIZATIONS for it in manifests.built(folder)]
    manifest = next(it for it in everything if it["kind"] == kind)
    manifest["spec"]["replicass"] = 1
    with pytest.raises((kubernetes_validate.ValidationError, msgspec.ValidationError)):
        validate(manifest)


@each_pod
def test_a_pod_is_valid_and_restricted(workload: Workload) -> None:
    metadata = {"name": "x", "labels": workload.labels, "annotations": workload.annotations}
    validate({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": workload.pod})
    ours = workload.container["securityContext"]
    both = workload.pod.get("securityContext", {}) | ours
    assert ours["readOnlyRootFilesystem"]
    assert not ours["allowPrivilegeEscalation"]
    assert ours["capabilities"] == {"drop": ["ALL"]}
    assert both["runAsNonRoot"]
    assert both["runAsUser"] == 10001
    assert both["seccompProfile"] == {"type": "RuntimeDefault"}
    assert workload.pod["automountServiceAccountToken"] is False
    assert mounts(workload)["/tmp"]
    assert mounts(workload)["/home/penstock"]
    assert {"cpu", "memory"} <= workload.container["resources"]["requests"].keys()
    assert "memory" in workload.container["resources"]["limits"]


@each_pod
def test_an_image_carries_the_projects_version(workload: Workload) -> None:
    name, _, tag = workload.container["image"].rpartition(":")
    assert name in ("penstock-frontdoor", "penstock-worker", "penstock-worker-gpu")
    assert tag == PROJECT["version"]


def test_the_commands_of_the_manual_name_the_same_images() -> None:
    manual = (FOLDER.parents[1] / "docs" / "kubernetes.md").read_text()
    tags = re.findall(r"\bpenstock-(?:frontdoor|worker|worker-gpu):([\w.]+)", manual)
    assert set(tags) == {PROJECT["version"]}


@each_server
def test_a_server_listens_where_its_ports_and_probes_are(workload: Workload) -> None:
    config = settings(workload)
    assert config.host == "0.0.0.0"
    assert config.status_host == "0.0.0.0"
    ports = {port["name"]: port["containerPort"] for port in workload.container["ports"]}
    flags = {
        "grpc": "grpc_port",
        "h2c": "grpc_port",
        "http": "http_port",
        "http1": "http_port",
        "metrics": "metrics_port",
    }
    assert ports == {name: getattr(config, flags[name]) for name in ports}
    assert workload.annotations["prometheus.io/port"] == str(config.metrics_port)
    assert {"readinessProbe", "livenessProbe"} <= probes(workload).keys()
    for probe in probes(workload).values():
        if "grpc" in probe:
            assert probe["grpc"] == {"port": config.grpc_port, "service": KSERVE}
        else:
            port = probe["httpGet"]["port"]
            assert ports.get(port, port) == config.metrics_port
            assert probe["httpGet"]["path"] == "/live"


@each_server
def test_liveness_is_not_readiness(workload: Workload) -> None:
    assert "grpc" in probes(workload)["readinessProbe"]
    assert "httpGet" in probes(workload)["livenessProbe"]


@each_server
def test_a_pod_is_given_the_time_that_its_stop_takes(workload: Workload) -> None:
    config = settings(workload)
    pause_s = workload.container.get("lifecycle", {}).get("preStop", {})
    wait_s = pause_s.get("sleep", {}).get("seconds", 0) + config.withdraw_wait_s
    assert wait_s >= 5
    needed_s = wait_s + config.drain_timeout_s + CLOSE_S
    assert workload.pod["terminationGracePeriodSeconds"] >= needed_s


@each_server
def test_no_service_of_the_namespace_becomes_a_setting(workload: Workload) -> None:
    assert workload.pod["enableServiceLinks"] is False


@each_server
def test_a_server_logs_for_machines(workload: Workload) -> None:
    assert settings(workload).log_format == "json"


@pytest.mark.parametrize("folder", ["base", "overlays/gpu"])
def test_front_doors_and_workers_share_models_and_discovery(folder: str) -> None:
    door, worker = manifests.workloads(manifests.built(FOLDER / "plain" / folder))
    for workload in (door, worker):
        config = settings(workload)
        assert config.discovery == "file"
        assert mounts(workload)[config.discovery_path]
        assert mounts(workload)["/mnt/models"] is False
    claims = [
        {it["name"]: it["persistentVolumeClaim"] for it in workload.pod["volumes"][:2]}
        for workload in (door, worker)
    ]
    assert claims[0] == claims[1]
    assert settings(worker).advertise_host == "10.0.0.7"
    assert Path(settings(worker).model).is_relative_to("/mnt/models")


def test_selectors_find_their_pods_and_their_ports() -> None:
    built = manifests.built(FOLDER / "plain" / "base")
    pods = manifests.workloads(built)
    selecting = [it for it in built if it["kind"] != "PersistentVolumeClaim"]
    assert len(selecting) >= 8
    for manifest in selecting:
        spec = manifest["spec"]
        selector = spec.get("selector") or spec["podSelector"]
        labels = selector.get("matchLabels", selector)
        (pod,) = (it for it in pods if labels.items() <= it.labels.items())
        named = {port["name"] for port in pod.container["ports"]}
        if manifest["kind"] == "Service":
            assert {port["targetPort"] for port in spec["ports"]} <= named


def test_kserve_selects_the_runtime_and_routes_grpc_to_its_first_port() -> None:
    built = manifests.built(FOLDER / "kserve" / "base")
    runtime = manifests.one(built, "ServingRuntime")
    model = manifests.one(built, "InferenceService")["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    formats = {it["name"] for it in runtime["spec"]["supportedModelFormats"]}
    assert model["modelFormat"]["name"] in formats
    (container,) = runtime["spec"]["containers"]
    assert container["name"] == "kserve-container"
    assert container["ports"][0]["name"] == "h2c"
    (served,) = manifests.workloads(built)
    assert settings(served).models == ("/mnt/models",)
    assert settings(served).model_name == (served.name,)
