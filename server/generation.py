"""One running request: takes token deltas from a worker, hands merged text deltas to a front."""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from runtime.errors import Cancelled, EngineFailed, ServingError
from runtime.request_record import RequestRecord
from server.parsers.parser import ChoiceParser
from server.text.codec import ChoiceDecoder, EncodedPrompt, TextCodec
from wire.generate import ChoiceDelta, GenerateDelta, GenerateRequest, OnText, TokenText, Usage
from wire.routes import Route
from wire.tokens import FinishReason, TokenDelta


class GenerationOwner(Protocol):
    """Who is told that a generation needs its worker no more, or has lost it."""

    def release(
        self, generation: "Generation", *, cancel: bool, error: ServingError | None = None
    ) -> None:
        """Free what the generation holds; with `cancel` the engine must stop working on it.

        `error` is how it ended, None for a complete answer.
        """
        ...

    def first_token(self, generation: "Generation") -> None:
        """Its prompt has been computed."""
        ...

    def lost(self, generation: "Generation", error: ServingError) -> bool:
        """The worker failed it: True when another worker has taken over."""
        ...


class Generation:
    """The merging slot of one request (a TokenSink).

    Deltas are decoded when they arrive, so that a stop string ends the engine's work at once, and
    merge until `take`: a slow client costs memory bounded by its own text. `on_ready` is called
    when there is something to take and was nothing before; for a request that does not stream,
    only at its end. Set it before control returns to the event loop. Call `take` until it returns
    None, the final delta, or raises. Exactly one end: a delta with usage, an error from `take`,
    or `cancel`. `route` goes with the next delta taken. `on_text` is for whoever wants nothing but
    the text of a stream of one choice, and can take it at once.
    """

    def __init__(
        self, request: GenerateRequest, owner: GenerationOwner, record: RequestRecord
    ) -> None:
        self.request = request
        self.record = record
        self.on_ready: Callable[[], None] = _nobody
        self.on_text: OnText | None = None
        self.ended = False
        self.route: Route | None = None
        self._prompt_ids: Sequence[int] = ()
        self._prompt_logprobs: list[TokenText] | None = None
        self._owner = owner
        self._pending: dict[int, ChoiceDelta] = {}
        self._echo: dict[int, str] = {}
        self._decoders: list[ChoiceDecoder] = []
        self._parsers: list[ChoiceParser] = []
        self._open_choices = request.sampling.n
        self._engine_open = request.sampling.n
        self._signalled = False
        self._error: ServingError | None = None
        self._final_taken = False

    def begin(self, codec: TextCodec, prompt: EncodedPrompt) -> None:
        """Set what is known once the prompt is encoded."""
        count = self.request.sampling.n
        self._decoders = [codec.decoder(self.request, index, prompt) for index in range(count)]
        if self.request.sampling.prompt_logprobs is not None:
            self._prompt_ids = prompt.token_ids
        parsers = [codec.parser(self.request, prompt) for _ in range(count)]
        self._parsers = [parser for parser in parsers if parser is not None]
        self.record.input_tokens = len(prompt.token_ids)
        if self.request.echo:
            self._echo = dict.fromkeys(range(count), prompt.text or "")

    def put_tokens(self, token_ids: list[int], now: float) -> None:
        """Take new tokens of the one choice of a request, and nothing else; see SlotSink.

        Nearly every token of nearly every stream comes here: `on_text`, where there is one, gets
        its text at once, unless something waits to be taken, and says whether it could take it.
        """
        record = self.record
        if (
            self.on_text is None
            or self.ended
            or self._parsers
            or self._pending
            or self._echo
            or self.route is not None
            or record.first_s is None
        ):
            self.put(TokenDelta(token_ids=token_ids))
            return
        record.token(now, first_choice=True)
        text = self._decoders[0].plain_text(token_ids)
        if text is None:
            self._feed(TokenDelta(token_ids=token_ids))
            return
        record.output_tokens += len(token_ids)
        if not self.on_text(text):
            self._merge(ChoiceDelta(text=text, token_ids=token_ids))

    def put(self, delta: TokenDelta) -> None:
        """Take new tokens of one choice."""
        if self.ended:
            return
        record = self.record
        if record.first_s is None:
            self._owner.first_token(self)
        record.token(time.monotonic(), first_choice=delta.index == 0)
        if delta.cached_tokens is not None:
            record.cached_tokens = delta.cached_tokens
            record.engine_queued_s = delta.queued_s
        if delta.prompt_logprobs is not None:
            decoder = self._decoders[delta.index]
            self._prompt_logprobs = decoder.prompt_logprobs(delta.prompt_logprobs, self._prompt_ids)
        if delta.finish_reason in (FinishReason.ERROR, FinishReason.ABORT):
            self.fail(EngineFailed(f"the engine ended this request: {delta.finish_reason.label}"))
            return
        if delta.finish_reason is not None:
            self._engine_open -= 1
        self._feed(delta)

    def _feed(self, delta: TokenDelta) -> None:
        record = self.record
        decoder = self._decoders[delta.index]
        if decoder.finished:
            return
        fresh = decoder.feed(delta)
        if fresh is None:
            return
        fresh.embedding = delta.embedding
        record.output_tokens += len(fresh.token_ids)
        if self._parsers:
            self._parsers[delta.index].feed(fresh, self._deliver, self.fail)
        else:
            self._deliver(fresh)

    def fail(self, error: ServingError) -> None:
        """End with an error, unless another worker can take over."""
        if self.ended or self._owner.lost(self, error):
            return
        self._close()
        self._error = error
        self._owner.release(self, cancel=True, error=error)
        self.on_ready()

    def cancel(self) -> None:
        """The client is gone: free the engine, say nothing more. Idempotent."""
        if not self.ended:
            self._close()
            self._error = Cancelled("the client went away or cancelled")
            self._owner.release(self, cancel=True, error=self._error)

    def take(self) -> GenerateDelta | None:
        """Return everything new since the last call; raises the error that ended the request."""
        complete = self.ended and self._error is None and not self._final_taken
        if self._error is not None and not (self._pending and self.request.stream):
            raise self._error
        if not self._pending and not complete:
            return None
        self._signalled = False
        pending, self._pending = self._pending, {}
        if self._echo:
            # Not sooner: what is long is copied by each delta that merges with it.
            for index, text in self._echo.items():
                choice = pending.setdefault(index, ChoiceDelta(index=index))
                choice.text = text + choice.text
            self._echo = {}
        record = self.record
        delta = GenerateDelta(
            choices=list(pending.values()),
            prompt_tokens=record.input_tokens,
            route=self.route,
            prompt_logprobs=self._prompt_logprobs,
        )
        self.route = self._prompt_logprobs = None
        if complete:
            self._final_taken = True
            delta.usage = Usage(
                prompt_tokens=record.input_tokens,
                completion_tokens=record.output_tokens,
                cached_tokens=record.cached_tokens,
                reasoning_tokens=sum(parser.reasoning_tokens for parser in self._parsers),
            )
        return delta

    def whole(self) -> GenerateDelta:
        """Return the whole answer of a request that does not stream, once `on_ready` came."""
        delta = self.take()
        assert delta is not None, "on_ready comes at the end only when nothing streams"
        return delta

    def _close(self) -> None:
        self.ended = True
        for parser in self._parsers:
            parser.close()

    def _deliver(self, fresh: ChoiceDelta) -> None:
        if self.ended:
            return
        if fresh.finish_reason is not None:
            self._open_choices -= 1
            if self._open_choices == 0:
                self.ended = True
                self._owner.release(self, cancel=self._engine_open > 0)
        self._merge(fresh)

    def _merge(self, fresh: ChoiceDelta) -> None:
        held = self._pending.get(fresh.index)
        if held is None:
            self._pending[fresh.index] = fresh
        else:
            merge_choice(held, fresh)
        if self.ended or (self.request.stream and not self._signalled):
            self._signalled = True
            self.on_ready()


def _nobody() -> None:
    """Nobody listens yet."""


def merge_choice(held: ChoiceDelta, fresh: ChoiceDelta) -> None:
    """Append `fresh` to `held`, both of one choice and in this order; `held` grows in place."""
    held.text += fresh.text
    held.reasoning += fresh.reasoning
    for call in fresh.tool_calls:
        if held.tool_calls and held.tool_calls[-1].index == call.index:
            held.tool_calls[-1].arguments += call.arguments
        else:
            held.tool_calls.append(call)
    held.token_ids += fresh.token_ids
    if fresh.logprobs is not None:
        held.logprobs = [*(held.logprobs or ()), *fresh.logprobs]
    if fresh.cumulative_logprob is not None:
        held.cumulative_logprob = fresh.cumulative_logprob
    held.finish_reason = fresh.finish_reason
    held.stop_reason = fresh.stop_reason
