"""The Responses API's request bodies; names not listed are ignored."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta


class TextFormat(msgspec.Struct, frozen=True, kw_only=True):
    """The form of the answer's text."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class TextConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the answer's text."""

    format: TextFormat | None = None
    verbosity: str | None = None


class Reasoning(msgspec.Struct, frozen=True, kw_only=True):
    """How long the model shall think; "none" switches it off where its template can."""

    effort: str | None = None
    summary: str | None = None


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """What a prompt is made of."""

    model: Annotated[str, Meta(min_length=1)]
    input: str | list[dict[str, Any]] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    reasoning: Reasoning | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None


class ResponseRequest(Conversation, frozen=True, kw_only=True):
    """POST /v1/responses."""

    stream: bool | None = None
    store: bool | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None
    metadata: dict[str, str] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    max_tool_calls: int | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None

    seed: int | None = None
    top_k: int | None = None
    min_p: float | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    cache_salt: str | None = None
    priority: int | None = None

    background: bool | None = None
    conversation: Any = None
    prompt: Any = None


class ResponseAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A response; the fields that clients look at first."""

    id: str
    object: str
    created_at: float
    status: str
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any] | None
    error: dict[str, Any] | None
    incomplete_details: dict[str, Any] | None


class InputTokens(msgspec.Struct, frozen=True, kw_only=True):
    """How many tokens a request's input has."""

    input_tokens: int
    object: str = "response.input_tokens"


NOT_OFFERED = {"background": (False,), "conversation": (), "prompt": ()}
"""Fields we know and do not offer, with the values (besides null) that ask for nothing."""
