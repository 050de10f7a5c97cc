"""One choice of a running request: token deltas in, text deltas out, stop strings obeyed."""

import math
from collections.abc import Callable, Sequence

from server.text.detokenizer import Detokenizer
from server.text.stop import StopMatcher
from wire.generate import ChoiceDelta, TokenText
from wire.sampling import Sampling
from wire.tokens import FinishReason, Position, TokenDelta, TokenLogprob


class ChoiceDecoder:
    """Decodes one choice. `finished` is set by its last delta, the engine's or a stop string's.

    As in vLLM: a token that ended the choice has no text, unless `include_stop_str_in_output`;
    a stop string counts only if a token after the first `min_tokens` completes it; tokens after
    that one are dropped. `end_ids` are the ids that end a choice. Not for use by several threads.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        *,
        token_text: Callable[[int], str],
        token_part: Callable[[int], bytes | None] = lambda _: None,
        sampling: Sampling,
        end_ids: frozenset[int] = frozenset(),
        index: int = 0,
    ) -> None:
        self.finished = False
        self._index = index
        self._detokenizer = detokenizer
        self._token_text = token_text
        self._token_part = token_part
        self._sampling = sampling
        self._end_ids = end_ids
        stops = sampling.stop_strings
        include = sampling.include_stop_str_in_output
        self._matcher = StopMatcher(stops, include=include) if stops else None
        self._min_tokens = sampling.min_tokens
        self._count = 0
        self._cumulative: float | None = None

    def feed(self, delta: TokenDelta) -> ChoiceDelta | None:
        """Return what a token delta adds: None if nothing, or if the choice is finished."""
        if self.finished:
            return None
        token_ids = delta.token_ids
        if delta.finish_reason is None:
            if not token_ids:
                return None
            if self._matcher is None and delta.logprobs is None:
                text = self._detokenizer.feed(token_ids)
                return ChoiceDelta(index=self._index, text=text, token_ids=token_ids)
        return self._decode(delta)

    def plain_text(self, token_ids: Sequence[int]) -> str | None:
        """What `feed` makes of tokens that are neither the last nor have log probabilities.

        None where that is more than text: `feed` has to be asked.
        """
        if self._matcher is not None or self.finished:
            return None
        return self._detokenizer.feed(token_ids)

    def prompt_logprobs(
        self, positions: Sequence[Position], token_ids: Sequence[int]
    ) -> list[TokenText]:
        """The log probabilities of a prompt's tokens; nan where there is none, at its begin."""
        count = self._sampling.prompt_logprobs or 0
        return [
            self._position(position, count)
            if position
            else TokenText(token_id=it, token=self._token_text(it), logprob=math.nan)
            for it, position in zip(token_ids, positions, strict=False)
        ]

    def _decode(self, delta: TokenDelta) -> ChoiceDelta:
        token_ids = delta.token_ids
        text, used = self._read(token_ids[:-1] if self._hides_last(delta) else token_ids)
        if self._matched is not None:
            token_ids = token_ids[:used]
        elif delta.finish_reason is not None:
            text += self._flush()
        fresh = ChoiceDelta(index=self._index, text=text, token_ids=token_ids)
        if self._matched is not None:
            self.finished = True
            fresh.finish_reason = FinishReason.STOP.label
            fresh.stop_reason = self._matched
        elif delta.finish_reason is not None:
            self.finished = True
            fresh.finish_reason = delta.finish_reason.label
            fresh.stop_reason = delta.stop_reason
        if delta.logprobs is not None:
            fresh.logprobs = self._logprobs(delta.logprobs[: len(token_ids)])
        fresh.cumulative_logprob = self._cumulative
        return fresh

    @property
    def _matched(self) -> str | None:
        return self._matcher.matched if self._matcher is not None else None

    def _hides_last(self, delta: TokenDelta) -> bool:
        if delta.finish_reason is not FinishReason.STOP or not delta.token_ids:
            return False
        last = delta.token_ids[-1]
        ended = last == delta.stop_reason or last in self._end_ids
        return ended and not self._sampling.include_stop_str_in_output

    def _read(self, token_ids: Sequence[int]) -> tuple[str, int]:
        """Return the text that may be sent, and how many tokens it took until a stop string."""
        if self._matcher is None:
            return self._detokenizer.feed(token_ids), len(token_ids)
        matcher, detokenizer = self._matcher, self._detokenizer
        sent = ""
        for used, token_id in enumerate(token_ids, 1):
            self._count += 1
            text = detokenizer.feed((token_id,))
            if text:
                sent += matcher.feed(text, armed=self._count > self._min_tokens)
                if matcher.matched is not None:
                    return sent, used
        return sent, len(token_ids)

    def _flush(self) -> str:
        text = self._detokenizer.flush()
        if self._matcher is None:
            return text
        return (
            self._matcher.feed(text, armed=self._count > self._min_tokens) + self._matcher.flush()
        )

    def _logprobs(self, positions: Sequence[Position]) -> list[TokenText]:
        self._cumulative = sum((p[0].logprob for p in positions), self._cumulative or 0.0)
        count = self._sampling.logprobs or 0
        return [self._position(position, count) for position in positions]

    def _position(self, position: Position, count: int) -> TokenText:
        own = position[0]
        top = tuple(self._entry(entry) for entry in self._likeliest(position, count))
        return TokenText(
            token_id=own.token_id,
            token=self._token_text(own.token_id),
            part=self._token_part(own.token_id),
            logprob=own.logprob,
            rank=own.rank,
            top=top,
        )

    def _likeliest(self, position: Position, count: int) -> Position:
        """The likeliest tokens; the sampled one is among them if its rank is, or was asked for."""
        own, others = position[0], position[1:]
        if self._sampling.logprob_token_ids is not None:
            return others
        missing = all(entry.token_id != own.token_id for entry in others)
        if missing and own.rank is not None and own.rank <= count:
            others = sorted([own, *others], key=lambda entry: -entry.logprob)
        return others[:count]

    def _entry(self, entry: TokenLogprob) -> TokenText:
        return TokenText(
            token_id=entry.token_id,
            token=self._token_text(entry.token_id),
            part=self._token_part(entry.token_id),
            logprob=entry.logprob,
            rank=entry.rank,
        )
