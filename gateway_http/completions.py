"""A completion's body to GenerateRequests, one for each prompt; pure."""

from collections.abc import Sequence
from typing import Any

import msgspec

from gateway_http.openai import sampling_of, type_error
from gateway_http.origin import Origin
from gateway_http.schema import CompletionRequest
from runtime.errors import InvalidRequest, UnsupportedValue
from wire.generate import GenerateRequest
from wire.sampling import TokenId

DEFAULT_COMPLETION_TOKENS = 16


def completion_requests(
    body: CompletionRequest, origin: Origin, *, max_prompts: int
) -> list[GenerateRequest]:
    """One generation per prompt, in order; at most `max_prompts`."""
    if body.echo and body.logprobs is not None:
        raise UnsupportedValue("logprobs: not supported together with echo yet", param="logprobs")
    limit = DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    sampling = sampling_of(body, {"max_tokens": limit, "logprobs": body.logprobs}, {})
    prompts = _prompts(body.prompt)
    if len(prompts) > max_prompts:
        raise InvalidRequest(f"prompt: more than {max_prompts} prompts", param="prompt")
    return [
        GenerateRequest(
            request_id=f"{origin.request_id}-{place}" if len(prompts) > 1 else origin.request_id,
            model=body.model,
            sampling=sampling,
            prompt=prompt if isinstance(prompt, str) else None,
            prompt_token_ids=None if isinstance(prompt, str) else prompt,
            stream=bool(body.stream),
            echo=bool(body.echo),
            priority=body.priority or 0,
            cache_salt=body.cache_salt,
            **origin.fields(),
        )
        for place, prompt in enumerate(prompts)
    ]


def _prompts(prompt: str | list[Any]) -> Sequence[str | list[int]]:
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise InvalidRequest("prompt: empty list", param="prompt")
    try:
        if isinstance(prompt[0], str):
            return msgspec.convert(prompt, list[str])
        if isinstance(prompt[0], list):
            lists = msgspec.convert(prompt, list[list[TokenId]])
        else:
            lists = [msgspec.convert(prompt, list[TokenId])]
    except msgspec.ValidationError as error:
        what = type_error(str(error)).message
        raise InvalidRequest(
            f"prompt: expected text, token ids, or a list of either ({what})", param="prompt"
        ) from None
    if not all(lists):
        raise InvalidRequest("prompt: a prompt needs at least one token", param="prompt")
    return lists
