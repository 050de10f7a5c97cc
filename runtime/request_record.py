"""What is kept of one generation request while it runs, and told once when it is over.

The same for every front: one log line, and the metrics of requests and tokens.
"""

import logging
from functools import cache

from prometheus_client import Counter, Gauge, Histogram

from runtime.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    EngineFailed,
    InternalError,
    ModelNotReady,
    Overloaded,
    Stalled,
    WorkerLost,
)
from runtime.metrics import TokenHistogram

_LOG = logging.getLogger(__name__)
OK = "ok"
UNKNOWN_MODEL = "unknown"
# What alert rules watch for (deploy/prometheus/alerts.yml): mostly the fault of the server.
FAILURES = tuple(
    error.reason
    for error in (
        DeadlineExceeded, Draining, EngineFailed, InternalError, ModelNotReady, Overloaded,
        Stalled, WorkerLost,
    )
)  # fmt: skip

# Buckets. Durations span a cached one-token answer (10 ms) to a long document (10 min), three per
# decade, so that a quantile is off by less than half of its value. Between tokens the range that
# people notice, 5 to 100 ms, has finer steps: reading speed is 50 to 200 ms per token.
_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600)
_TOKEN_GAPS = (
    0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25,
    0.5, 1, 2.5, 5, 10,
)  # fmt: skip

REQUESTS = Counter(
    "penstock_requests",
    "Generation requests that are over; outcome is ok or the reason of the error.",
    ("model", "endpoint", "outcome"),
)
IN_FLIGHT = Gauge(
    "penstock_requests_in_flight", "Generation requests admitted and not over.", ("model",)
)
QUEUED = Gauge("penstock_requests_queued", "Those of them that wait for a place.", ("model",))
DISCONNECTS = Counter(
    "penstock_client_disconnects",
    "Generation requests whose client went away or cancelled before the end.",
    ("endpoint",),
)
DURATION = Histogram(
    "penstock_request_duration_seconds",
    "From a request's admission to its end.",
    ("model", "endpoint"),
    buckets=_SECONDS,
)
FIRST_TOKEN = Histogram(
    "penstock_time_to_first_token_seconds",
    "From a request's admission to its first token, the wait for a place included.",
    ("model", "endpoint"),
    buckets=_SECONDS,
)
QUEUE = Histogram(
    "penstock_queue_seconds",
    "Time that a request waited for a place before its worker was chosen.",
    ("model",),
    buckets=_SECONDS,
)
TOKEN_GAP = TokenHistogram(
    "penstock_inter_token_latency_seconds",
    "Time between two deltas of a request's first choice.",
    buckets=_TOKEN_GAPS,
)
INPUT_TOKENS = Counter("penstock_input_tokens", "Prompt tokens of requests.", ("model",))
CACHED_TOKENS = Counter(
    "penstock_cached_tokens", "Prompt tokens that were found in a KV cache.", ("model",)
)
OUTPUT_TOKENS = Counter("penstock_output_tokens", "Tokens delivered to clients.", ("model",))
# Series by their labels: `labels` itself takes 2 us, eight times a request.
_requests = cache(REQUESTS.labels)
_requests_in_flight = cache(IN_FLIGHT.labels)
_disconnects = cache(DISCONNECTS.labels)
_duration = cache(DURATION.labels)
_first_token = cache(FIRST_TOKEN.labels)
_queue = cache(QUEUE.labels)
_input_tokens = cache(INPUT_TOKENS.labels)
_cached_tokens = cache(CACHED_TOKENS.labels)
_output_tokens = cache(OUTPUT_TOKENS.labels)


def record_refusal(
    *, request_id: str, endpoint: str, outcome: str, detail: str, now: float
) -> None:
    """Account for a request that could not even be read."""
    record = RequestRecord(request_id=request_id, endpoint=endpoint, started_s=now)
    record.end(outcome, now, detail)


