"""What our manifests use of KServe's two kinds; a field that is not here is refused.

After pkg/apis/serving/v1alpha1/servingruntime_types.go and v1beta1/predictor.go of kserve/kserve.
Containers and volumes are Kubernetes' own and checked as parts of a pod.
"""

from typing import Annotated, Any, Literal

import msgspec

Protocol = Literal["v1", "v2", "grpc-v1", "grpc-v2"]


class _Checked(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"
):
    """Refuses what it does not know."""


class Metadata(_Checked, frozen=True, kw_only=True):
    name: str
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class SupportedModelFormat(_Checked, frozen=True, kw_only=True):
    name: str
    version: str | None = None
    auto_select: bool | None = None
    priority: Annotated[int, msgspec.Meta(ge=1)] | None = None


class ServingRuntimeSpec(_Checked, frozen=True, kw_only=True):
    containers: list[dict[str, Any]]
    supported_model_formats: list[SupportedModelFormat]
    protocol_versions: list[Protocol]
    multi_model: bool = False
    annotations: dict[str, str] = {}
    volumes: list[dict[str, Any]] = []
    tolerations: list[dict[str, Any]] = []


class ServingRuntime(_Checked, frozen=True, kw_only=True):
    api_version: Literal["serving.kserve.io/v1alpha1"]
    kind: Literal["ServingRuntime"]
    metadata: Metadata
    spec: ServingRuntimeSpec


class ModelFormat(_Checked, frozen=True, kw_only=True):
    name: str
    version: str | None = None


class ModelSpec(_Checked, frozen=True, kw_only=True):
    model_format: ModelFormat
    protocol_version: Protocol
    runtime: str | None = None
    storage_uri: Annotated[str, msgspec.Meta(pattern="^(hf|s3|gs|pvc|oci|https)://")]


class PredictorSpec(_Checked, frozen=True, kw_only=True):
    model: ModelSpec
    min_replicas: int | None = None
    max_replicas: int | None = None
    termination_grace_period_seconds: int | None = None
    enable_service_links: bool | None = None
    automount_service_account_token: bool | None = None


class InferenceServiceSpec(_Checked, frozen=True, kw_only=True):
    predictor: PredictorSpec


class InferenceService(_Checked, frozen=True, kw_only=True):
    api_version: Literal["serving.kserve.io/v1beta1"]
    kind: Literal["InferenceService"]
    metadata: Metadata
    spec: InferenceServiceSpec


KINDS: dict[str, type[ServingRuntime] | type[InferenceService]] = {
    "ServingRuntime": ServingRuntime,
    "InferenceService": InferenceService,
}
