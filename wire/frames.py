"""Step frames: everything one engine step brought for one front door, in one response.

Columns instead of messages: a step's cost is paid once, not once per request. Rows are deltas; the
columns are raw little-endian tensors `slot` UINT32 [n], `n_tok` UINT32 [n], `token_ids` UINT32
[sum of n_tok], `finish` UINT8 [n] (0 while the choice goes on, else a FinishReason). `choice`
UINT16 [n] is left out when every index is 0; `extras` BYTES [1] is JSON, keyed by row, for what
few rows have.
"""

import sys
from array import array
from collections.abc import Sequence
from itertools import chain
from struct import pack
from typing import Any

import msgspec

from runtime.errors import InternalError, ServingError, from_status
from wire.inference_pb2 import ModelInferResponse, ModelStreamInferResponse
from wire.logprobs import finite_positions
from wire.tokens import FinishReason, Position, TokenDelta

FRAMES_HEADER = "penstock-frames"
"""Request metadata: "1" asks a worker for step frames; its initial metadata then says "1" too."""

_Output = ModelInferResponse.InferOutputTensor
_FINISH = {reason.value: reason for reason in FinishReason} | {0: None}
_BIG_ENDIAN = sys.byteorder == "big"


class FrameError(msgspec.Struct, frozen=True, omit_defaults=True):
    """A ServingError as JSON."""

    code: int
    reason: str
    message: str
    param: str | None = None


class _Extras(msgspec.Struct, omit_defaults=True):
    logprobs: list[Position] | None = None
    prompt_logprobs: list[Position] | None = None
    cached_tokens: int | None = None
    queued_s: float | None = None
    stop_reason: int | str | None = None
    embedding: bytes | None = None
    error: FrameError | None = None


_encode_extras = msgspec.json.Encoder().encode
_decode_extras = msgspec.json.Decoder(dict[int, _Extras]).decode


class FrameWriter:
    """Collects deltas until `take`. Memory grows with tokens only: deltas of one choice merge.

    A slot number may be reused for another request once its last choice has finished or failed.
    """

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._open: dict[int, int] = {}
        self._slots = array("I")
        self._choices = array("H")
        self._finish = bytearray()
        self._token_ids: list[list[int]] = []
        self._extras: dict[int, _Extras] = {}

    def __len__(self) -> int:
        """Rows waiting for `take`."""
        return len(self._slots)

    def add(self, slot: int, delta: TokenDelta) -> None:
        """Add a delta of the request in `slot` [0, 2**32); `delta` itself is not kept."""
        key = slot << 16 | delta.index
        row = self._open.get(key)
        if row is None:
            row = self._open[key] = self._append(slot, delta.index, delta.token_ids)
        else:
            self._token_ids[row] += delta.token_ids
        if delta.finish_reason is not None:
            self._finish[row] = delta.finish_reason
            del self._open[key]
        if (
            delta.logprobs is not None
            or delta.cached_tokens is not None
            or delta.prompt_logprobs is not None
            or delta.queued_s is not None
            or delta.stop_reason is not None
            or delta.embedding is not None
        ):
            self._merge_extras(row, delta)

    def fail(self, slot: int, error: ServingError) -> None:
        """Add the error that ends the request in `slot`, after what was added before it."""
        row = self._append(slot, 0, ())
        self._finish[row] = FinishReason.ERROR
        self._extras[row] = _Extras(
            error=FrameError(int(error.code), error.reason, error.message, error.param)
        )
        self._open = {key: at for key, at in self._open.items() if key >> 16 != slot}

    def take(self, model_name: str = "") -> ModelStreamInferResponse:
        """Return the rows as one response and empty this writer."""
        rows = len(self._slots)
        token_ids = array("I", chain.from_iterable(self._token_ids))
        columns = [
            ("slot", "UINT32", rows, _little(self._slots)),
            ("n_tok", "UINT32", rows, _little(array("I", map(len, self._token_ids)))),
            ("token_ids", "UINT32", len(token_ids), _little(token_ids)),
            ("finish", "UINT8", rows, bytes(self._finish)),
        ]
        if any(self._choices):
            columns.append(("choice", "UINT16", rows, _little(self._choices)))
        if self._extras:
            extras = _encode_extras(self._extras)
            columns.append(("extras", "BYTES", 1, pack("<I", len(extras)) + extras))
        self._clear()
        return ModelStreamInferResponse(
            infer_response=ModelInferResponse(
                model_name=model_name,
                outputs=[_Output(name=it[0], datatype=it[1], shape=(it[2],)) for it in columns],
                raw_output_contents=[it[3] for it in columns],
            )
        )

    def _append(self, slot: int, choice: int, token_ids: Sequence[int]) -> int:
        row = len(self._slots)
        self._slots.append(slot)
        self._choices.append(choice)
        self._finish.append(0)
        self._token_ids.append(list(token_ids))
        return row

    def _merge_extras(self, row: int, delta: TokenDelta) -> None:
        extras = self._extras.setdefault(row, _Extras())
        if delta.logprobs is not None:
            extras.logprobs = (extras.logprobs or []) + finite_positions(delta.logprobs)
        if delta.prompt_logprobs is not None:
            extras.prompt_logprobs = finite_positions(delta.prompt_logprobs)
        if delta.cached_tokens is not None:
            extras.cached_tokens = delta.cached_tokens
        if delta.queued_s is not None:
            extras.queued_s = delta.queued_s
        if delta.stop_reason is not None:
            extras.stop_reason = delta.stop_reason
        if delta.embedding is not None:
            extras.embedding = delta.embedding


