"""The KServe v2 service of the front door: what is here, is it ready, and the way to inference."""

from importlib.metadata import version
from typing import Any

from runtime.errors import ServingError
from runtime.rpc import CallInfo, Service
from server.data_plane import DataPlane
from server.fleet import Fleet
from server.kserve_infer import InferCalls, check_version
from server.kserve_memory import SharedMemoryCalls
from server.models import ServedModel
from server.shared_memory import SharedMemory
from wire import inference_pb2 as pb
from wire.pool import KSERVE
from wire.text_schema import MODEL_VERSION, model_config, model_metadata

EXTENSIONS = (
    "model_configuration", "model_repository", "parameters", "schedule_policy", "sequence",
    "sequence(string_id)",
)  # fmt: skip


class KServeService:
    """The unary rpcs that describe the server; inference is in InferCalls."""

    def __init__(self, fleet: Fleet, plane: DataPlane, memory: SharedMemory | None = None) -> None:
        self._fleet = fleet
        self._plane = plane
        self._memory = SharedMemoryCalls(memory)
        calls = InferCalls(plane, memory)
        self.service = Service(
            name=KSERVE,
            unary={
                "ServerLive": self._server_live,
                "ServerReady": self._server_ready,
                "ServerMetadata": self._server_metadata,
                "ModelReady": self._model_ready,
                "ModelMetadata": self._model_metadata,
                "ModelConfig": self._model_config,
                "RepositoryIndex": self._repository_index,
                "ModelInfer": calls.infer,
                **self._memory.unary,
            },
            streams={"ModelStreamInfer": calls.stream},
        )

    async def _server_live(self, message: Any, info: CallInfo) -> Any:
        return pb.ServerLiveResponse(live=True)

    async def _server_ready(self, message: Any, info: CallInfo) -> Any:
        return pb.ServerReadyResponse(ready=await self._plane.is_ready())

    async def _server_metadata(self, message: Any, info: CallInfo) -> Any:
        return pb.ServerMetadataResponse(
            name="penstock",
            version=version("penstock"),
            extensions=(*EXTENSIONS, *self._memory.extensions),
        )

    async def _model_ready(self, message: Any, info: CallInfo) -> Any:
        try:
            ready = self._model(message).ready and not self._plane.withdrawn
            return pb.ModelReadyResponse(ready=ready)
        except ServingError:
            return pb.ModelReadyResponse(ready=False)

    async def _model_metadata(self, message: Any, info: CallInfo) -> Any:
        return model_metadata(self._model(message).card)

    async def _model_config(self, message: Any, info: CallInfo) -> Any:
        return pb.ModelConfigResponse(config=model_config(self._model(message).card).config)

    async def _repository_index(self, message: Any, info: CallInfo) -> Any:
        states = [
            (model.card.name, "READY", "")
            if model.ready
            else (model.card.name, "UNAVAILABLE", "no ready worker")
            for model in self._fleet.models()
        ]
        states += [(name, "LOADING", "starting") for name in self._fleet.starting()]
        return pb.RepositoryIndexResponse(
            models=[
                pb.RepositoryIndexResponse.ModelIndex(
                    name=name, version=MODEL_VERSION, state=state, reason=reason
                )
                for name, state, reason in states
                if state == "READY" or not message.ready
            ]
        )

    def _model(self, message: Any) -> ServedModel:
        model = self._fleet.model(message.name)
        check_version(message.name, message.version)
        return model
