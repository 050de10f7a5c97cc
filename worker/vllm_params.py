"""Between our token types and vLLM's: sampling parameters in; deltas and errors out."""

import json
from typing import Any

import msgspec

from runtime.errors import (
    ContextLengthExceeded,
    EngineFailed,
    InvalidRequest,
    Overloaded,
    ServingError,
    WorkerLost,
)
from wire.logprobs import finite
from wire.sampling import Sampling
from wire.tokens import FinishReason, Position, TokenDelta, TokenLogprob, TokenRequest

FINISH_REASONS = {reason.label: reason for reason in FinishReason}
_COPIED = (
    "n",
    "max_tokens",
    "min_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "ignore_eos",
    "logit_bias",
    "logprobs",
    "prompt_logprobs",
)
_LISTS = ("stop_token_ids", "bad_words", "allowed_token_ids", "logprob_token_ids")


def sampling_params(sampling: Sampling) -> Any:
    """Return vLLM's SamplingParams; raises InvalidRequest for what vLLM refuses.

    Stop strings stay with the front door: vLLM matches them only when it detokenizes.
    """
    from vllm.sampling_params import (
        RepetitionDetectionParams,
        RequestOutputKind,
        SamplingParams,
    )

    values = {name: getattr(sampling, name) for name in _COPIED}
    for name in _LISTS:
        value = getattr(sampling, name)
        values[name] = None if value is None else list(value)
    if sampling.structured_outputs is not None:
        values["structured_outputs"] = _structured_outputs(sampling.structured_outputs)
    try:
        if sampling.repetition_detection is not None:
            values["repetition_detection"] = RepetitionDetectionParams(
                **msgspec.structs.asdict(sampling.repetition_detection)
            )
        return SamplingParams(
            **values,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            skip_clone=True,
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequest(f"sampling parameters: {error}") from error
    except Exception as error:
        raise serving_error(error) from error


def _structured_outputs(spec: dict[str, Any]) -> Any:
    from vllm.sampling_params import StructuredOutputsParams

    values = dict(spec)
    if isinstance(values.get("structural_tag"), dict):
        values["structural_tag"] = json.dumps(values["structural_tag"])
    try:
        return StructuredOutputsParams(**values)
    except Exception as error:
        raise InvalidRequest(f"structured_outputs: {error}", param="structured_outputs") from error


def deltas(output: Any, *, first: bool) -> list[TokenDelta]:
    """Return one vLLM RequestOutput as deltas, one per choice that advanced."""
    found = [_delta(choice) for choice in output.outputs]
    if first and found:
        found[0].cached_tokens = output.num_cached_tokens or 0
        found[0].queued_s = _queued_s(output.metrics)
        if output.prompt_logprobs:
            found[0].prompt_logprobs = [_position(entry or {}) for entry in output.prompt_logprobs]
    return found


def _queued_s(stats: Any) -> float | None:
    # vllm.v1.metrics.stats.RequestStateStats; None when vLLM keeps none. A time of 0 is not set.
    if stats is None or not stats.scheduled_ts:
        return None
    return max(0.0, float(stats.scheduled_ts - stats.queued_ts))


def _delta(choice: Any) -> TokenDelta:
    delta = TokenDelta(index=choice.index, token_ids=list(choice.token_ids))
    if choice.logprobs is not None:
        delta.logprobs = [_position(entry) for entry in choice.logprobs]
    if choice.finish_reason is not None:
        delta.finish_reason = FINISH_REASONS.get(choice.finish_reason, FinishReason.ERROR)
        delta.stop_reason = choice.stop_reason
    return delta


def _position(entries: Any) -> Position:
    # The dict's first key is the sampled token.
    return [
        TokenLogprob(token_id, finite(entry.logprob), entry.rank)
        for token_id, entry in entries.items()
    ]


def unexpected_end(found: list[TokenDelta], sampling: Sampling) -> ServingError | None:
    """Return the error that stands behind a finish reason which is none.

    `error` is a request that the engine could not go on with: with structured outputs, that is a
    grammar it cannot compile or follow, which some checks before the engine miss.
    An `abort` that nobody asked for means that the engine is going away.
    """
    for delta in found:
        if delta.finish_reason is FinishReason.ERROR:
            if sampling.structured_outputs is not None:
                return InvalidRequest(
                    "structured_outputs: the engine cannot follow this constraint",
                    param="structured_outputs",
                )
            return EngineFailed("the engine failed on this request")
        if delta.finish_reason is FinishReason.ABORT:
            return WorkerLost("the engine stopped during the request")
    return None


def serving_error(error: Exception, request: TokenRequest | None = None) -> ServingError:
    """Return our error for an exception of vLLM's; its text is safe for a client's own mistakes."""
    from vllm.exceptions import GracefulHTTPError, VLLMClientError
    from vllm.v1.engine.exceptions import EngineDeadError

    if isinstance(error, ServingError):
        return error
    if isinstance(error, EngineDeadError):
        return WorkerLost("the engine died")
    if isinstance(error, GracefulHTTPError):
        return Overloaded("the engine's queue is full")
    if isinstance(error, VLLMClientError):
        text = str(error)
        if "longer than the maximum model length" in text:
            return ContextLengthExceeded(text, param="input_ids")
        param = getattr(error, "parameter", None)
        if param is None and request is not None and request.sampling.structured_outputs:
            param = "structured_outputs"
        return InvalidRequest(text, param=param)
    return EngineFailed("the engine failed on this request")
