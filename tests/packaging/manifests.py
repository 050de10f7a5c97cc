"""Reads deploy/kubernetes as a cluster would get it."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
Manifest = dict[str, Any]
# What of an InferenceService's predictor is no part of the pod.
NO_POD_FIELDS = ("model", "minReplicas", "maxReplicas")


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One kind of pod: its spec, with labels and annotations."""

    name: str
    pod: Manifest
    labels: dict[str, str]
    annotations: dict[str, str]

    @property
    def container(self) -> Manifest:
        (only,) = self.pod["containers"]
        manifest: Manifest = only
        return manifest


def read(path: Path) -> list[Manifest]:
    return list(yaml.safe_load_all(path.read_text()))


def built(folder: Path) -> list[Manifest]:
    """What `kustomize build` makes of a folder, for the part of kustomize that is used here."""
    (kustomization,) = read(folder / "kustomization.yaml")
    unknown = kustomization.keys() - {"apiVersion", "kind", "resources", "patches", "images"}
    assert not unknown, f"{folder}: {unknown} is not evaluated here"
    manifests: list[Manifest] = []
    for name in kustomization["resources"]:
        path = folder / name
        manifests += built(path.resolve()) if path.is_dir() else read(path)
    for patch in kustomization.get("patches", ()):
        target = one(manifests, **patch["target"])
        for step in yaml.safe_load(patch["patch"]):
            _apply(step, target)
    for image in kustomization.get("images", ()):
        for container in _containers(manifests):
            name, _, tag = container["image"].rpartition(":")
            if name == image["name"]:
                container["image"] = f"{image['newName']}:{tag}"
    return manifests


def one(manifests: list[Manifest], kind: str, name: str | None = None) -> Manifest:
    """The only one of this kind and name."""
    (found,) = (
        it for it in manifests if it["kind"] == kind and name in (None, it["metadata"]["name"])
    )
    return found


def workloads(manifests: list[Manifest]) -> list[Workload]:
    """Every kind of pod that the manifests lead to."""
    found = [
        Workload(
            name=it["metadata"]["name"],
            pod=it["spec"]["template"]["spec"],
            labels=it["spec"]["template"].get("metadata", {}).get("labels", {}),
            annotations=it["spec"]["template"].get("metadata", {}).get("annotations", {}),
        )
        for it in manifests
        if it["kind"] in ("Deployment", "Job")
    ]
    if any(it["kind"] == "ServingRuntime" for it in manifests):
        found.append(_served_by_kserve(manifests))
    return found


def _served_by_kserve(manifests: list[Manifest]) -> Workload:
    """The pod that KServe makes of a runtime and a service that uses it."""
    runtime, service = one(manifests, "ServingRuntime"), one(manifests, "InferenceService")
    spec = copy.deepcopy(runtime["spec"])
    (container,) = spec["containers"]
    name = service["metadata"]["name"]
    container["args"] = [arg.replace("{{.Name}}", name) for arg in container["args"]]
    # The model is mounted by KServe.
    container["volumeMounts"].append({"name": "model", "mountPath": "/mnt/models"})
    predictor = service["spec"]["predictor"]
    pod = {key: value for key, value in predictor.items() if key not in NO_POD_FIELDS}
    pod |= {key: spec[key] for key in ("containers", "volumes", "tolerations") if key in spec}
    pod["volumes"] = [*pod["volumes"], {"name": "model", "emptyDir": {}}]
    annotations = {
        key.replace("kserve.io", "io"): value for key, value in spec["annotations"].items()
    }
    return Workload(name=name, pod=pod, labels={}, annotations=annotations)


def _apply(step: Manifest, target: Any) -> None:
    """One operation of RFC 6902 on `target`."""
    *way, last = (key.replace("~1", "/") for key in step["path"].strip("/").split("/"))
    for key in way:
        target = target[int(key)] if isinstance(target, list) else target[key]
    assert step["op"] in ("add", "replace"), step
    assert step["op"] == "add" or last in target, step
    target[last] = step["value"]


def _containers(node: Any) -> Iterator[Manifest]:
    if isinstance(node, dict):
        yield from node.get("containers", ())
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from _containers(child)
