"""Request bodies as OpenAI documents them, with vLLM's extra fields; names not listed are ignored.

Every optional field takes null for "not given", as OpenAI's clients send it.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from wire.sampling import Sampling


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a stream carries besides text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class JsonSchema(msgspec.Struct, frozen=True, kw_only=True):
    """The schema an answer must follow."""

    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True, kw_only=True):
    """The form of the answer: text, any JSON object, JSON that follows a schema, or tags.

    `format` is xgrammar's, for structural tags.
    """

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchema | None = None
    format: dict[str, Any] | None = None


class GenerationBody(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that both endpoints share. Ranges are checked with the sampling parameters."""

    model: Annotated[str, Meta(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None

    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[int] | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    structured_outputs: dict[str, Any] | None = None
    repetition_detection: dict[str, Any] | None = None
    cache_salt: str | None = None
    priority: int | None = None
    return_token_ids: bool | None = None

    prompt_logprobs: int | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1)] | None = None

    use_beam_search: Any = None


class ChatCompletionRequest(GenerationBody, frozen=True, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: list[dict[str, Any]] | None = None
    function_call: str | dict[str, Any] | None = None
    include_reasoning: bool | None = None

    modalities: Any = None
    audio: Any = None
    web_search_options: Any = None
    chat_template: Any = None
    documents: Any = None
    echo: Any = None


CHAT_FIELDS = ("messages", "tools", "functions", "chat_template_kwargs")
"""The fields of a chat that may be long."""


class CompletionRequest(GenerationBody, frozen=True, kw_only=True):
    """POST /v1/completions. `prompt`: text, token ids, or a list of either."""

    prompt: str | list[Any]
    echo: bool | None = None
    logprobs: int | None = None
    best_of: Annotated[int, Meta(ge=1)] | None = None
    add_special_tokens: bool | None = None

    suffix: Any = None


HARMLESS: dict[str, tuple[Any, ...]] = {
    "use_beam_search": (False,),
    "modalities": ([], ["text"]),
    "audio": (),
    "web_search_options": (),
    "chat_template": (),
    "documents": ([],),
    "suffix": ("",),
}
"""Fields we know and do not offer, with the values (besides null) that ask for nothing."""

SHARED_WITH_SAMPLING = tuple(
    name for name in GenerationBody.__struct_fields__ if name in Sampling.__struct_fields__
)
