"""Deltas to KServe's JSON: infer, generate and generate_stream; pure.

Every answer is first the ModelInferResponse that gRPC would send, so that both say the same. JSON
has no NaN: it is null, as is an infinity.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import msgspec

from gateway_http.errors import JSON_TYPE, kserve_error_json
from gateway_http.kserve_json import BINARY_SIZE
from runtime.errors import ServingError
from wire.generate import ChoiceDelta, GenerateDelta, GenerateRequest
from wire.inference_pb2 import ModelInferResponse
from wire.parameters import plain_parameter
from wire.tensors import Tensor, decode_outputs
from wire.text_inputs import OutputSelection
from wire.text_response import encode_text_response

HEADER_LENGTH = "inference-header-content-length"
"""Header of a request or answer with tensors behind its JSON: the length of the JSON in bytes."""

_LISTS = frozenset({"output_ids"})
_Headers: TypeAlias = list[tuple[bytes, bytes]]
_json = msgspec.json.Encoder().encode


class _BodyAnswer:
    """An answer in one body, encoded when it is complete."""

    def __init__(self, request: GenerateRequest, selection: OutputSelection) -> None:
        self.headers: _Headers = [JSON_TYPE]
        self._request = request
        self._selection = selection
        self._whole = WholeDelta()

    @property
    def complete(self) -> bool:
        """Whether the final delta has come."""
        return self._whole.complete

    def add(self, prompt: int, delta: GenerateDelta) -> None:
        """Take the next delta."""
        self._whole.add(delta)

    def error_body(self, error: ServingError) -> bytes:
        """The whole answer instead, when there is none."""
        return kserve_error_json(error)


class InferAnswer(_BodyAnswer):
    """The body of /infer. `is_binary` says which outputs stand behind the JSON."""

    def __init__(
        self,
        request: GenerateRequest,
        selection: OutputSelection,
        is_binary: Callable[[str], bool],
    ) -> None:
        super().__init__(request, selection)
        self._is_binary = is_binary

    def encode(self) -> bytes:
        """The JSON, and behind it the tensors that the client wants so."""
        message = encode_text_response(self._request, self._selection, self._whole.delta())
        behind: list[bytes] = []
        outputs = []
        tensors = decode_outputs(message).values()
        for tensor, raw in zip(tensors, message.raw_output_contents, strict=True):
            shown: dict[str, Any] = {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": tensor.shape,
            }
            if self._is_binary(tensor.name):
                behind.append(raw)
                shown["parameters"] = {BINARY_SIZE: len(raw)}
            else:
                shown["data"] = _values(tensor)
            outputs.append(shown)
        body = _json(_head(message) | {"parameters": _parameters(message), "outputs": outputs})
        if behind:
            self.headers = [
                (b"content-type", b"application/octet-stream"),
                (HEADER_LENGTH.encode(), b"%d" % len(body)),
            ]
        return b"".join([body, *behind])


class GenerateAnswer(_BodyAnswer):
    """The body of /generate."""

    def encode(self) -> bytes:
        """The JSON body."""
        return _generate_json(self._request, self._selection, self._whole.delta())


class GenerateEvents:
    """The events of /generate_stream: one for each response that gRPC would send."""

    def __init__(self, request: GenerateRequest, selection: OutputSelection) -> None:
        self.complete = False
        self._request = request
        self._selection = selection

    def write(self, prompt: int, delta: GenerateDelta) -> bytes:
        """The event of the next delta."""
        self.complete = delta.final
        return b"data: " + _generate_json(self._request, self._selection, delta) + b"\n\n"

    def text(self, text: str) -> bytes | None:
        """The event of a delta that is nothing but text, where text is all that is asked for."""
        if self._selection.outputs != ("text_output",):
            return None
        return self.write(0, GenerateDelta(choices=[ChoiceDelta(index=0, text=text)]))

    def error_event(self, error: ServingError) -> bytes:
        """The event that ends a broken stream."""
        return b"data: " + kserve_error_json(error) + b"\n\n"

    def error_body(self, error: ServingError) -> bytes:
        """The whole answer when nothing else has been sent."""
        return kserve_error_json(error)


class WholeDelta:
    """All deltas of one request as one."""

    def __init__(self) -> None:
        self._parts: list[GenerateDelta] = []

    @property
    def complete(self) -> bool:
        """Whether the final delta has come."""
        return bool(self._parts) and self._parts[-1].final

    def add(self, delta: GenerateDelta) -> None:
        """Take the next delta."""
        self._parts.append(delta)

    def delta(self) -> GenerateDelta:
        """What has come so far."""
        if len(self._parts) == 1:
            return self._parts[0]
        choices: dict[int, ChoiceDelta] = {}
        for part in self._parts:
            for new in part.choices:
                known = choices.get(new.index)
                choices[new.index] = new if known is None else _joined(known, new)
        return GenerateDelta(
            choices=[choices[index] for index in sorted(choices)],
            prompt_tokens=max(part.prompt_tokens for part in self._parts),
            usage=self._parts[-1].usage,
            route=next((part.route for part in self._parts if part.route is not None), None),
        )


def _joined(known: ChoiceDelta, new: ChoiceDelta) -> ChoiceDelta:
    logprobs = [*(known.logprobs or ()), *(new.logprobs or ())]
    has_logprobs = known.logprobs is not None or new.logprobs is not None
    cumulative = new.cumulative_logprob
    return ChoiceDelta(
        index=known.index,
        text=known.text + new.text,
        token_ids=known.token_ids + new.token_ids,
        logprobs=logprobs if has_logprobs else None,
        cumulative_logprob=known.cumulative_logprob if cumulative is None else cumulative,
        finish_reason=new.finish_reason or known.finish_reason,
        stop_reason=known.stop_reason if new.stop_reason is None else new.stop_reason,
    )


def _generate_json(
    request: GenerateRequest, selection: OutputSelection, delta: GenerateDelta
) -> bytes:
    message = encode_text_response(request, selection, delta)
    shown = _head(message) | _parameters(message)
    for tensor in decode_outputs(message).values():
        values = _values(tensor)
        is_single = len(values) == 1 and tensor.name not in _LISTS
        shown[tensor.name] = values[0] if is_single else values
    return _json(shown)


def _head(message: ModelInferResponse) -> dict[str, Any]:
    named = {"model_name": message.model_name, "model_version": message.model_version}
    return named | ({"id": message.id} if message.id else {})


def _parameters(message: ModelInferResponse) -> dict[str, Any]:
    return {name: plain_parameter(message.parameters, name) for name in sorted(message.parameters)}


def _values(tensor: Tensor) -> list[Any]:
    flat: list[Any] = tensor.values.ravel().tolist()
    if tensor.datatype == "BYTES":
        return [element.decode(errors="replace") for element in flat]
    return flat
