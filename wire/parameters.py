"""Parameters: plain values in and out of InferParameter, the reserved ones checked.

Reserved names and their types: Triton's extension_parameters.md, extension_sequence.md and
extension_schedule_policy.md. `lora_name` and `cache_salt` are vLLM's words.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from runtime.errors import InvalidRequest
from wire.generate import Usage
from wire.inference_pb2 import InferParameter
from wire.routes import Route

Value = bool | int | float | str

PINNED_WORKER = "penstock_worker"
"""Request parameter: only this worker may take it. Response parameter: the worker that did."""
RANK = "data_parallel_rank"
EXPLAIN = "penstock_explain_route"
"""Request parameter: the first response shall say where the request went."""
_OVERLAP = "penstock_overlap_blocks"
_PROMPT_BLOCKS = "penstock_prompt_blocks"
_COST = "penstock_route_cost"
_RESERVED = {
    "sequence_id": ("int64_param", "string_param"),
    "sequence_start": ("bool_param",),
    "sequence_end": ("bool_param",),
    "priority": ("int64_param", "uint64_param"),
    "timeout": ("int64_param",),
    "binary_data_output": ("bool_param",),
    "lora_name": ("string_param",),
    "cache_salt": ("string_param",),
    "triton_enable_empty_final_response": ("bool_param",),
    PINNED_WORKER: ("string_param",),
    RANK: ("int64_param", "uint64_param"),
    EXPLAIN: ("bool_param",),
}
MAX_INT64 = 2**63 - 1
FINAL = "triton_final_response"
"""Response parameter: whether the request is over. Clients take a response without it as final."""


class RequestParameters(NamedTuple):
    """What both contracts take from the parameters; `timeout_s` is None for 0 = no limit."""

    values: dict[str, Value]
    lora_name: str | None
    priority: int
    cache_salt: str | None
    session_id: str | None
    session_ends: bool
    timeout_s: float | None


def read_parameters(parameters: Mapping[str, InferParameter]) -> RequestParameters:
    """Read a request's parameters; those that say nothing to us stay in `values`.

    Raises InvalidRequest for a reserved name with a value of the wrong type or range, and for an
    unknown name that starts with `triton_`.
    """
    values = {name: _value(name, parameter) for name, parameter in parameters.items()}
    priority = values.get("priority", 0)
    if not 0 <= int(priority) <= MAX_INT64:
        raise InvalidRequest(f"priority: {priority} is out of range", param="priority")
    timeout_us = int(values.get("timeout", 0))
    if timeout_us < 0:
        raise InvalidRequest("timeout: must not be negative (microseconds)", param="timeout")
    return RequestParameters(
        values=values,
        lora_name=_text(values, "lora_name"),
        priority=int(priority),
        cache_salt=_text(values, "cache_salt"),
        session_id=_text(values, "sequence_id"),
        session_ends=bool(values.get("sequence_end")),
        timeout_s=timeout_us / 1e6 or None,
    )


def write_parameters(
    target: Mapping[str, InferParameter],
    *,
    lora_name: str | None = None,
    priority: int = 0,
    cache_salt: str | None = None,
    session_id: str | None = None,
    session_ends: bool = False,
    timeout_s: float | None = None,
) -> None:
    """Set those that differ from their defaults.

    Raises InvalidRequest for a priority that is negative or over int64.
    """
    if not 0 <= priority <= MAX_INT64:
        raise InvalidRequest(f"priority: {priority} is out of range", param="priority")
    for name, value in (
        ("lora_name", lora_name),
        ("priority", priority),
        ("cache_salt", cache_salt),
        ("sequence_id", session_id),
        ("sequence_end", session_ends),
        ("timeout", max(1, round(timeout_s * 1e6)) if timeout_s is not None else None),
    ):
        if value:
            set_parameter(target, name, value)


def set_parameter(target: Mapping[str, InferParameter], name: str, value: Value) -> None:
    """Set one parameter in the field of its Python type."""
    parameter = target[name]
    if isinstance(value, bool):
        parameter.bool_param = value
    elif isinstance(value, int):
        parameter.int64_param = value
    elif isinstance(value, float):
        parameter.double_param = value
    else:
        parameter.string_param = value


def plain_parameter(parameters: Mapping[str, InferParameter], name: str) -> Any:
    """One parameter's value, or None when it is not there."""
    return _plain(parameters[name]) if name in parameters else None


