"""OpenAI's JSON, decoded and checked, and its sampling parameters; pure.

Every refusal names the field in `param`.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from gateway_http.schema import (
    HARMLESS,
    SHARED_WITH_SAMPLING,
    ChatCompletionRequest,
    CompletionRequest,
    GenerationBody,
    ResponseFormat,
)
from runtime.errors import InvalidRequest, UnsupportedValue
from wire.sampling import Sampling, make_sampling
from wire.type_errors import type_error

_Json = TypeVar("_Json")
_Body = TypeVar("_Body", bound=GenerationBody)
_DECODERS: dict[type, msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind) for kind in (ChatCompletionRequest, CompletionRequest)
}


def decode_json(data: bytes, kind: type[_Json]) -> _Json:
    """Parse and type-check a JSON body. Raises InvalidRequest naming the field."""
    decoder = _DECODERS.get(kind) or msgspec.json.Decoder(kind)
    try:
        body: _Json = decoder.decode(data)
    except msgspec.ValidationError as error:
        raise type_error(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise InvalidRequest("the body's JSON is nested too deeply") from None
    return body


def checked_body(body: _Body) -> _Body:
    """The body of a generation, if it asks for nothing that is not offered.

    Raises UnsupportedValue, or InvalidRequest.
    """
    for name, harmless in HARMLESS.items():
        value = getattr(body, name, None)
        if value is not None and value not in harmless:
            raise UnsupportedValue(f"{name}: not supported by this server yet", param=name)
    if body.prompt_logprobs is not None and body.stream:
        raise InvalidRequest(
            "prompt_logprobs: not available when stream is true", param="prompt_logprobs"
        )
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest(
            "stream_options: only allowed when stream is true", param="stream_options"
        )
    return body


def sampling_of(
    body: GenerationBody, changed: Mapping[str, Any], aliases: Mapping[str, str]
) -> Sampling:
    """The sampling parameters of a body, some of them changed.

    `aliases` are the client's names of fields that have another name in Sampling.
    """
    values = {name: getattr(body, name) for name in SHARED_WITH_SAMPLING}
    values.update(changed)
    if body.response_format is not None:
        values["structured_outputs"] = _structure(body.response_format, body.structured_outputs)
    try:
        return make_sampling({name: value for name, value in values.items() if value is not None})
    except InvalidRequest as error:
        ours = error.param or ""
        theirs = aliases.get(ours)
        if theirs is None:
            raise
        raise InvalidRequest(error.message.replace(ours, theirs, 1), param=theirs) from None


def _structure(wanted: ResponseFormat, own: dict[str, Any] | None) -> dict[str, Any] | None:
    if wanted.type == "text":
        return own
    if own:
        raise InvalidRequest(
            "structured_outputs: not together with response_format", param="structured_outputs"
        )
    if wanted.type == "json_object":
        return {"json_object": True}
    if wanted.type == "structural_tag":
        if wanted.format is None:
            name = "response_format.format"
            raise InvalidRequest(f"{name}: needed for type structural_tag", param=name)
        return {"structural_tag": {"type": "structural_tag", "format": wanted.format}}
    if wanted.json_schema is None or wanted.json_schema.schema is None:
        name = "response_format.json_schema"
        raise InvalidRequest(f"{name}: a schema is needed for type json_schema", param=name)
    return {"json": wanted.json_schema.schema}
