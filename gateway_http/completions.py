"""A completion's body to GenerateRequests, one for each prompt; pure."""

from collections.abc import Sequence
from typing import Any

import msgspec

from gateway_http.openai import sampling_of
from gateway_http.origin import Origin
from gateway_http.schema import CompletionRequest
from runtime.errors import InvalidRequest
from wire.generate import GenerateRequest
from wire.sampling import TokenId
from wire.type_errors import type_error

DEFAULT_COMPLETION_TOKENS = 16


def completion_requests(
    body: CompletionRequest,
    origin: Origin,
    *,
    max_prompts: int,
    ids: Sequence[Sequence[int]] | None = None,
) -> list[GenerateRequest]:
    """One generation per prompt, in order; at most `max_prompts`. `ids` stand in their place."""
    sampling = sampling_of(body, _changed(body), {})
    prompts = read_prompts(body.prompt, "prompt") if ids is None else ids
    if len(prompts) > max_prompts:
        raise InvalidRequest(f"prompt: more than {max_prompts} prompts", param="prompt")
    return [
        GenerateRequest(
            request_id=f"{origin.request_id}-{place}" if len(prompts) > 1 else origin.request_id,
            model=body.model,
            sampling=sampling,
            prompt=prompt if isinstance(prompt, str) else None,
            prompt_token_ids=None if isinstance(prompt, str) else prompt,
            add_special_tokens=body.add_special_tokens is not False,
            truncate_prompt_tokens=body.truncate_prompt_tokens,
            stream=bool(body.stream),
            echo=bool(body.echo) and not generates_nothing(body),
            priority=body.priority or 0,
            cache_salt=body.cache_salt,
            **origin.fields(),
        )
        for place, prompt in enumerate(prompts)
    ]


def generates_nothing(body: CompletionRequest) -> bool:
    """Whether only the prompt is wanted back, with `echo`: the engine makes one token for it."""
    return bool(body.echo) and body.max_tokens == 0


def _changed(body: CompletionRequest) -> dict[str, Any]:
    """What the sampling parameters need besides what the body says of them by their names."""
    limit = DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    changed: dict[str, Any] = {"max_tokens": limit, "logprobs": body.logprobs}
    if body.echo and body.logprobs is not None and body.prompt_logprobs is None:
        changed["prompt_logprobs"] = body.logprobs
    if generates_nothing(body):
        if body.stream:
            raise InvalidRequest("max_tokens: 0 is not for a stream", param="max_tokens")
        changed["max_tokens"] = 1
    if body.best_of is not None:
        changed |= _best_of(body, body.best_of)
    return changed


def _best_of(body: CompletionRequest, best_of: int) -> dict[str, Any]:
    count = body.n or 1
    if best_of < count:
        raise InvalidRequest(f"best_of: {best_of} is less than n, {count}", param="best_of")
    if best_of == count:
        return {}
    if body.stream:
        raise InvalidRequest("best_of: the best are known at the end only", param="best_of")
    # They are ranked by it.
    return {"n": best_of, "logprobs": body.logprobs or 0}


def read_prompts(prompt: str | list[Any], param: str) -> Sequence[str | Sequence[int]]:
    """The texts or token ids in a field `param`. Raises InvalidRequest."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise InvalidRequest(f"{param}: empty list", param=param)
    try:
        if isinstance(prompt[0], str):
            return msgspec.convert(prompt, list[str])
        if isinstance(prompt[0], list):
            lists = msgspec.convert(prompt, list[list[TokenId]])
        else:
            lists = [msgspec.convert(prompt, list[TokenId])]
    except msgspec.ValidationError as error:
        wrong = type_error(str(error))
        at = f"{param}{wrong.param or ''}"
        raise InvalidRequest(f"{param}{wrong.message}", param=at) from None
    if not all(lists):
        raise InvalidRequest(f"{param}: a prompt needs at least one token", param=param)
    return lists
