"""One ModelStreamInfer call of a worker: requests in, step frames or single responses out."""

import asyncio
from collections.abc import Callable
from typing import Any

from runtime.errors import Cancelled, InvalidRequest, ServingError, shown_error
from runtime.rpc import Call
from wire.frames import FRAMES_HEADER, FrameWriter
from wire.inference_pb2 import ModelStreamInferResponse
from wire.text_response import stream_error
from wire.token_contract import encode_token_response, is_cancel, request_slot
from wire.tokens import TokenDelta, TokenRequest
from worker.flights import Flight, Flights

Decode = Callable[[Any], TokenRequest]
"""ModelInferRequest to TokenRequest; raises ServingError."""
DeadlineOf = Callable[[Any, float | None], float | None]
"""(ModelInferRequest, the call's deadline) to the request's, both in `time.monotonic` seconds."""


class _Stream:
    """What both kinds of stream do (a CallHandler).

    Answers are collected and sent once per turn of the event loop, when all requests of an engine
    step have had theirs. While the transport is slow they wait and merge.
    """

    def __init__(
        self, call: Call, flights: Flights, model: str, decode: Decode, deadline_of: DeadlineOf
    ) -> None:
        self.model = model
        self._call = call
        self._flights = flights
        self._decode = decode
        self._deadline_of = deadline_of
        self._half_closed = False
        self._flush_due = False

    def on_message(self, message: Any) -> None:
        raise NotImplementedError

    def on_half_close(self) -> None:
        """Finish once everything is answered."""
        self._half_closed = True
        self.touch()

    def on_writable(self) -> None:
        """Send what was held."""
        self._flush()

    def on_cancel(self) -> None:
        """Cancel every running request of this stream."""
        for flight in self._running():
            flight.cancel()

    def end(self) -> None:
        """End the stream once everything running is answered; for a worker that stops."""
        self.on_half_close()

    def touch(self) -> None:
        """Something waits to be sent."""
        if not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        if self._call.writable:
            self._send()
        if self._half_closed and not self._running() and self._is_empty():
            self._call.finish()

    def _running(self) -> list[Flight]:
        raise NotImplementedError

    def _is_empty(self) -> bool:
        raise NotImplementedError

    def _send(self) -> None:
        raise NotImplementedError


class FrameStream(_Stream):
    """For a front door: requests are slots; one response holds all that a step brought.

    A slot gets exactly one end: its choices' finish reasons, or one error. A cancelled slot is
    answered with Cancelled, unless its end is already on its way; then the slot is free again.
    """

    def __init__(
        self, call: Call, flights: Flights, model: str, decode: Decode, deadline_of: DeadlineOf
    ) -> None:
        super().__init__(call, flights, model, decode, deadline_of)
        self._frame = FrameWriter()
        self._slots: dict[int, Flight] = {}
        call.set_initial_metadata({FRAMES_HEADER: "1"})

    def on_message(self, message: Any) -> None:
        """Begin or cancel the request of one slot; a message without one ends the call."""
        slot = request_slot(message)
        if slot is None:
            raise InvalidRequest("a stream with step frames needs a slot", param="penstock_slot")
        if is_cancel(message):
            flight = self._slots.get(slot)
            if flight is not None:
                flight.cancel()
                self.fail(slot, Cancelled("the request was cancelled"))
            return
        if slot in self._slots:
            raise InvalidRequest(f"slot {slot} is in use", param="penstock_slot")
        try:
            self._slots[slot] = self._flights.begin(
                self._decode(message),
                _SlotAnswer(self, slot),
                self._deadline_of(message, self._call.info.deadline_s),
            )
        except Exception as error:  # noqa: BLE001 - the other requests of the stream go on
            self.fail(slot, shown_error(error, where=f"slot {slot}"))

    def put(self, slot: int, delta: TokenDelta, *, final: bool) -> None:
        """Add one row."""
        self._frame.add(slot, delta)
        if final:
            del self._slots[slot]
        self.touch()

    def fail(self, slot: int, error: ServingError) -> None:
        """Add one error row."""
        self._frame.fail(slot, error)
        self._slots.pop(slot, None)
        self.touch()

    def _running(self) -> list[Flight]:
        return list(self._slots.values())

    def _is_empty(self) -> bool:
        return not self._frame

    def _send(self) -> None:
        if self._frame:
            self._call.send(self._frame.take(self.model))
            self._flights.frames_sent += 1


