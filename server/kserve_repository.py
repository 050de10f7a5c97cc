"""The model repository's rpcs: which models there are, load, unload.

Triton's clients put the model into `model_name`, KServe's into the field that Triton calls
`repository_name`; the answer is what KServe's expect, and Triton's expect nothing.
"""

from typing import Any

from runtime.errors import InvalidRequest, ModelNotFound
from runtime.rpc import CallInfo
from server.data_plane import DataPlane
from server.fleet import Fleet
from server.model_control import ModelControl
from wire import inference_pb2 as pb
from wire.text_schema import MODEL_VERSION

UNLOAD_DEPENDENTS = "unload_dependents"


class RepositoryCalls:
    """The handlers of RepositoryIndex, RepositoryModelLoad and RepositoryModelUnload."""

    def __init__(self, fleet: Fleet, plane: DataPlane, control: ModelControl) -> None:
        self._fleet = fleet
        self._plane = plane
        self._control = control

    async def index(self, message: Any, info: CallInfo) -> Any:
        """RepositoryIndex: every model with its state; with `ready` those that are READY only."""
        states = [(it.card.name, *self._fleet.state_of(it)) for it in self._fleet.models()]
        states += [(name, "LOADING", "starting") for name in self._fleet.starting()]
        if self._plane.withdrawn:
            states = [(name, "UNAVAILABLE", "the server is stopping") for name, _, _ in states]
        return pb.RepositoryIndexResponse(
            models=[
                pb.RepositoryIndexResponse.ModelIndex(
                    name=name, version=MODEL_VERSION, state=state, reason=reason
                )
                for name, state, reason in states
                if state == "READY" or not message.ready
            ]
        )

    async def load(self, message: Any, info: CallInfo) -> Any:
        """RepositoryModelLoad. Parameters would replace the model's configuration: refused."""
        for name in message.parameters:
            raise _refused(name, "the model's configuration and files are its workers'")
        model = await self._control.load(_name_of(message))
        return pb.RepositoryModelLoadResponse(model_name=model.card.name, isLoaded=model.ready)

    async def unload(self, message: Any, info: CallInfo) -> Any:
        """RepositoryModelUnload. No model depends on another: `unload_dependents` is accepted."""
        for name, value in message.parameters.items():
            if name != UNLOAD_DEPENDENTS:
                raise _refused(name, f"only {UNLOAD_DEPENDENTS} is known")
            if value.WhichOneof("parameter_choice") != "bool_param":
                raise InvalidRequest(f"{name} must be a bool", param=name)
        model, done = await self._control.unload(_name_of(message))
        return pb.RepositoryModelUnloadResponse(model_name=model.card.name, isUnloaded=done)


def _name_of(message: Any) -> str:
    name: str = message.model_name or message.repository_name
    if not name:
        # "" is the default model elsewhere: here a slip would hit everybody.
        raise ModelNotFound("model_name is empty", param="model_name")
    return name


def _refused(name: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"parameter {name!r} is not offered: {why}", param=name)
