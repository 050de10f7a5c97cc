"""Tracing over OTLP/gRPC by the OpenTelemetry SDK; see runtime/tracing.py."""

import threading
import time
from collections.abc import Mapping
from importlib.metadata import version

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from runtime.tracing import Attribute, Kind, Span, Tracing

FLUSH_S = 2.0
_KINDS: dict[Kind, trace.SpanKind] = {
    "internal": trace.SpanKind.INTERNAL,
    "server": trace.SpanKind.SERVER,
    "client": trace.SpanKind.CLIENT,
}
_W3C = TraceContextTextMapPropagator()


class OtlpSpan(Span):
    """A span on its way to the collector, unless its trace is one that is not recorded."""

    def __init__(self, span: trace.Span) -> None:
        self.context = trace.set_span_in_context(span, Context())
        self.traceparent = traceparent_of(self.context)
        self._span = span

    def __bool__(self) -> bool:
        return self._span.is_recording()

    def end(
        self,
        ended_s: float | None = None,
        *,
        error: str | None = None,
        attributes: Mapping[str, Attribute] | None = None,
    ) -> None:
        """Hand it to the exporter's queue."""
        if attributes:
            self._span.set_attributes(attributes)
        if error is not None:
            self._span.set_attribute("error.type", error)
            self._span.set_status(trace.StatusCode.ERROR, error)
        self._span.end(None if ended_s is None else wall_ns(ended_s))


class OtlpTracing(Tracing):
    """Sends spans in batches, from a thread of the SDK's."""

    def __init__(self, endpoint: str, process: str) -> None:
        self._exporter = OTLPSpanExporter(endpoint=endpoint)
        release = version("penstock")
        about = {"service.name": f"penstock-{process}", "service.version": release}
        self._provider = TracerProvider(resource=Resource.create(about), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("penstock", release)
        self._closed = False

    def __bool__(self) -> bool:
        return not self._closed

    def begin(
        self,
        name: str,
        *,
        parent: Span | str | None = None,
        began_s: float | None = None,
        kind: Kind = "internal",
        attributes: Mapping[str, Attribute] | None = None,
    ) -> OtlpSpan:
        """Begin a span; whether its trace is recorded is for the first process of it to say."""
        context = parent.context if isinstance(parent, OtlpSpan) else parent_context(parent)
        return OtlpSpan(
            self._tracer.start_span(
                name,
                context,
                _KINDS[kind],
                attributes,
                start_time=None if began_s is None else wall_ns(began_s),
            )
        )

    def close(self) -> None:
        """Send the rest; a collector that does not answer is not waited for."""
        if self._closed:
            return
        self._closed = True
        # The SDK's own limit is 30 s, and it retries until then.
        sending = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        sending.start()
        sending.join(FLUSH_S)
        if sending.is_alive():
            self._exporter.shutdown()


def parent_context(parent: Span | str | None) -> Context:
    """Return the context of a traceparent; an empty one, so a new trace, if it is none."""
    traceparent = parent.traceparent if isinstance(parent, Span) else parent
    return _W3C.extract({"traceparent": traceparent or ""}, Context())


def traceparent_of(context: Context) -> str | None:
    """Return the traceparent of the context's span."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier, context)
    return carrier.get("traceparent")


def wall_ns(monotonic_s: float) -> int:
    """Return a time of `time.monotonic` as nanoseconds since 1970, by what both clocks say now."""
    return time.time_ns() - time.monotonic_ns() + int(monotonic_s * 1e9)
