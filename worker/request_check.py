"""Checks every request passes before an engine sees it; both engines use the same ones.

What reaches an engine unchecked can kill or hang it: a token id that is no int stops vLLM's input
thread in silence, one outside the vocabulary ends the process.
"""

import json
from array import array
from typing import Any

import msgspec
import numpy as np

from runtime.errors import InvalidRequest
from wire.adapter_names import check_adapter
from wire.pooling import EMBED
from wire.sampling import Sampling, fit_to_context, make_sampling
from wire.tokens import TokenRequest
from worker.engine import EngineInfo

STRUCTURED_OUTPUT_LIMIT_BYTES = 64 * 1024
STRUCTURED_OUTPUT_TYPES: dict[str, type | tuple[type, ...]] = {
    "json": (str, dict),
    "regex": str,
    "choice": list,
    "grammar": str,
    "json_object": bool,
    "structural_tag": (str, dict),
}
STRUCTURED_OUTPUT_OPTIONS: dict[str, type | tuple[type, ...]] = {
    "disable_any_whitespace": bool,
    "disable_additional_properties": bool,
    "whitespace_pattern": str,
}


def check_request(request: TokenRequest, info: EngineInfo) -> TokenRequest:
    """Return the request with every field of its exact type and `max_tokens` set.

    `max_tokens` is cut to what the context leaves. Raises InvalidRequest whose `param` is the
    field, ContextLengthExceeded when the prompt leaves no room for one token.
    """
    token_ids = _token_ids(request.token_ids, "input_ids", info.vocab_size)
    if not token_ids:
        raise InvalidRequest("the prompt holds no token", param="input_ids")
    if (request.pooling is not None) != (info.task == EMBED):
        does = "makes embeddings, not text" if info.task == EMBED else "makes text, not embeddings"
        raise InvalidRequest(f"this model {does}", param="model")
    # An embedding needs no room for an answer.
    room = 1 if request.pooling is not None else 0
    sampling = fit_to_context(
        _sampling(request.sampling, info),
        prompt_tokens=len(token_ids),
        context_length=info.context_length + room,
        param="input_ids",
    )
    return msgspec.structs.replace(
        request, token_ids=token_ids, sampling=sampling, **_identity(request, info)
    )


def _token_ids(values: Any, param: str, vocab_size: int) -> list[int]:
    try:
        ids = values if isinstance(values, array) else array("q", values)
    except (TypeError, ValueError, OverflowError):
        raise InvalidRequest(f"{param} must be a list of token ids", param=param) from None
    numbers = np.asarray(ids)
    if ids and (numbers.min() < 0 or numbers.max() >= vocab_size):
        wrong = next(i for i in ids if not 0 <= i < vocab_size)
        raise InvalidRequest(
            f"{param}: token id {wrong} is outside the vocabulary of {vocab_size}", param=param
        )
    return ids.tolist()


def _sampling(sampling: Sampling, info: EngineInfo) -> Sampling:
    try:
        values = msgspec.to_builtins(sampling)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequest(f"sampling parameters: {error}", param="sampling_parameters") from None
    checked = make_sampling(values)
    for name in ("logprobs", "prompt_logprobs"):
        if (getattr(checked, name) or 0) > info.max_logprobs:
            raise InvalidRequest(f"{name} may be at most {info.max_logprobs}", param=name)
    for name in ("stop_token_ids", "allowed_token_ids", "logit_bias", "logprob_token_ids"):
        _token_ids(list(getattr(checked, name) or ()), name, info.vocab_size)
    if checked.structured_outputs is not None:
        check_structured_outputs(checked.structured_outputs)
    return checked


def _identity(request: TokenRequest, info: EngineInfo) -> dict[str, Any]:
    rank = request.data_parallel_rank
    if rank is not None and not (type(rank) is int and 0 <= rank < info.data_parallel_size):
        raise InvalidRequest(
            f"data_parallel_rank must be in [0, {info.data_parallel_size})",
            param="data_parallel_rank",
        )
    if type(request.priority) is not int or not -(2**31) <= request.priority < 2**31:
        raise InvalidRequest("priority must be a 32-bit integer", param="priority")
    check_adapter(request.lora_name, info.adapters)
    for name in ("request_id", "cache_salt", "session_id"):
        value = getattr(request, name)
        if not (isinstance(value, str) or (value is None and name != "request_id")):
            raise InvalidRequest(f"{name} must be a string", param=name)
    # An empty salt is refused by vLLM and means the same as none.
    return {"cache_salt": request.cache_salt or None}


def check_structured_outputs(spec: dict[str, Any]) -> None:
    """Check that `spec` holds exactly one constraint of the right type and a bounded size.

    Names: vllm.sampling_params.StructuredOutputsParams of vLLM 0.32. Raises InvalidRequest.
    """
    known = STRUCTURED_OUTPUT_TYPES | STRUCTURED_OUTPUT_OPTIONS
    for name, value in spec.items():
        if name not in known:
            raise _bad_structure(f"unknown field {name!r}")
        if not isinstance(value, known[name]):
            raise _bad_structure(f"{name} has the wrong type")
    if sum(name in STRUCTURED_OUTPUT_TYPES for name in spec) != 1:
        raise _bad_structure(f"exactly one of {', '.join(STRUCTURED_OUTPUT_TYPES)} must be set")
    if spec.get("json_object") is False:
        raise _bad_structure("json_object must be true")
    choices = spec.get("choice", ["x"])
    if not choices or not all(isinstance(choice, str) and choice for choice in choices):
        raise _bad_structure("choice must be a list of at least one non-empty string")
    _check_size(spec)


def _check_size(spec: dict[str, Any]) -> None:
    try:
        size = len(json.dumps(spec))
    except (TypeError, ValueError, RecursionError):
        raise _bad_structure("not a JSON object") from None
    if size > STRUCTURED_OUTPUT_LIMIT_BYTES:
        raise _bad_structure(f"larger than {STRUCTURED_OUTPUT_LIMIT_BYTES} bytes")


def _bad_structure(what: str) -> InvalidRequest:
    return InvalidRequest(f"structured_outputs: {what}", param="structured_outputs")
