"""The worker's KServe v2 service over an Engine: tokens in, tokens out; knows no transport."""

import asyncio
import time
from importlib.metadata import version
from typing import Any
from weakref import WeakSet

from runtime.errors import InvalidRequest, ModelNotFound, ServingError
from runtime.rpc import Call, CallHandler, CallInfo, Service
from runtime.tracing import Tracing
from wire import inference_pb2 as pb
from wire.cards import ModelCard
from wire.frames import FRAMES_HEADER
from wire.parameters import read_parameters
from wire.pool import KSERVE
from wire.text_schema import MODEL_VERSION, token_config, token_metadata
from wire.token_contract import decode_token_request, encode_token_response
from wire.tokens import TokenDelta, TokenRequest
from worker.engine import Engine, EngineLoad
from worker.flights import Flights
from worker.token_stream import FrameStream, ResponseStream, merge

EXTENSIONS = ("model_configuration", "parameters")


class WorkerService:
    """The handlers. `ready` says whether new requests are welcome."""

    def __init__(self, engine: Engine, card: ModelCard, tracing: Tracing | None = None) -> None:
        self.flights = Flights(engine, card.name, tracing)
        self._engine = engine
        self.card = card
        self._names = {card.name, *card.aliases}
        self._withdrawn = False
        # Calls own their streams; here they are only found to be ended when the worker stops.
        self._streams: WeakSet[FrameStream | ResponseStream] = WeakSet()
        self.service = Service(
            name=KSERVE,
            unary={
                "ServerLive": self._server_live,
                "ServerReady": self._server_ready,
                "ServerMetadata": self._server_metadata,
                "ModelReady": self._model_ready,
                "ModelMetadata": self._model_metadata,
                "ModelConfig": self._model_config,
                "ModelInfer": self._infer,
            },
            streams={"ModelStreamInfer": self._stream},
        )

    @property
    def in_flight(self) -> int:
        """Requests accepted and not ended."""
        return len(self.flights)

    @property
    def draining(self) -> bool:
        """Whether this worker is on its way out, even if it still takes requests."""
        return self._withdrawn or self.flights.draining

    @property
    def ready(self) -> bool:
        """Whether the engine lives, the model is loaded and the worker not on its way out."""
        return self._engine.failure is None and not (self.draining or self.flights.unloaded)

    @property
    def engine_kind(self) -> str:
        """Which engine it is."""
        return self._engine.info.kind

    def load(self) -> EngineLoad:
        """The engine's last known load."""
        return self._engine.load()

    def withdraw(self) -> None:
        """Say that this worker is not ready any more; who has not heard of it is still served."""
        self._withdrawn = True

    def drain(self) -> None:
        """Refuse new requests from now on; running ones go on."""
        self.flights.draining = True

    async def wait_idle(self) -> None:
        """Wait until no request runs."""
        await self.flights.wait_idle()

    def end_streams(self) -> None:
        """End every open stream with OK once its running requests are answered."""
        for stream in tuple(self._streams):
            stream.end()

    async def _server_live(self, message: Any, info: CallInfo) -> Any:
        return pb.ServerLiveResponse(live=True)

    async def _server_ready(self, message: Any, info: CallInfo) -> Any:
        return pb.ServerReadyResponse(ready=self.ready)

    async def _server_metadata(self, message: Any, info: CallInfo) -> Any:
        return pb.ServerMetadataResponse(
            name="penstock-worker", version=version("penstock"), extensions=EXTENSIONS
        )

    async def _model_ready(self, message: Any, info: CallInfo) -> Any:
        known = self._is_known(message.name, message.version)
        return pb.ModelReadyResponse(ready=known and self.ready)

    async def _model_metadata(self, message: Any, info: CallInfo) -> Any:
        self._check_model(message.name, message.version)
        return token_metadata(self.card)

    async def _model_config(self, message: Any, info: CallInfo) -> Any:
        self._check_model(message.name, message.version)
        return token_config(self.card)

    async def _infer(self, message: Any, info: CallInfo) -> Any:
        request = self._decode(message)
        if request.sampling.n > 1:
            raise InvalidRequest("n above 1 needs ModelStreamInfer", param="n")
        answer = _WholeAnswer()
        deadline_s = request_deadline_s(message, info.deadline_s)
        flight = self.flights.begin(request, answer, deadline_s)
        try:
            await answer.done.wait()
        finally:
            flight.cancel()
        if answer.error is not None:
            raise answer.error
        return encode_token_response(
            model=self.card.name,
            request_id=message.id,
            delta=answer.delta,
            final=True,
            usage=flight.usage,
        )

    def _stream(self, call: Call) -> CallHandler:
        kind = FrameStream if call.info.metadata.get(FRAMES_HEADER) == "1" else ResponseStream
        stream = kind(call, self.flights, self.card.name, self._decode, request_deadline_s)
        self._streams.add(stream)
        return stream

    def _decode(self, message: Any) -> TokenRequest:
        self._check_model(message.model_name, message.model_version)
        return decode_token_request(message)

    def _is_known(self, name: str, model_version: str) -> bool:
        return name in self._names and model_version in ("", MODEL_VERSION)

    def _check_model(self, name: str, model_version: str) -> None:
        if not self._is_known(name, model_version):
            shown = f"{name!r} version {model_version!r}" if model_version else repr(name)
            raise ModelNotFound(f"this worker serves no model {shown}", param="model_name")


class _WholeAnswer:
    """Answer of a unary call: everything in one delta."""

    def __init__(self) -> None:
        self.delta = TokenDelta(token_ids=[])
        self.error: ServingError | None = None
        self.done = asyncio.Event()

    def put(self, delta: TokenDelta, *, final: bool) -> None:
        merge(self.delta, delta)
        if final:
            self.done.set()

    def fail(self, error: ServingError) -> None:
        self.error = error
        self.done.set()


def request_deadline_s(message: Any, call_deadline_s: float | None) -> float | None:
    """Return the sooner of the call's deadline and the `timeout` parameter, in monotonic seconds.

    `timeout` is in microseconds, as Triton's schedule policy extension has it; 0 means none.
    Raises InvalidRequest when it is no natural number.
    """
    timeout_s = None
    if "timeout" in message.parameters:
        timeout_s = read_parameters(message.parameters).timeout_s
    if timeout_s is None:
        return call_deadline_s
    own_s = time.monotonic() + timeout_s
    return own_s if call_deadline_s is None else min(own_s, call_deadline_s)
