"""The KServe v2 service of the front door: its rpcs in one table, and those that describe it."""

from importlib.metadata import version
from typing import Any

from runtime.errors import ServingError
from runtime.rpc import CallInfo, Service
from server.data_plane import DataPlane
from server.fleet import Fleet
from server.kserve_infer import InferCalls
from server.kserve_memory import SharedMemoryCalls
from server.kserve_repository import RepositoryCalls
from server.kserve_settings import SettingsCalls
from server.kserve_statistics import StatisticsCalls
from server.log_settings import LogSettings
from server.model_control import ModelControl
from server.models import ServedModel
from server.shared_memory import SharedMemory
from wire import inference_pb2 as pb
from wire.kserve_terms import check_version
from wire.pool import KSERVE
from wire.text_schema import model_config, model_metadata

EXTENSIONS = (
    "logging", "model_configuration", "model_repository", "parameters", "schedule_policy",
    "sequence", "sequence(string_id)", "statistics", "trace",
)  # fmt: skip


class KServeService:
    """The whole service; each family of rpcs has handlers of its own beside those in here."""

    def __init__(
        self,
        fleet: Fleet,
        plane: DataPlane,
        control: ModelControl,
        logs: LogSettings,
        memory: SharedMemory | None = None,
    ) -> None:
        self._fleet = fleet
        self._plane = plane
        self._memory = SharedMemoryCalls(memory)
        calls = InferCalls(plane, memory)
        repository = RepositoryCalls(fleet, plane, control)
        settings = SettingsCalls(fleet, plane.traces, logs)
        self.service = Service(
            name=KSERVE,
            unary={
                "ServerLive": self._server_live,
                "ServerReady": self._server_ready,
                "ServerMetadata": self._server_metadata,
                "ModelReady": self._model_ready,
                "ModelMetadata": self._model_metadata,
                "ModelConfig": self._model_config,
                "ModelStatistics": StatisticsCalls(fleet, plane.statistics).statistics,
                "RepositoryIndex": repository.index,
                "RepositoryModelLoad": repository.load,
                "RepositoryModelUnload": repository.unload,
                "TraceSetting": settings.trace_setting,
                "LogSettings": settings.log_settings,
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

    def _model(self, message: Any) -> ServedModel:
        model = self._fleet.model(message.name)
        check_version(message.name, message.version)
        return model