class _SlotAnswer:
    """Answer of one slot."""

    def __init__(self, stream: FrameStream, slot: int) -> None:
        self._stream = stream
        self._slot = slot

    def put(self, delta: TokenDelta, *, final: bool) -> None:
        self._stream.put(self._slot, delta, final=final)

    def fail(self, error: ServingError) -> None:
        self._stream.fail(self._slot, error)


class ResponseStream(_Stream):
    """For any KServe client: one response per step and choice, errors in-band with the id."""

    def __init__(
        self, call: Call, flights: Flights, model: str, decode: Decode, deadline_of: DeadlineOf
    ) -> None:
        super().__init__(call, flights, model, decode, deadline_of)
        self._open: dict[_ResponseAnswer, Flight] = {}
        self._held: dict[_ResponseAnswer, None] = {}

    def on_message(self, message: Any) -> None:
        """Begin one request."""
        answer = _ResponseAnswer(self, message.id)
        try:
            self._open[answer] = answer.flight = self._flights.begin(
                self._decode(message),
                answer,
                self._deadline_of(message, self._call.info.deadline_s),
            )
        except Exception as error:  # noqa: BLE001 - the other requests of the stream go on
            answer.fail(shown_error(error, where=f"request {message.id!r}"))

    def hold(self, answer: "_ResponseAnswer", *, ended: bool) -> None:
        """Queue an answer that has something to send."""
        self._held[answer] = None
        if ended:
            self._open.pop(answer, None)
        self.touch()

    def _running(self) -> list[Flight]:
        return list(self._open.values())

    def _is_empty(self) -> bool:
        return not self._held

    def _send(self) -> None:
        while self._held and self._call.writable:
            answer = next(iter(self._held))
            del self._held[answer]
            for response in answer.take():
                self._call.send(response)


class _ResponseAnswer:
    """Answer of one request: merges the deltas of each choice until they are sent."""

    def __init__(self, stream: ResponseStream, request_id: str) -> None:
        self.flight: Flight | None = None
        self._stream = stream
        self._request_id = request_id
        self._deltas: dict[int, TokenDelta] = {}
        self._final = False
        self._error: ServingError | None = None

    def put(self, delta: TokenDelta, *, final: bool) -> None:
        held = self._deltas.get(delta.index)
        if held is None:
            self._deltas[delta.index] = delta
        else:
            merge(held, delta)
        self._final = final
        self._stream.hold(self, ended=final)

    def fail(self, error: ServingError) -> None:
        self._error = error
        self._stream.hold(self, ended=True)

    def take(self) -> list[Any]:
        """Return the waiting responses, as ModelStreamInferResponse, and forget them."""
        deltas, self._deltas = list(self._deltas.values()), {}
        last = deltas[-1] if self._final else None
        responses = [self._response(delta, final=delta is last) for delta in deltas]
        if self._error is not None:
            responses.append(stream_error(self._request_id, self._error))
        return responses

    def _response(self, delta: TokenDelta, *, final: bool) -> Any:
        usage = self.flight.usage if final and self.flight else None
        return ModelStreamInferResponse(
            infer_response=encode_token_response(
                model=self._stream.model,
                request_id=self._request_id,
                delta=delta,
                final=final,
                usage=usage,
            )
        )


def merge(held: TokenDelta, delta: TokenDelta) -> None:
    """Append a later delta of the same choice to `held`."""
    held.token_ids = [*held.token_ids, *delta.token_ids]
    if delta.logprobs is not None:
        held.logprobs = [*(held.logprobs or []), *delta.logprobs]
    held.finish_reason = delta.finish_reason
    held.stop_reason = delta.stop_reason
    if delta.prompt_logprobs is not None:
        held.prompt_logprobs = delta.prompt_logprobs
    if delta.cached_tokens is not None:
        held.cached_tokens = delta.cached_tokens
    if delta.queued_s is not None:
        held.queued_s = delta.queued_s
