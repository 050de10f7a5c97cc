"""A choice's deltas through a parser in this process."""

from server.parsers.parser import AnswerParser, Deliver, Fail
from wire.generate import ChoiceDelta


class LocalParser:
    """Parses at once (a ChoiceParser). Without `parallel` only the first call is kept."""

    def __init__(self, parser: AnswerParser, *, parallel: bool = True) -> None:
        self.reasoning_tokens = 0
        self._parser = parser
        self._parallel = parallel
        self._called = False

    def feed(self, fresh: ChoiceDelta, deliver: Deliver, fail: Fail) -> None:
        """Take the next delta."""
        parser = self._parser
        if parser.reasoning:
            self.reasoning_tokens += len(fresh.token_ids)
        parsed = parser.feed(fresh.text, fresh.token_ids)
        reasoning, content, calls = parsed.reasoning, parsed.content, parsed.tool_calls
        if fresh.finish_reason is not None:
            last = parser.finish()
            reasoning += last.reasoning
            content += last.content
            calls += last.tool_calls
        if not self._parallel:
            calls = [call for call in calls if call.index == 0]
        self._called = self._called or bool(calls)
        fresh.reasoning, fresh.text, fresh.tool_calls = reasoning, content, calls
        if self._called and fresh.finish_reason == "stop":
            fresh.finish_reason = "tool_calls"
        deliver(fresh)

    def close(self) -> None:
        """Nothing is outstanding."""
