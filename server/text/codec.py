"""One model's text side: requests to prompt ids, token deltas to text deltas."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import ContextLengthExceeded, InvalidRequest
from server.parsers.answer_format import FREE_ANSWER, AnswerPlan, choose_format
from server.parsers.local import LocalParser
from server.parsers.parser import ChoiceParser
from server.parsers.remote import ParserHost
from server.parsers.tools import read_tools
from server.text.choice import ChoiceDecoder
from server.text.detokenizer import Detokenization
from server.text.template import load_template
from server.text.tokenizer import load_tokenizer
from wire.cards import ModelCard
from wire.generate import GenerateRequest

__all__ = ["ChoiceDecoder", "EncodedPrompt", "TextCodec"]

# About 2 ms of encoding; a thread hop costs 0.1 ms.
_LONG_CHARACTERS = 8192
# More than any language has on average; runs of blanks may have more.
_CHARACTERS_PER_TOKEN = 16
_LONG_TOKENS = 4096  # about 1 ms of decoding


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt in tokens, int32; `text` is what they were made of, of ids only if it is wanted.

    An array, because the router hashes it and the wire sends it: neither copies it then. `answer`
    says how its answer is made and read.
    """

    token_ids: "array[int]"
    text: str | None = None
    answer: AnswerPlan = FREE_ANSWER