@cache
def _begin_failures(model: str, endpoint: str) -> None:
    """Begin at 0 what may go wrong: to Prometheus the first value of a series is no increase."""
    for outcome in FAILURES:
        _requests(model, endpoint, outcome)


class RequestRecord:
    """One request's facts. Times are `time.monotonic` seconds that the caller passes in.

    `queued_s` is the wait for a place in the front door, `engine_queued_s` the one in the engine.

    Exactly one `end` follows `admitted`, or, for a request that was refused, stands alone.
    """

    __slots__ = (
        "_gaps", "_in_flight", "_last_of_first_s", "cached_tokens", "endpoint", "engine_queued_s",
        "first_s", "input_tokens", "last_s", "model", "output_tokens", "principal", "queued_s",
        "request_id", "started_s", "waiting", "worker",
    )  # fmt: skip

    def __init__(
        self, *, request_id: str, endpoint: str, started_s: float, principal: str | None = None
    ) -> None:
        self.request_id = request_id
        self.endpoint = endpoint
        self.principal = principal
        self.started_s = started_s
        self.model = UNKNOWN_MODEL
        self.worker: str | None = None
        self.waiting = False
        self.queued_s: float | None = None
        self.engine_queued_s: float | None = None
        self.first_s: float | None = None
        self.last_s = self._last_of_first_s = started_s
        self.input_tokens = self.cached_tokens = self.output_tokens = 0
        self._in_flight: Gauge | None = None

    def admitted(self, model: str) -> None:
        """The request counts as in flight from now on."""
        self.known_as(model)
        self._in_flight = _requests_in_flight(model)
        self._in_flight.inc()

    def known_as(self, model: str) -> None:
        """The model is a real one: clients' own words are no labels, they have no bound."""
        self.model = model
        _begin_failures(model, self.endpoint)
        self._gaps = TOKEN_GAP.model(model)

    def token(self, now: float, *, first_choice: bool) -> None:
        """A delta came."""
        if self.first_s is None:
            self.first_s = self._last_of_first_s = now
        elif first_choice:
            self._gaps.observe(now - self._last_of_first_s)
            self._last_of_first_s = now
        self.last_s = now

    def end_wait(self, now: float) -> None:
        """The wait for a place is over; `waiting` says that there is one."""
        if self.waiting:
            self.waiting = False
            self.queued_s = now - self.started_s

    def end(self, outcome: str, now: float, detail: str | None = None) -> None:
        """Tell everything, once."""
        self.end_wait(now)
        _requests(self.model, self.endpoint, outcome).inc()
        if outcome == Cancelled.reason:
            _disconnects(self.endpoint).inc()
        if self._in_flight is not None:
            self._in_flight.dec()
            _duration(self.model, self.endpoint).observe(now - self.started_s)
            _input_tokens(self.model).inc(self.input_tokens)
            _cached_tokens(self.model).inc(self.cached_tokens)
            _output_tokens(self.model).inc(self.output_tokens)
        if self.first_s is not None:
            taken_s = self.first_s - self.started_s
            _first_token(self.model, self.endpoint).observe(taken_s)
        if self.queued_s is not None:
            _queue(self.model).observe(self.queued_s)
        if _LOG.isEnabledFor(logging.INFO):
            _LOG.info("request finished", extra=self._shown(outcome, now, detail))

    def _shown(self, outcome: str, now: float, detail: str | None) -> dict[str, object]:
        first_s = None if self.first_s is None else round(self.first_s - self.started_s, 4)
        return {
            "request_id": self.request_id or None,
            "endpoint": self.endpoint,
            "principal": self.principal,
            "model": self.model,
            "worker": self.worker,
            "outcome": outcome,
            "input_tokens": self.input_tokens,
            "cached_tokens": self.cached_tokens,
            "output_tokens": self.output_tokens,
            "queued_s": None if self.queued_s is None else round(self.queued_s, 4),
            "first_token_s": first_s,
            "duration_s": round(now - self.started_s, 4),
            "detail": detail,
        }
