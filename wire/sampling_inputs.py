"""Where sampling parameters may stand in a request: tensors, the JSON tensor, request parameters.

Order: single tensor > `sampling_parameters` JSON > request parameter. Aliases: TensorRT-LLM's
ensemble (stop_words, min_length, num_return_sequences), its engine model (runtime_top_k,
runtime_top_p) and its LLM API model (sampling_param_*). String values are coerced, since Triton's
vLLM backend takes {"max_tokens": "16"}.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from runtime.errors import InvalidRequest
from wire.sampling import Sampling, make_sampling
from wire.tensors import FLOATS, INTEGERS, Tensor

JSON_INPUT = "sampling_parameters"
DEFAULT_MAX_TOKENS = 16
"""vLLM's and its Triton backend's default; JSON `"max_tokens": null` lifts it."""


class Kind(NamedTuple):
    """What an input may be: its datatype in the metadata, all it accepts, one element, JSON."""

    datatype: str
    accepted: frozenset[str]
    single: bool = True
    json: bool = False


_BYTES = frozenset({"BYTES"})
INT = Kind("INT32", INTEGERS | _BYTES)
LONG = Kind("UINT64", INTEGERS | _BYTES)
FLOAT = Kind("FP32", FLOATS | INTEGERS | _BYTES)
BOOL = Kind("BOOL", frozenset({"BOOL"}) | INTEGERS | _BYTES)
TEXT = Kind("BYTES", _BYTES)
JSON = Kind("BYTES", _BYTES, json=True)
TEXTS = Kind("BYTES", _BYTES, single=False)
INTS = Kind("INT32", INTEGERS, single=False, json=True)

FIELD_KINDS: dict[str, Kind] = {
    "n": INT,
    "max_tokens": INT,
    "min_tokens": INT,
    "temperature": FLOAT,
    "top_p": FLOAT,
    "top_k": INT,
    "min_p": FLOAT,
    "seed": LONG,
    "presence_penalty": FLOAT,
    "frequency_penalty": FLOAT,
    "repetition_penalty": FLOAT,
    "stop": TEXTS,
    "include_stop_str_in_output": BOOL,
    "stop_token_ids": INTS,
    "ignore_eos": BOOL,
    "bad_words": TEXTS,
    "logit_bias": JSON,
    "allowed_token_ids": INTS,
    "logprobs": INT,
    "prompt_logprobs": INT,
    "logprob_token_ids": INTS,
    "skip_special_tokens": BOOL,
    "spaces_between_special_tokens": BOOL,
    "structured_outputs": JSON,
    "repetition_detection": JSON,
    "lora_name": TEXT,
}
"""Every Sampling field, and the adapter, which Triton's vLLM backend reads from the same JSON."""

ALIASES = {
    "stop_words": "stop",
    "min_length": "min_tokens",
    "num_return_sequences": "n",
    "request_output_len": "max_tokens",
    "random_seed": "seed",
    "end_id": "stop_token_ids",
    "runtime_top_k": "top_k",
    "runtime_top_p": "top_p",
    "sampling_param_max_tokens": "max_tokens",
    "sampling_param_temperature": "temperature",
    "sampling_param_top_k": "top_k",
    "sampling_param_top_p": "top_p",
    "sampling_param_stop": "stop",
    "sampling_param_seed": "seed",
    "sampling_param_frequency_penalty": "frequency_penalty",
    "sampling_param_presence_penalty": "presence_penalty",
}
_FIELDS = ALIASES | {name: name for name in FIELD_KINDS}
SAMPLING_TENSORS = {name: FIELD_KINDS[field] for name, field in _FIELDS.items()}
"""Every tensor name that carries one sampling parameter."""


def read_sampling(
    tensors: Mapping[str, Tensor], parameters: Mapping[str, Any]
) -> tuple[Sampling, str | None]:
    """Return the sampling parameters of a request, and the adapter named beside them.

    Names unknown to us are left alone in `tensors` and `parameters`. Raises InvalidRequest naming
    the field, or the unknown name in the JSON.
    """
    values = _by_field(parameters, _from_plain)
    if JSON_INPUT in tensors:
        values |= _by_field(_json_values(tensors[JSON_INPUT]), _from_plain)
    values |= _by_field(tensors, _from_tensor)
    lora_name = values.pop("lora_name", None)
    if lora_name is not None and not isinstance(lora_name, str):
        raise InvalidRequest("lora_name: expected a string", param="lora_name")
    values.setdefault("max_tokens", DEFAULT_MAX_TOKENS)
    return make_sampling(values), lora_name or None


def sampling_json(sampling: Sampling) -> bytes:
    """The JSON tensor's element from which `read_sampling` makes an equal Sampling."""
    values = msgspec.to_builtins(sampling, str_keys=True)
    values.setdefault("max_tokens", None)
    return msgspec.json.encode(values)


def tensor_value(tensor: Tensor, kind: Kind) -> Any:
    """The Python value of an input of that kind; raises InvalidRequest naming the tensor."""
    name = tensor.name
    if tensor.datatype not in kind.accepted:
        raise InvalidRequest(
            f"tensor {name!r}: expected {kind.datatype}, got {tensor.datatype}", param=name
        )
    if kind.single and tensor.values.size != 1:
        raise InvalidRequest(
            f"tensor {name!r}: expected one element, got {tensor.values.size}", param=name
        )
    elements = tensor.values.ravel().tolist()
    if tensor.datatype == "BYTES":
        elements = [_utf8(name, element) for element in elements]
    if not kind.single:
        # TensorRT-LLM's clients send [""] for "none".
        return [element for element in elements if element != ""]
    return decode_json(name, elements[0].encode()) if kind.json else elements[0]


def decode_json(name: str, text: bytes) -> Any:
    """Decode client JSON; raises InvalidRequest naming where it stood."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InvalidRequest(f"{name}: not valid JSON: {error}", param=name) from None


def _by_field(source: Mapping[str, Any], read: Callable[[str, Any], Any]) -> dict[str, Any]:
    named = [(name, _FIELDS[name]) for name in source if name in _FIELDS]
    # A field's own name comes last, and so wins over an alias.
    named.sort(key=lambda it: it[0] == it[1])
    return {field: read(name, source[name]) for name, field in named}


def _from_tensor(name: str, tensor: Tensor) -> Any:
    return tensor_value(tensor, SAMPLING_TENSORS[name])


def _from_plain(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    kind = SAMPLING_TENSORS[name]
    if kind.json:
        return decode_json(name, value.encode())
    return value if kind.single else [value]


def _json_values(tensor: Tensor) -> dict[str, Any]:
    values = tensor_value(tensor, JSON)
    if not isinstance(values, dict):
        raise InvalidRequest(f"{JSON_INPUT}: expected a JSON object", param=JSON_INPUT)
    unknown = next((name for name in values if name not in _FIELDS), None)
    if unknown is not None:
        raise InvalidRequest(f"{JSON_INPUT}: unknown name {unknown!r}", param=unknown)
    return values


def _utf8(name: str, element: bytes) -> str:
    try:
        return element.decode()
    except UnicodeDecodeError:
        raise InvalidRequest(f"tensor {name!r}: not valid UTF-8", param=name) from None