class TextCodec:
    """The tokenizer, detokenizer and chat template of one model. May be shared by threads.

    Loading reads the model folder of the card, blocks, and raises InvalidConfig. `parsers` runs the
    parsers that are vLLM's.
    """

    def __init__(self, card: ModelCard, parsers: ParserHost | None = None) -> None:
        folder = Path(card.path)
        self._folder = card.path
        self._parsers = parsers or ParserHost()
        self.tokenizer = load_tokenizer(folder)
        self.tokenizer.speed_up()
        self.eos_ids = self.tokenizer.eos_ids | frozenset(card.eos_token_ids)
        self._detokenization = Detokenization(self.tokenizer)
        self._template = load_template(folder, self.tokenizer.special_tokens)
        self.answer_format = choose_format(
            card.tool_call_parser, card.reasoning_parser, self.tokenizer, self._template.source
        )
        self._context_length = card.context_length
        self._vocab_size = card.vocab_size or self.tokenizer.vocab_size

    def is_long(self, request: GenerateRequest) -> bool:
        """Whether encoding takes so long that it should not run on the event loop."""
        if request.prompt is not None:
            return len(request.prompt) > _LONG_CHARACTERS
        if request.prompt_token_ids is not None:
            return request.echo and self.has_long_text(request.prompt_token_ids)
        rendered = request.messages, request.tools, request.chat_template_kwargs
        return _room(rendered, _LONG_CHARACTERS) < 0

    def has_long_text(self, token_ids: Sequence[int]) -> bool:
        """Whether making their text takes so long that it should not run on the event loop."""
        return len(token_ids) > _LONG_TOKENS

    def encode_request(self, request: GenerateRequest) -> EncodedPrompt:
        """Return the prompt in tokens. Raises InvalidRequest or Unsupported naming the field.

        Raises ContextLengthExceeded for a text so long that encoding it would be a waste.
        """
        if request.prompt_token_ids is not None:
            given = self._end(self._checked(request.prompt_token_ids), request)
            return EncodedPrompt(given, self.tokenizer.decode(given) if request.echo else None)
        if request.messages is not None:
            use = read_tools(request.tools, request.tool_choice)
            text = self._render(request)
            ids = self._encode(text, add_special_tokens=False, param="messages")
            plan = self.answer_format.plan(request, use, text)
            return EncodedPrompt(self._end(_not_empty(ids, "messages"), request), text, plan)
        text = request.prompt or ""
        framed = request.add_special_tokens
        ids = self._encode(text, add_special_tokens=framed, param="prompt")
        return EncodedPrompt(self._end(_not_empty(ids, "prompt"), request), text)

    def full_text_of(self, token_ids: Sequence[int]) -> str:
        """Return the text of some ids, special tokens too; raises InvalidRequest for others."""
        return self.tokenizer.decode(self._checked(token_ids), skip_special_tokens=False)

    def token_strings(self, token_ids: Sequence[int]) -> list[str]:
        """Return the text of each id by itself."""
        return [self._detokenization.token_text(token_id) for token_id in token_ids]

    def decoder(
        self, request: GenerateRequest, index: int = 0, prompt: EncodedPrompt | None = None
    ) -> ChoiceDecoder:
        """Begin one choice of a request whose prompt has been encoded to `prompt`."""
        sampling = request.sampling
        parsed = prompt is not None and prompt.answer.parsed
        detokenizer = self._detokenization.open(
            skip_special_tokens=sampling.skip_special_tokens and not parsed,
            spaces_between_special_tokens=sampling.spaces_between_special_tokens,
            prompt_ids=prompt.token_ids if prompt is not None else (),
        )
        return ChoiceDecoder(
            detokenizer,
            token_text=self._detokenization.token_text,
            token_part=self._detokenization.token_part,
            sampling=sampling,
            end_ids=self.eos_ids.union(sampling.stop_token_ids),
            index=index,
        )

    def parser(self, request: GenerateRequest, prompt: EncodedPrompt) -> ChoiceParser | None:
        """Begin to parse one choice of a request; None when its text is passed on as it is."""
        remote = self.answer_format.remote(prompt.answer, reasoning=request.separate_reasoning)
        if remote is not None:
            return self._parsers.open(request, self._folder, remote, prompt.token_ids)
        parser = self.answer_format.open(request, prompt.answer, prompt.text or "")
        if parser is None:
            return None
        return LocalParser(parser, parallel=request.parallel_tool_calls)

    def _encode(self, text: str, *, add_special_tokens: bool, param: str) -> list[int]:
        encode = self.tokenizer.encode
        size = _LONG_CHARACTERS + _CHARACTERS_PER_TOKEN * self._context_length
        # Encoding takes 0.5 KiB and 2 us per token: what cannot fit is refused by its beginning.
        while size < len(text):
            count = len(encode(text[:size], add_special_tokens=False, param=param))
            if count > 2 * self._context_length:
                raise ContextLengthExceeded(
                    f"the prompt has over {count} tokens; the model's context is "
                    f"{self._context_length} tokens",
                    param=param,
                )
            size *= 4
        return encode(text, add_special_tokens=add_special_tokens, param=param)

    def _render(self, request: GenerateRequest) -> str:
        assert request.messages is not None
        variables = dict(request.chat_template_kwargs)
        go_on = bool(variables.pop("continue_final_message", False))
        return self._template.render(
            request.messages,
            request.tools,
            add_generation_prompt=bool(variables.pop("add_generation_prompt", not go_on)),
            continue_final_message=go_on,
            variables=variables,
        )

    def _end(self, ids: "array[int]", request: GenerateRequest) -> "array[int]":
        """As much of a prompt as the request wants: its end, for an embedding its beginning."""
        most = request.truncate_prompt_tokens
        if most is None:
            return ids
        if most == -1:
            room = 0 if request.pooling is not None else request.sampling.max_tokens or 1
            most = self._context_length - room
        if request.pooling is not None:
            # Such models are trained with the beginning of what is too long, framed as a whole.
            frame = ids[-1:] if ids[-1] in self.tokenizer.special_ids else array("i")
            return ids[: most - len(frame)] + frame if 0 < most < len(ids) else ids
        return ids[-most:] if 0 < most < len(ids) else ids

    def _checked(self, token_ids: Sequence[int]) -> "array[int]":
        # Here: who reads answers alone has no need of numpy.
        import numpy as np  # noqa: PLC0415

        param = "prompt_token_ids"
        try:
            ids = _not_empty(token_ids, param)
            values = np.frombuffer(ids, np.int32)
            low, high = int(values.min()), int(values.max())
        except OverflowError:
            low, high = min(token_ids), max(token_ids)
        if low < 0 or high >= self._vocab_size:
            worst = low if low < 0 else high
            raise InvalidRequest(
                f"token id {worst} is outside the vocabulary [0, {self._vocab_size})", param=param
            )
        return ids


def check_answer_format(folder: Path, tool_call_parser: str, reasoning_parser: str) -> None:
    """Raise InvalidConfig when the model in a folder cannot have these parsers."""
    tokenizer = load_tokenizer(folder)
    template = load_template(folder, tokenizer.special_tokens)
    choose_format(tool_call_parser, reasoning_parser, tokenizer, template.source)


def _room(value: Any, room: int) -> int:
    """What is left of `room` characters after the texts of a JSON value; negative when too few."""
    if isinstance(value, str):
        return room - len(value)
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return room
    for inner in value:
        if room < 0:
            break
        room = _room(inner, room)
    return room


def _not_empty(ids: Sequence[int], param: str) -> "array[int]":
    if not len(ids):
        raise InvalidRequest("the prompt is empty", param=param)
    if not isinstance(ids, list):
        return array("i", ids)
    made = array("i")
    made.fromlist(ids)  # half the time
    return made