def int_parameter(parameters: Mapping[str, InferParameter], name: str) -> int | None:
    """One int64 parameter's value, or None when it is not there."""
    return parameters[name].int64_param if name in parameters else None


def write_usage(target: Mapping[str, InferParameter], usage: Usage) -> None:
    """Set a final response's token counts (int64)."""
    set_parameter(target, "prompt_tokens", usage.prompt_tokens)
    set_parameter(target, "completion_tokens", usage.completion_tokens)
    set_parameter(target, "cached_tokens", usage.cached_tokens)
    if usage.reasoning_tokens:
        set_parameter(target, "reasoning_tokens", usage.reasoning_tokens)


def read_usage(parameters: Mapping[str, InferParameter]) -> Usage | None:
    """A final response's token counts, or None when it carries none."""
    if "completion_tokens" not in parameters or "prompt_tokens" not in parameters:
        return None
    return Usage(
        prompt_tokens=parameters["prompt_tokens"].int64_param,
        completion_tokens=parameters["completion_tokens"].int64_param,
        cached_tokens=int_parameter(parameters, "cached_tokens") or 0,
        reasoning_tokens=int_parameter(parameters, "reasoning_tokens") or 0,
    )


def write_route(target: Mapping[str, InferParameter], route: Route) -> None:
    """Say in a response where its request went."""
    set_parameter(target, PINNED_WORKER, route.worker_id)
    set_parameter(target, RANK, route.data_parallel_rank)
    set_parameter(target, _OVERLAP, route.overlap_blocks)
    set_parameter(target, _PROMPT_BLOCKS, route.prompt_blocks)
    set_parameter(target, _COST, float(route.cost))


def read_route(parameters: Mapping[str, InferParameter]) -> Route | None:
    """Where a response's request went, or None when it does not say."""
    if PINNED_WORKER not in parameters:
        return None
    return Route(
        worker_id=parameters[PINNED_WORKER].string_param,
        data_parallel_rank=int_parameter(parameters, RANK) or 0,
        overlap_blocks=int_parameter(parameters, _OVERLAP) or 0,
        prompt_blocks=int_parameter(parameters, _PROMPT_BLOCKS) or 0,
        cost=parameters[_COST].double_param if _COST in parameters else 0.0,
    )


def natural_parameter(parameters: Mapping[str, InferParameter], name: str) -> int | None:
    """One integer parameter's value, None when it is not there; raises InvalidRequest below 0."""
    value = plain_parameter(parameters, name)
    if value is not None and not (type(value) is int and value >= 0):
        raise InvalidRequest(f"{name}: expected a whole number, not negative", param=name)
    return value


def _value(name: str, parameter: InferParameter) -> Any:
    field = parameter.WhichOneof("parameter_choice")
    allowed = _RESERVED.get(name)
    if allowed is None:
        if name.startswith("triton_"):
            raise InvalidRequest(f"{name}: unknown parameter with a reserved prefix", param=name)
    elif field not in allowed:
        wanted = " or ".join(it.removesuffix("_param") for it in allowed)
        got = field.removesuffix("_param") if field else "nothing"
        raise InvalidRequest(f"{name}: expected {wanted}, got {got}", param=name)
    return _plain(parameter)


def _plain(parameter: InferParameter) -> Any:
    # None when the peer's proto knows a type that ours does not.
    field = parameter.WhichOneof("parameter_choice")
    return getattr(parameter, field) if field else None


def _text(values: Mapping[str, Value], name: str) -> str | None:
    value = values.get(name)
    return str(value) if value else None
