"""What ModelStatistics tells of each model, counted when requests end."""

from dataclasses import dataclass, field, fields

from runtime.errors import Cancelled, ServingError
from runtime.request_record import RequestRecord


@dataclass(slots=True)
class Durations:
    """How many, and how long in all, in nanoseconds."""

    count: int = 0
    ns: int = 0

    def add(self, duration_s: float) -> None:
        """Count one; a negative duration is none."""
        self.count += 1
        self.ns += max(0, round(duration_s * 1e9))

    def plus(self, other: "Durations") -> "Durations":
        """Both together."""
        return Durations(self.count + other.count, self.ns + other.ns)


@dataclass(slots=True)
class ResponseStatistics:
    """Of one response of each streamed request: how it came, or what came in its place."""

    compute_infer: Durations = field(default_factory=Durations)
    success: Durations = field(default_factory=Durations)
    fail: Durations = field(default_factory=Durations)
    cancel: Durations = field(default_factory=Durations)

    def plus(self, other: "ResponseStatistics") -> "ResponseStatistics":
        """Both together."""
        return ResponseStatistics(
            *(getattr(self, it.name).plus(getattr(other, it.name)) for it in fields(self))
        )

    def end(self, error: ServingError | None, duration_s: float) -> None:
        """Count how it ended."""
        if error is None:
            self.success.add(duration_s)
        elif isinstance(error, Cancelled):
            self.cancel.add(duration_s)
        else:
            self.fail.add(duration_s)


@dataclass(slots=True)
class ModelStatistics:
    """The sums of one model; fields as in Triton's statistics extension.

    `success` and `fail` run from admission to the end, `queue` is the wait for a place in the
    front door and in the engine, `compute_input` the template, tokenizer and choice of a worker,
    `compute_infer` the worker's work up to the last token. `cache_hit` and `cache_miss` run from
    the worker's getting the request to its first token, of requests whose prompt was found in the
    KV cache in part or not at all. All but `fail` are of complete answers. `last_s` is when the
    last of them began, in `time.monotonic` seconds.
    """

    last_s: float | None = None
    success: Durations = field(default_factory=Durations)
    fail: Durations = field(default_factory=Durations)
    queue: Durations = field(default_factory=Durations)
    compute_input: Durations = field(default_factory=Durations)
    compute_infer: Durations = field(default_factory=Durations)
    cache_hit: Durations = field(default_factory=Durations)
    cache_miss: Durations = field(default_factory=Durations)
    first_response: ResponseStatistics = field(default_factory=ResponseStatistics)
    final_response: ResponseStatistics = field(default_factory=ResponseStatistics)

    def plus(self, other: "ModelStatistics") -> "ModelStatistics":
        """Both together."""
        begun_s = [it.last_s for it in (self, other) if it.last_s is not None]
        sums = [it.name for it in fields(self) if it.name != "last_s"]
        return ModelStatistics(
            max(begun_s, default=None),
            *(getattr(self, name).plus(getattr(other, name)) for name in sums),
        )

    def ended(
        self,
        record: RequestRecord,
        error: ServingError | None,
        *,
        sent_s: float,
        streamed: bool,
        now: float,
    ) -> None:
        """Count a request that is over; times are `time.monotonic` seconds.

        `sent_s` is when its worker got it, 0 for a request that never came so far.
        """
        self.last_s = max(self.last_s or 0.0, record.started_s)
        if error is None:
            self._complete(record, sent_s=sent_s, now=now)
        else:
            self.fail.add(now - record.started_s)
        if streamed:
            self._responses(record, error, sent_s=sent_s, now=now)

    def _complete(self, record: RequestRecord, *, sent_s: float, now: float) -> None:
        waited_s, engine_s = record.queued_s or 0.0, record.engine_queued_s or 0.0
        first_s = sent_s if record.first_s is None else record.first_s
        self.success.add(now - record.started_s)
        self.queue.add(waited_s + engine_s)
        self.compute_input.add(sent_s - record.started_s - waited_s)
        self.compute_infer.add(record.last_s - sent_s - engine_s)
        found = self.cache_hit if record.cached_tokens else self.cache_miss
        found.add(first_s - sent_s)

    def _responses(
        self, record: RequestRecord, error: ServingError | None, *, sent_s: float, now: float
    ) -> None:
        if record.first_s is None:
            self.first_response.end(error, now - record.started_s)
            return
        self.first_response.end(None, record.first_s - record.started_s)
        self.first_response.compute_infer.add(record.first_s - sent_s)
        self.final_response.end(error, now - record.first_s)
        if error is None:
            self.final_response.compute_infer.add(record.last_s - record.first_s)
