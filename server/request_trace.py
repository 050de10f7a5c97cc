"""The spans of one request in the front door; the worker hangs its own below `relay`."""

from runtime.request_record import RequestRecord
from runtime.tracing import NO_SPAN, Tracing
from wire.generate import GenerateRequest


class RequestTrace:
    """A server span with one child per step, each from the end of the step before.

    Attribute names are OpenTelemetry's for generative AI where there is one
    (opentelemetry.io/docs/specs/semconv/gen-ai).
    """

    def __init__(self, tracing: Tracing, request: GenerateRequest, now: float) -> None:
        self._tracing = tracing
        self._root = tracing.begin(
            request.endpoint,
            parent=request.traceparent,
            began_s=now,
            kind="server",
            attributes={
                "gen_ai.request.model": request.model,
                "penstock.request_id": request.request_id,
                "penstock.stream": request.stream,
            },
        )
        self._relay = NO_SPAN
        self._last_s = now

    def step(self, name: str, now: float) -> None:
        """A step is over."""
        self._tracing.begin(name, parent=self._root, began_s=self._last_s).end(now)
        self._last_s = now

    def relay(self, worker: str, now: float) -> str | None:
        """The request goes to a worker; returns what it needs to hang its spans below this one."""
        self._relay.end(now, error="worker_lost")
        self._relay = self._tracing.begin(
            "relay",
            parent=self._root,
            began_s=now,
            kind="client",
            attributes={"penstock.worker": worker},
        )
        return self._relay.traceparent

    def end(self, record: RequestRecord, error: str | None, now: float) -> None:
        """The request is over; `error` is the reason word of a ServingError."""
        self._relay.end(now, error=error)
        attributes: dict[str, str | int | float | bool] = {
            "gen_ai.response.model": record.model,
            "gen_ai.usage.input_tokens": record.input_tokens,
            "gen_ai.usage.output_tokens": record.output_tokens,
            "penstock.cached_tokens": record.cached_tokens,
        }
        if record.first_s is not None:
            attributes["penstock.time_to_first_token_s"] = record.first_s - record.started_s
        self._root.end(now, error=error, attributes=attributes)