class StepFrame:
    """A step frame as columns: row i has `counts[i]` of `token_ids`, in order, for `slots[i]`.

    Raises InternalError when the frame is malformed, or carries an in-band error instead of rows.
    """

    __slots__ = ("_choices", "_extras", "_finish", "counts", "slots", "token_ids")

    def __init__(self, response: ModelStreamInferResponse) -> None:
        if response.error_message:
            raise InternalError(f"the worker's stream says: {response.error_message}")
        try:
            self._read(response.infer_response)
        except (KeyError, ValueError, msgspec.DecodeError) as error:
            raise InternalError(f"malformed step frame: {error}") from error

    def _read(self, message: ModelInferResponse) -> None:
        raws = message.raw_output_contents
        column = {it.name: raw for it, raw in zip(message.outputs, raws, strict=True)}
        self.slots = _numbers("I", column["slot"])
        self.counts = _numbers("I", column["n_tok"])
        self.token_ids = _numbers("I", column["token_ids"])
        self._finish = column["finish"]
        self._choices = _numbers("H", column["choice"]) if "choice" in column else None
        self._extras = _decode_extras(column["extras"][4:]) if "extras" in column else {}
        columns = [
            self.counts,
            self._finish,
            self.slots if self._choices is None else self._choices,
        ]
        if any(len(it) != len(self.slots) for it in columns):
            raise ValueError(f"columns of other lengths than {len(self.slots)}")
        if not _FINISH.keys() >= set(self._finish):
            raise ValueError("an unknown finish")
        if sum(self.counts) != len(self.token_ids):
            raise ValueError(
                f"{len(self.token_ids)} token ids where n_tok adds up to {sum(self.counts)}"
            )

    def is_plain(self, row: int) -> bool:
        """Whether a row is some tokens of choice 0, and nothing else."""
        return (
            not self._finish[row]
            and (self._choices is None or not self._choices[row])
            and row not in self._extras
        )

    def delta(self, row: int, token_ids: list[int]) -> TokenDelta | ServingError:
        """Return all of a row that has these tokens."""
        choice = 0 if self._choices is None else self._choices[row]
        finish = _FINISH[self._finish[row]]
        delta = TokenDelta(index=choice, token_ids=token_ids, finish_reason=finish)
        extras = self._extras.get(row)
        return delta if extras is None else _with_extras(delta, extras)


def read_frame(response: ModelStreamInferResponse) -> list[tuple[int, TokenDelta | ServingError]]:
    """Return the rows of a step frame as (slot, delta or error), in the order written."""
    frame = StepFrame(response)
    rows, at = [], 0
    for row, (slot, count) in enumerate(zip(frame.slots, frame.counts, strict=True)):
        rows.append((slot, frame.delta(row, frame.token_ids[at : at + count])))
        at += count
    return rows


def _with_extras(delta: TokenDelta, extras: _Extras) -> TokenDelta | ServingError:
    if extras.error is not None:
        error = extras.error
        return from_status(error.code, error.message, reason=error.reason, param=error.param)
    delta.logprobs = extras.logprobs
    delta.prompt_logprobs = extras.prompt_logprobs
    delta.cached_tokens = extras.cached_tokens
    delta.queued_s = extras.queued_s
    delta.stop_reason = extras.stop_reason
    delta.embedding = extras.embedding
    return delta


def _little(column: "array[int]") -> bytes:
    if _BIG_ENDIAN:
        column = array(column.typecode, column)
        column.byteswap()
    return column.tobytes()


def _numbers(typecode: str, raw: bytes) -> list[int]:
    column: array[Any] = array(typecode)
    column.frombytes(raw)
    if _BIG_ENDIAN:
        column.byteswap()
    return column.tolist()
