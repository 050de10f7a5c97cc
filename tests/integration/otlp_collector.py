"""An OpenTelemetry collector inside the test: takes spans over OTLP/gRPC and keeps them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from tests.waiting import wait_until


@dataclass(frozen=True, kw_only=True)
class SeenSpan:
    """A span as it arrived; ids in hex, `parent_id` "" for a root, times in ns since 1970."""

    name: str
    service: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    failed: bool

    @property
    def duration_s(self) -> float:
        return (self.end_ns - self.start_ns) / 1e9


class Collector(service.TraceServiceServicer):
    """`endpoint` is for --otlp-endpoint.

    Spans come in batches, every 5 s unless OTEL_BSP_SCHEDULE_DELAY (ms) stands in the
    environment of the process that sends them.
    """

    def __init__(self) -> None:
        self.endpoint = ""
        self.spans: list[SeenSpan] = []

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the rpc's name
        for resource in request.resource_spans:
            about = _values(resource.resource.attributes)
            for scope in resource.scope_spans:
                self.spans += [_seen(span, about["service.name"]) for span in scope.spans]
        return pb.ExportTraceServiceResponse()

    def wait(self, count: int, *, limit_s: float = 15.0) -> list[SeenSpan]:
        """The spans once there are `count`; blocks, so not for the event loop that sends them."""
        wait_until(lambda: len(self.spans) >= count, limit_s=limit_s)
        return list(self.spans)

    def named(self, name: str) -> SeenSpan:
        """The one span of this name."""
        (found,) = (span for span in self.spans if span.name == name)
        return found

    def children_of(self, parent: SeenSpan) -> dict[str, SeenSpan]:
        """Its children by name."""
        return {
            span.name: span
            for span in self.spans
            if (span.trace_id, span.parent_id) == (parent.trace_id, parent.span_id)
        }


@contextmanager
def otlp_collector() -> Iterator[Collector]:
    """Serve a collector on a free port of this machine."""
    server = grpc.server(ThreadPoolExecutor(max_workers=1))
    collector = Collector()
    service.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    collector.endpoint = f"http://127.0.0.1:{port}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(None).wait(5)


def _seen(span: Any, service_name: str) -> SeenSpan:
    return SeenSpan(
        name=span.name,
        service=service_name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes=_values(span.attributes),
        failed=span.status.code == Status.STATUS_CODE_ERROR,
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {it.key: getattr(it.value, it.value.WhichOneof("value")) for it in attributes}
