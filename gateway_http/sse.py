"""Server-sent events of a streamed answer, as bytes from templates; pure.

Wire rules: OpenAI's chat.completion.chunk and text_completion stream objects; each event is
`data: JSON` and an empty line, the last one is `data: [DONE]`, also behind an error.
"""

import msgspec

from gateway_http.answers import (
    Answer,
    finish_reason,
    usage_body,
)
from gateway_http.errors import error_json
from gateway_http.logprobs import chat_logprobs, completion_logprobs
from runtime.errors import ServingError
from wire.generate import ChoiceDelta, GenerateDelta, TokenText, Usage
from wire.tool_calls import tool_calls_json

DONE = b"data: [DONE]\n\n"

_json = msgspec.json.Encoder().encode


def error_event(error: ServingError) -> bytes:
    """The end of a broken stream: the error, and [DONE] for clients that wait for it."""
    return b"data: " + error_json(error) + b"\n\n" + DONE


class ChunkWriter:
    """Writes the events of one answer, in order. Holds only counters: no text is kept."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        kind = b"chat.completion.chunk" if answer.chat else b"text_completion"
        self._head = b'data: {"id":%b,"object":"%b","created":%d,"model":%b,"choices":[' % (
            _json(answer.id),
            kind,
            answer.created,
            _json(answer.model),
        )
        self._open = b'"delta":{"content":' if answer.chat else b'"text":'
        self._close = b"}" if answer.chat else b""
        usage = b',"usage":null' if answer.include_usage else b""
        self._plain_end = (
            self._close + b',"logprobs":null,"finish_reason":null}]' + usage + b"}\n\n"
        )
        self._usage_null = usage
        self._is_plain = answer.top is None and not answer.token_ids and not answer.continuous_usage
        self._prefixes: dict[int, bytes] = {}
        self._offsets: dict[int, int] = {}
        self._prompt_logprobs: list[list[TokenText]] = [[] for _ in range(answer.prompts)]
        self._prompt_tokens = [0] * answer.prompts
        self._completion_tokens = 0
        self._usage: list[Usage | None] = [None] * answer.prompts
        self._unfinished = answer.prompts

    @property
    def complete(self) -> bool:
        """Whether every prompt has had its final delta."""
        return not self._unfinished

    def error_body(self, error: ServingError) -> bytes:
        """The whole answer when nothing else has been sent."""
        return error_json(error)

    def error_event(self, error: ServingError) -> bytes:
        """The end of a broken stream."""
        return error_event(error)

    def text(self, text: str) -> bytes | None:
        """The event of a delta of prompt 0 that is text of its choice 0 alone; see Events."""
        prefix = self._prefixes.get(0)
        if prefix is None or not self._is_plain:
            return None
        return self._plain(prefix, text)

    def write(self, prompt: int, delta: GenerateDelta) -> bytes:
        """The events of one delta of prompt number `prompt`; empty when it shows nothing new."""
        if self._is_plain and delta.usage is None and len(delta.choices) == 1:
            # Nearly every delta of nearly every stream.
            choice = delta.choices[0]
            prefix = self._prefixes.get(prompt * self._answer.choices + choice.index)
            parsed = choice.reasoning or choice.tool_calls
            if prefix is not None and choice.finish_reason is None and not parsed:
                return self._plain(prefix, choice.text)
        parts: list[bytes] = []
        if delta.prompt_logprobs is not None and self._answer.echo:
            self._prompt_logprobs[prompt] = delta.prompt_logprobs
        if self._answer.continuous_usage:
            self._count(prompt, delta)
        for choice in delta.choices:
            self._write_choice(prompt * self._answer.choices + choice.index, choice, parts)
        if delta.usage is not None:
            self._usage[prompt] = delta.usage
            self._unfinished -= 1
            if not self._unfinished:
                self._end(parts)
        return b"".join(parts)

    def _begin(self, index: int, parts: list[bytes]) -> bytes:
        start = b'%b{"index":%d,' % (self._head, index)
        prefix = self._prefixes[index] = start + self._open
        if self._answer.chat:
            parts += (
                start,
                b'"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]',
                self._usage_now(),
                b"}\n\n",
            )
        return prefix

    def _plain(self, prefix: bytes, text: str) -> bytes:
        return prefix + _json(text) + self._plain_end if text else b""

    def _write_choice(self, index: int, choice: ChoiceDelta, parts: list[bytes]) -> None:
        prefix = self._prefixes.get(index)
        if prefix is None:
            prefix = self._begin(index, parts)
        if choice.reasoning or choice.tool_calls:
            self._write_parsed(prefix, choice, parts)
        if self._is_plain and choice.finish_reason is None:
            parts.append(self._plain(prefix, choice.text))
        else:
            self._write_rich(index, prefix, choice, parts)

    def _write_parsed(self, prefix: bytes, choice: ChoiceDelta, parts: list[bytes]) -> None:
        """Write thoughts, and calls with the text before them, as events of their own."""
        start = prefix.removesuffix(self._open)
        if choice.reasoning and self._answer.reasoning:
            text = _json(choice.reasoning)
            delta = b'{"reasoning":%b,"reasoning_content":%b}' % (text, text)
            self._write_delta(start, delta, parts)
        if choice.tool_calls:
            if choice.text:
                self._write_delta(start, b'{"content":%b}' % _json(choice.text), parts)
                choice.text = ""
            calls = tool_calls_json(choice.tool_calls)
            self._write_delta(start, b'{"tool_calls":%b}' % calls, parts)

    def _write_delta(self, start: bytes, delta: bytes, parts: list[bytes]) -> None:
        end = b',"logprobs":null,"finish_reason":null}]'
        parts += (start, b'"delta":', delta, end, self._usage_now(), b"}\n\n")

    def _write_rich(
        self, index: int, prefix: bytes, choice: ChoiceDelta, parts: list[bytes]
    ) -> None:
        if not (choice.text or choice.finish_reason or choice.logprobs or self._shows_ids(choice)):
            return
        parts += (
            prefix,
            _json(choice.text),
            self._close,
            b',"logprobs":',
            self._logprobs(index, choice),
            b',"finish_reason":',
            _json(finish_reason(choice.finish_reason)),
        )
        if choice.finish_reason is not None:
            parts += (b',"stop_reason":', _json(choice.stop_reason))
        if self._answer.token_ids:
            parts += (b',"token_ids":', _json(choice.token_ids))
        parts += (b"}]", self._usage_now(), b"}\n\n")

    def _shows_ids(self, choice: ChoiceDelta) -> bool:
        return self._answer.token_ids and bool(choice.token_ids)

    def _logprobs(self, index: int, choice: ChoiceDelta) -> bytes:
        top = self._answer.top
        if top is None or choice.logprobs is None:
            return b"null"
        if self._answer.chat:
            return _json(chat_logprobs(choice.logprobs, top))
        tokens = choice.logprobs
        if index not in self._offsets:
            tokens = [*self._prompt_logprobs[index // self._answer.choices], *tokens]
        offset = self._offsets.get(index, 0)
        self._offsets[index] = offset + sum(len(token.token) for token in tokens)
        return _json(completion_logprobs(tokens, top, offset))

    def _count(self, prompt: int, delta: GenerateDelta) -> None:
        if delta.prompt_tokens:
            self._prompt_tokens[prompt] = delta.prompt_tokens
        self._completion_tokens += sum(len(choice.token_ids) for choice in delta.choices)

    def _usage_now(self) -> bytes:
        if not self._answer.continuous_usage:
            return self._usage_null
        now = Usage(
            prompt_tokens=sum(self._prompt_tokens), completion_tokens=self._completion_tokens
        )
        return b',"usage":' + _json(usage_body([now]))

    def _end(self, parts: list[bytes]) -> None:
        if self._answer.include_usage:
            usage = usage_body([usage for usage in self._usage if usage is not None])
            parts += (self._head, b'],"usage":', _json(usage), b"}\n\n")
        parts.append(DONE)
