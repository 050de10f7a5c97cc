"""The spans of one traced request: made at its end, from times noted on its way."""

import time

from runtime.tracing import Attribute, Tracing
from wire.generate import Usage


class RequestSpans:
    """`worker.generate` below the caller's span, and below it `queue`, `prefill` and `decode`.

    The attributes' names are those of OpenTelemetry's semantic conventions for generative AI.
    """

    def __init__(self, tracing: Tracing, traceparent: str, model: str) -> None:
        self._tracing = tracing
        self._traceparent = traceparent
        self._model = model
        self._began_s = time.monotonic()
        self._scheduled_s: float | None = None
        self._first_s: float | None = None

    def note_first(self, queued_s: float | None) -> None:
        """The first tokens are here; `queued_s` is how long the engine let the request wait."""
        self._first_s = time.monotonic()
        if queued_s is not None:
            self._scheduled_s = min(self._began_s + queued_s, self._first_s)

    def end(self, usage: Usage, error: str | None) -> None:
        """Send them; `error` is the reason of the error that ended the request."""
        ended_s = time.monotonic()
        whole = self._tracing.begin(
            "worker.generate", parent=self._traceparent, began_s=self._began_s, kind="server"
        )
        for name, began_s, over_s in (
            ("queue", self._began_s, self._scheduled_s),
            ("prefill", self._scheduled_s, self._first_s),
            ("decode", self._first_s, ended_s),
        ):
            if began_s is not None and over_s is not None:
                self._tracing.begin(name, parent=whole, began_s=began_s).end(over_s)
        counts: dict[str, Attribute] = {
            "gen_ai.request.model": self._model,
            "gen_ai.usage.input_tokens": usage.prompt_tokens,
            "gen_ai.usage.output_tokens": usage.completion_tokens,
            "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
        }
        whole.end(ended_s, error=error, attributes=counts)
