"""ModelInfer and ModelStreamInfer of the front door, over the data plane."""

import asyncio
import functools
import time
from typing import Any

from runtime.errors import ModelNotFound, ServingError, shown_error
from runtime.request_record import record_refusal
from runtime.rpc import Call, CallInfo
from server.data_plane import DataPlane
from server.generation import Generation
from wire.generate import GenerateRequest
from wire.text_request import OutputSelection, decode_text_request
from wire.text_response import encode_text_response, stream_error, stream_response
from wire.text_schema import MODEL_VERSION

ERROR_STATUS_HEADER = "triton_grpc_error"
"""Triton's request header: end the stream with an error's real status instead of in-band."""

INPUT_NAMES = {"prompt": "text_input", "prompt_token_ids": "input_ids", "messages": "messages"}


def check_version(name: str, asked: str) -> None:
    """Raise ModelNotFound unless `asked` is empty or the one version there is."""
    if asked not in ("", MODEL_VERSION):
        raise ModelNotFound(f"model {name!r} has no version {asked!r}", param="model_version")


def read_request(
    message: Any, info: CallInfo, *, streaming_rpc: bool
) -> tuple[GenerateRequest, OutputSelection]:
    """Decode a request; raises ModelNotFound for a version there is not, or InvalidRequest."""
    check_version(message.model_name, message.model_version)
    return decode_text_request(message, info, streaming_rpc=streaming_rpc)


def decode_request(
    message: Any, info: CallInfo, *, streaming_rpc: bool
) -> tuple[GenerateRequest, OutputSelection]:
    """Decode a request and account for one that cannot be; raises what `read_request` does."""
    try:
        return read_request(message, info, streaming_rpc=streaming_rpc)
    except ServingError as error:
        record_refusal(
            request_id=message.id,
            endpoint=info.method,
            outcome=error.reason,
            detail=error.message,
            now=time.monotonic(),
        )
        raise


def in_kserve_terms(error: ServingError) -> ServingError:
    """Return the error with the name that the field has among this contract's input tensors."""
    name = INPUT_NAMES.get(error.param or "")
    if name is None or name in error.message:
        return error
    return type(error)(f"{name}: {error.message}", param=name)


class InferCalls:
    """The handlers of the two inference rpcs."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    async def infer(self, message: Any, info: CallInfo) -> Any:
        """ModelInfer: the whole answer in one response."""
        request, selection = decode_request(message, info, streaming_rpc=False)
        ready = asyncio.Event()
        try:
            generation = self._plane.begin(request)
        except ServingError as error:
            raise in_kserve_terms(error) from None
        generation.on_ready = ready.set
        try:
            await ready.wait()
            return encode_text_response(request, selection, generation.whole())
        except ServingError as error:
            raise in_kserve_terms(error) from None
        finally:
            generation.cancel()

    def stream(self, call: Call) -> "InferStream":
        """ModelStreamInfer: concurrent requests, each answered by one or more responses."""
        return InferStream(call, self._plane)


class InferStream:
    """One client's stream (a CallHandler).

    Answers are sent while the transport keeps up; when it does not, generations wait in `_held`
    and their deltas merge. Errors are in-band, with the request's id, and the stream lives on.
    """

    def __init__(self, call: Call, plane: DataPlane) -> None:
        self._call = call
        self._plane = plane
        self._running: dict[Generation, OutputSelection] = {}
        self._held: dict[Generation, None] = {}
        self._half_closed = False
        self._status_errors = call.info.metadata.get(ERROR_STATUS_HEADER) == "true"

    def on_message(self, message: Any) -> None:
        """Begin one request."""
        try:
            request, selection = decode_request(message, self._call.info, streaming_rpc=True)
            generation = self._plane.begin(request)
        except Exception as error:  # noqa: BLE001 - the other requests of the stream go on
            self._send_error(message.id, error)
            return
        generation.on_ready = functools.partial(self._ready, generation)
        self._running[generation] = selection

    def on_half_close(self) -> None:
        """Finish once everything is answered."""
        self._half_closed = True
        self._finish_if_done()

    def on_writable(self) -> None:
        """Send what was held."""
        while self._held and self._call.writable:
            generation = next(iter(self._held))
            del self._held[generation]
            self._flush(generation)

    def on_cancel(self) -> None:
        """Cancel every running request."""
        running, self._running = self._running, {}
        self._held.clear()
        for generation in running:
            generation.cancel()

    def _ready(self, generation: Generation) -> None:
        if self._call.writable:
            self._flush(generation)
        else:
            self._held[generation] = None

    def _flush(self, generation: Generation) -> None:
        selection = self._running.get(generation)
        if selection is None:
            return
        request = generation.request
        try:
            while (delta := generation.take()) is not None:
                self._call.send(stream_response(request, selection, delta))
                if delta.final:
                    self._end(generation)
                    return
        except Exception as error:  # noqa: BLE001 - whatever it is, the request gets its end
            self._end(generation, finish=False)
            generation.cancel()
            self._send_error(request.request_id, error)
            self._finish_if_done()

    def _end(self, generation: Generation, *, finish: bool = True) -> None:
        del self._running[generation]
        self._held.pop(generation, None)
        if finish:
            self._finish_if_done()

    def _send_error(self, request_id: str, error: Exception) -> None:
        shown = in_kserve_terms(shown_error(error, where=f"request {request_id!r}"))
        if self._status_errors:
            self._call.fail(shown)
            self.on_cancel()
        else:
            self._call.send(stream_error(request_id, shown))

    def _finish_if_done(self) -> None:
        if self._half_closed and not self._running:
            self._call.finish()
