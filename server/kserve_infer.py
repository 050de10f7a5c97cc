"""ModelInfer and ModelStreamInfer of the front door, over the data plane."""

import asyncio
import functools
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from runtime.errors import ServingError, shown_error
from runtime.request_record import record_refusal
from runtime.rpc import Call, CallInfo
from runtime.turns import Steps, call_in_turn, in_turns
from server.data_plane import DataPlane
from server.generation import Generation
from server.shared_memory import Placement, SharedMemory
from wire.generate import GenerateRequest
from wire.kserve_terms import check_version, in_kserve_terms
from wire.text_request import OutputSelection, decode_text_request
from wire.text_response import encode_text_response, stream_error, stream_response
from wire.text_template import PlainResponses
from wire.text_tools import (
    DETOKENIZE,
    WITH_STRINGS,
    decode_detokenize,
    encode_detokenized,
    encode_tokenized,
    operation_of,
)

ERROR_STATUS_HEADER = "triton_grpc_error"
"""Triton's request header: end the stream with an error's real status instead of in-band."""


class Asked(NamedTuple):
    """A decoded request, what its responses hold, and which outputs go into shared memory."""

    request: GenerateRequest
    selection: OutputSelection
    places: Mapping[str, Placement]


def read_request(
    message: Any, info: CallInfo, *, streaming_rpc: bool
) -> Steps[tuple[GenerateRequest, OutputSelection]]:
    """Decode a request; raises ModelNotFound for a version there is not, or InvalidRequest."""
    check_version(message.model_name, message.model_version)
    return (yield from decode_text_request(message, info, streaming_rpc=streaming_rpc))


def decode_request(
    message: Any, info: CallInfo, *, streaming_rpc: bool, memory: SharedMemory | None = None
) -> Steps[Asked]:
    """Decode a request and account for one that cannot be; raises what `read_request` does.

    `memory` None refuses tensors in shared memory.
    """
    try:
        places: Mapping[str, Placement] = {}
        if memory is not None:
            memory.take_inputs(info.principal, message)
            places = memory.take_outputs(info.principal, message)
        request, selection = yield from read_request(message, info, streaming_rpc=streaming_rpc)
        if places:
            # What lies in shared memory is raw.
            selection = msgspec.structs.replace(selection, typed=False)
        return Asked(request, selection, places)
    except ServingError as error:
        record_refusal(
            request_id=message.id,
            endpoint=info.method,
            outcome=error.reason,
            detail=error.message,
            now=time.monotonic(),
        )
        raise


def put_outputs(memory: SharedMemory | None, asked: Asked, response: Any) -> None:
    """Move outputs to where the request wants them; raises InvalidRequest when one has no room."""
    if memory is not None and asked.places:
        memory.put_outputs(asked.request.principal, asked.places, response)


class InferCalls:
    """The handlers of the two inference rpcs."""

    def __init__(self, plane: DataPlane, memory: SharedMemory | None = None) -> None:
        self._plane = plane
        self._memory = memory

    async def infer(self, message: Any, info: CallInfo) -> Any:
        """ModelInfer: the whole answer in one response."""
        if operation_of(message) is not None:
            return await self._without_worker(message, info)
        asked = await in_turns(
            decode_request(message, info, streaming_rpc=False, memory=self._memory)
        )
        ready = asyncio.Event()
        try:
            generation = self._plane.begin(asked.request)
        except ServingError as error:
            raise in_kserve_terms(error) from None
        generation.on_ready = ready.set
        try:
            await ready.wait()
            response = encode_text_response(asked.request, asked.selection, generation.whole())
            put_outputs(self._memory, asked, response)
            return response
        except ServingError as error:
            raise in_kserve_terms(error) from None
        finally:
            generation.cancel()

    async def _without_worker(self, message: Any, info: CallInfo) -> Any:
        try:
            if operation_of(message) == DETOKENIZE:
                ids = await in_turns(decode_detokenize(message))
                text = await self._plane.detokenize(message.model_name, ids)
                return encode_detokenized(message, text)
            request, _ = await in_turns(read_request(message, info, streaming_rpc=False))
            with_strings = operation_of(message) == WITH_STRINGS
            found = await self._plane.tokenize(request, with_strings=with_strings)
            return encode_tokenized(message, found)
        except ServingError as error:
            raise in_kserve_terms(error) from None

    def stream(self, call: Call) -> "InferStream":
        """ModelStreamInfer: concurrent requests, each answered by one or more responses."""
        return InferStream(call, self._plane, self._memory)


class InferStream:
    """One client's stream (a CallHandler).

    Answers are sent while the transport keeps up; when it does not, generations wait in `_held`
    and their deltas merge. Errors are in-band, with the request's id, and the stream lives on.
    """

    def __init__(self, call: Call, plane: DataPlane, memory: SharedMemory | None = None) -> None:
        self._call = call
        self._plane = plane
        self._memory = memory
        self._running: dict[Generation, tuple[Asked, PlainResponses | None]] = {}
        self._held: dict[Generation, None] = {}
        self._half_closed = False
        self._reading = 0
        self._cancelled = False
        self._status_errors = call.info.metadata.get(ERROR_STATUS_HEADER) == "true"

    def on_message(self, message: Any) -> None:
        """Begin one request; a long one when it has been read, a part in each turn."""
        steps = decode_request(message, self._call.info, streaming_rpc=True, memory=self._memory)
        self._reading += 1
        self._read_on(message.id, steps)

    def _read_on(self, request_id: str, steps: Steps[Asked]) -> None:
        if self._cancelled:
            steps.close()
            return
        try:
            next(steps)
        except StopIteration as end:
            self._reading -= 1
            self._begin(request_id, end.value)
        except Exception as error:  # noqa: BLE001 - the other requests of the stream go on
            self._reading -= 1
            self._send_error(request_id, error)
            self._finish_if_done()
        else:
            call_in_turn(self._read_on, request_id, steps)

    def _begin(self, request_id: str, asked: Asked) -> None:
        try:
            generation = self._plane.begin(asked.request)
        except Exception as error:  # noqa: BLE001 - the other requests of the stream go on
            self._send_error(request_id, error)
            self._finish_if_done()
            return
        self.watch(generation, asked)

    def watch(self, generation: Generation, asked: Asked) -> None:
        """Send what a request's generation has to say."""
        generation.on_ready = functools.partial(self._ready, generation)
        plain = PlainResponses(asked.request, asked.selection)
        if not plain.fits or asked.places:
            self._running[generation] = asked, None
            return
        self._running[generation] = asked, plain
        if asked.request.stream:
            generation.on_text = functools.partial(self._text, plain)

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
        self._cancelled = True
        running, self._running = self._running, {}
        self._held.clear()
        for generation in running:
            generation.cancel()

    def _text(self, plain: PlainResponses, text: str) -> bool:
        if not self._call.writable:
            return False
        written = plain.text(text)
        if written is None:
            return False
        self._call.send(written)
        return True

    def _ready(self, generation: Generation) -> None:
        if self._call.writable:
            self._flush(generation)
        else:
            self._held[generation] = None

    def _flush(self, generation: Generation) -> None:
        running = self._running.get(generation)
        if running is None:
            return
        asked, plain = running
        request = generation.request
        try:
            while (delta := generation.take()) is not None:
                if plain is not None and (written := plain.encode(delta)) is not None:
                    self._call.send(written)
                    continue
                response = stream_response(request, asked.selection, delta)
                put_outputs(self._memory, asked, response.infer_response)
                self._call.send(response)
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
        if self._half_closed and not self._running and not self._reading:
            self._call.finish()
