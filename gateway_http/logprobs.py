"""Log probabilities in the forms of OpenAI's two endpoints, and vLLM's of a prompt's."""

import math
from collections.abc import Sequence
from typing import Any

from wire.generate import TokenText

LOWEST_LOGPROB = -9999.0


def shown(logprob: float) -> float | None:
    """What a client sees of it: no infinity, and null where there is none."""
    return None if math.isnan(logprob) else max(logprob, LOWEST_LOGPROB)


def chat_logprobs(tokens: Sequence[TokenText], top: int) -> dict[str, Any]:
    """ChatCompletion's choices[].logprobs, with the `top` likeliest tokens at each position."""
    content = []
    for token in tokens:
        entry = _chat_token(token)
        entry["top_logprobs"] = [_chat_token(other) for other in token.top[:top]]
        content.append(entry)
    return {"content": content, "refusal": None}


def _chat_token(token: TokenText) -> dict[str, Any]:
    data = token.token.encode("utf-8", "surrogatepass") if token.part is None else token.part
    return {"token": token.token, "logprob": shown(token.logprob), "bytes": list(data)}


def completion_logprobs(tokens: Sequence[TokenText], top: int, offset: int) -> dict[str, Any]:
    """Completion's choices[].logprobs. `offset`: characters of this choice before these tokens."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.token)
    return {
        "text_offset": offsets,
        "token_logprobs": [shown(token.logprob) for token in tokens],
        "tokens": [token.token for token in tokens],
        "top_logprobs": [_likeliest(token, top) for token in tokens],
    }


def _likeliest(token: TokenText, top: int) -> dict[str, float | None] | None:
    if math.isnan(token.logprob):
        return None
    found = {token.token: shown(token.logprob)}
    for other in token.top[:top]:
        found.setdefault(other.token, shown(other.logprob))
    return found


def prompt_logprobs(tokens: Sequence[TokenText]) -> list[dict[str, Any] | None]:
    """VLLM's prompt_logprobs: by token id, None for the first token."""
    return [
        None
        if math.isnan(token.logprob)
        else {
            str(it.token_id): {
                "logprob": shown(it.logprob), "rank": it.rank, "decoded_token": it.token,
            }
            for it in (token, *token.top)
        }
        for token in tokens
    ]  # fmt: skip
