"""The Messages API's request bodies; names not listed are ignored."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta


class Thinking(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the model thinks first; a budget or an effort is the model's own affair."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None


class ToolChoice(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the model may, must or must not call, or which tool it must."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """What a prompt is made of; POST /v1/messages/count_tokens."""

    model: Annotated[str, Meta(min_length=1)]
    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None


class MessagesRequest(Prompt, frozen=True, kw_only=True):
    """POST /v1/messages."""

    max_tokens: int
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    container: Any = None
    mcp_servers: Any = None


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """An answer."""

    id: str
    type: str
    role: str
    model: str
    content: list[dict[str, Any]]
    stop_reason: str | None
    stop_sequence: str | None
    usage: dict[str, Any]


class TokenCount(msgspec.Struct, frozen=True, kw_only=True):
    """How many tokens a prompt has."""

    input_tokens: int
