"""The manifests' processes answer the manifests' probes, as the kubelet asks them."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.integration.test_cli import Running, get, penstock
from tests.packaging import manifests
from tests.packaging.manifests import FOLDER, Manifest, Workload
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(180)
# Given last, these win over what the manifests say.
HERE = ("--grpc-port=0", "--metrics-port=0", "--withdraw-wait-s=0")
FRONT = "--http-port=0"
SIM = ("--engine=sim", "--sim-speedup=0")


def started(
    workload: Workload, tmp_path: Path, model: Path, *flags: str
) -> AbstractContextManager[Running]:
    """The container's process with a folder as its model and ports of its own."""
    args = [
        str(model) if arg.startswith("/mnt/models") else arg.replace("$(POD_IP)", "127.0.0.1")
        for arg in workload.container["args"]
    ]
    return penstock(tmp_path, *args, *HERE, *flags)


def passes(probe: Manifest, running: Running) -> bool:
    if "httpGet" in probe:
        status, _ = get(running.ready["metrics"] + probe["httpGet"]["path"])
        return 200 <= status < 400
    with grpc.insecure_channel(running.ready["grpc"].replace("0.0.0.0", "127.0.0.1")) as channel:
        asked = health_pb2.HealthCheckRequest(service=probe["grpc"]["service"])
        answer = health_pb2_grpc.HealthStub(channel).Check(asked, timeout=10)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def probe(workload: Workload, name: str) -> Any:
    return workload.container[f"{name}Probe"]


def test_a_front_door_is_live_without_a_worker_and_ready_with_one(tmp_path, model_folder):
    door, worker = manifests.workloads(manifests.built(FOLDER / "plain" / "base"))
    discovery = f"--discovery-path={tmp_path / 'discovery'}"
    with started(door, tmp_path, model_folder, FRONT, discovery) as front:
        assert passes(probe(door, "liveness"), front)
        assert not passes(probe(door, "readiness"), front)
        with started(worker, tmp_path, model_folder, discovery, *SIM) as engine:
            for name in ("startup", "readiness", "liveness"):
                assert passes(probe(worker, name), engine)
            wait_until(lambda: passes(probe(door, "readiness"), front), limit_s=20)


def test_a_pod_of_kserve_passes_its_probes(tmp_path, model_folder):
    (pod,) = manifests.workloads(manifests.built(FOLDER / "kserve" / "base"))
    with started(pod, tmp_path, model_folder, FRONT, *SIM) as running:
        assert running.ready["models"] == ["llm"]
        for name in ("startup", "readiness", "liveness"):
            assert passes(probe(pod, name), running)
