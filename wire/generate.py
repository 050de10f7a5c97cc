"""The text side: a checked request and the deltas that answer it, whatever carries them."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import msgspec

from wire.cards import ModelCard
from wire.pooling import Pooling
from wire.routes import Route, RouteReport, Thresholds
from wire.sampling import Sampling


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One generation as a client asked for it; exactly one of the three prompts is set.

    `messages` is an OpenAI messages list, rendered with the model's chat template.
    `echo` puts the prompt's text in front of each choice's text. `timeout_s` is the client's own
    limit for the whole request, in seconds; `deadline_s` is that limit or the rpc's as
    `time.monotonic` seconds. `stream` false says that nobody looks at it before its end.
    `endpoint` names the rpc or path it came by; `traceparent` is the W3C header that came with it.
    Requests of one `session_id` go to one worker, until one with `session_ends`.
    `principal` is the name of the API key it came with, for limits and logs. Only `pinned_worker`
    may take it, on `data_parallel_rank` if that is set; with `explain_route` the first delta says
    where it went.

    `add_special_tokens` is whether the tokenizer frames a text prompt; of a prompt longer than
    `truncate_prompt_tokens` (-1: than the context has room for) only the end is taken.

    With `pooling` an embedding of the prompt is asked for, and no text.

    `separate_reasoning` and `separate_tool_calls` take what the model thinks, and its calls of
    `tools`, out of the answer's text, with the model's parsers; without `parallel_tool_calls` at
    most one call comes.
    """

    request_id: str
    model: str
    sampling: Sampling
    prompt: str | None = None
    prompt_token_ids: Sequence[int] | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    chat_template_kwargs: dict[str, Any] = {}
    stream: bool = True
    echo: bool = False
    lora_name: str | None = None
    priority: int = 0
    cache_salt: str | None = None
    session_id: str | None = None
    session_ends: bool = False
    timeout_s: float | None = None
    deadline_s: float | None = None
    endpoint: str = ""
    traceparent: str | None = None
    principal: str | None = None
    pinned_worker: str | None = None
    data_parallel_rank: int | None = None
    explain_route: bool = False
    add_special_tokens: bool = True
    truncate_prompt_tokens: int | None = None
    separate_reasoning: bool = False
    separate_tool_calls: bool = False
    parallel_tool_calls: bool = True
    pooling: Pooling | None = None


class TokenText(msgspec.Struct, frozen=True, kw_only=True):
    """A token as text, with its log probability and those of the likeliest others.

    `part` are the bytes of one that is no text by itself, a part of a character perhaps.
    """

    token_id: int
    token: str
    part: bytes | None = None
    logprob: float
    rank: int | None = None
    top: tuple["TokenText", ...] = ()


class ToolCallDelta(msgspec.Struct, kw_only=True):
    """What is new in one tool call. `id` and `name` stand on its first delta only.

    `index` counts the calls of a choice from 0; the `arguments` of all its deltas are one JSON
    text.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class ChoiceDelta(msgspec.Struct, kw_only=True):
    """What is new in one choice. `finish_reason` stands on its last delta only.

    `token_ids` are all new ids as the engine gave them; `text` may lag behind them (partial
    characters, a possible stop string) and catches up at the latest with the last delta.
    Where they are separated, `reasoning` comes before `text`, and `tool_calls` last; a choice
    that calls ends with "tool_calls". `embedding` is float32, little-endian, of a request for one.
    """

    index: int = 0
    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = []
    token_ids: list[int] = []
    logprobs: list[TokenText] | None = None
    cumulative_logprob: float | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    embedding: bytes | None = None


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts of a whole request.

    `cached_tokens` are prompt tokens found in the KV cache; `reasoning_tokens` are among
    `completion_tokens`.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class GenerateDelta(msgspec.Struct, kw_only=True):
    """What is new since the last delta, at most one entry per choice. The last one has `usage`.

    `route` and `prompt_logprobs` stand on the first one of a request that asked for them; the
    latter has an entry for each prompt token, nan being the first one's log probability.
    """

    choices: list[ChoiceDelta]
    prompt_tokens: int = 0
    usage: Usage | None = None
    route: Route | None = None
    prompt_logprobs: list[TokenText] | None = None

    @property
    def final(self) -> bool:
        """Whether the request is over."""
        return self.usage is not None


class Tokenized(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt in tokens, as the engine would get it, and their texts if asked for."""

    token_ids: Sequence[int]
    context_length: int
    token_strings: list[str] | None = None


OnText: TypeAlias = Callable[[str], bool]
"""Takes text that is all of a delta of choice 0, at once; False when it cannot take it now."""


class Backend(Protocol):
    """What the HTTP gateway stands on: this process's data plane, or a KServe client of another.

    `generate` raises a ServingError before the first delta or between two; otherwise it yields
    deltas and ends after the one with `usage`. Closing the iterator cancels the request. A slow
    consumer gets fewer, larger deltas; nothing is dropped.

    `on_text` is for whoever can send text without waiting: it may be told a delta's text instead
    of being yielded the delta, after the first one and always in the order of the text. It must
    refuse while it is busy with a delta that it was yielded.
    """

    async def models(self) -> list[ModelCard]:
        """The models that can be asked for, ready or not."""
        ...

    async def is_ready(self, model: str | None = None) -> bool:
        """Whether `model` has a worker, or without a name any model."""
        ...

    def generate(
        self, request: GenerateRequest, on_text: OnText | None = None
    ) -> AsyncIterator[GenerateDelta]:
        """Run one request."""
        ...

    async def tokenize(self, request: GenerateRequest, *, with_strings: bool = False) -> Tokenized:
        """Encode a request's prompt as `generate` would; no worker is asked.

        Raises ModelNotFound, or what is wrong with the prompt.
        """
        ...

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> str:
        """The text of some ids, special tokens included; raises ModelNotFound, InvalidRequest."""
        ...


class Routing(Protocol):
    """What a process that routes tells and is told about it."""

    async def route(self, request: GenerateRequest) -> RouteReport:
        """Say where a request would go; raises what the request itself would meet."""
        ...

    def thresholds(self) -> Mapping[str, Thresholds]:
        """The thresholds of every model."""
        ...

    def thresholds_of(self, model: str) -> Thresholds:
        """One model's thresholds; raises ModelNotFound."""
        ...

    def set_thresholds(self, model: str, wanted: Thresholds) -> Thresholds:
        """Set a model's thresholds and return them; raises ModelNotFound."""
        ...
