"""The answers of chat completions and completions, for the document only: they are not made so."""

from typing import Any

import msgspec

from gateway_http.answers import UsageBody


class FunctionCall(msgspec.Struct, frozen=True, kw_only=True):
    """A function to call, and its arguments as JSON."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """One call that the model asks for."""

    id: str
    type: str
    function: FunctionCall


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True):
    """What the model says; `reasoning` is what it thought before."""

    role: str
    content: str | None
    refusal: str | None
    reasoning: str | msgspec.UnsetType = msgspec.UNSET
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[ToolCall] | msgspec.UnsetType = msgspec.UNSET


class ChatChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One of the n answers."""

    index: int
    message: ChatMessage
    logprobs: dict[str, Any] | None
    finish_reason: str
    stop_reason: int | str | None
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a conversation."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageBody
    prompt_logprobs: list[dict[str, Any] | None] | msgspec.UnsetType = msgspec.UNSET


class CompletionChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One of the answers to one of the prompts."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: str
    stop_reason: int | str | None
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    prompt_logprobs: list[dict[str, Any] | None] | msgspec.UnsetType = msgspec.UNSET


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """What follows on a text."""

    id: str
    object: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageBody


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model that can be asked for, or an adapter of its `parent`."""

    id: str
    object: str
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int
    ready: bool


class Models(msgspec.Struct, frozen=True, kw_only=True):
    """All of them."""

    object: str
    data: list[Model]
