"""Traces: one tree of spans per request across processes. Off by default, and free then.

The classes here are those of a process that traces nothing; runtime/tracing_otlp.py has the others
and is imported only when there is a collector to send to: it costs half a second and brings gRPC.
Times are seconds of `time.monotonic`, so that a span can be made when what it tells of is over.
"""

from collections.abc import Mapping
from typing import Literal

Attribute = str | int | float | bool
Kind = Literal["internal", "server", "client"]


class Span:
    """A piece of a request's work. False when nobody records it.

    `traceparent` is what another process needs to hang its spans below this one, in the form of
    the W3C (www.w3.org/TR/trace-context); None when there is no trace.
    """

    traceparent: str | None = None

    def __bool__(self) -> bool:
        return False

    def end(
        self,
        ended_s: float | None = None,
        *,
        error: str | None = None,
        attributes: Mapping[str, Attribute] | None = None,
    ) -> None:
        """End it, now unless told when; `error` is the reason word of a ServingError."""


class Tracing:
    """Makes spans. False when tracing is off: guard with it what costs something to find out."""

    def __bool__(self) -> bool:
        return False

    def begin(
        self,
        name: str,
        *,
        parent: Span | str | None = None,
        began_s: float | None = None,
        kind: Kind = "internal",
        attributes: Mapping[str, Attribute] | None = None,
    ) -> Span:
        """Begin a span, now unless told when, below a span or a traceparent, or a new trace.

        A traceparent that is none counts as absent, as the W3C has it.
        """
        return NO_SPAN

    def close(self) -> None:
        """Send what waits to be sent; blocks for up to `tracing_otlp.FLUSH_S`. Idempotent."""


NO_SPAN = Span()


def start_tracing(endpoint: str | None, process: str) -> Tracing:
    """Send spans of `penstock-<process>` to the collector at `endpoint`, http:// or https://.

    None is off. Otherwise gRPC is imported: not before a fork.
    """
    if not endpoint:
        return Tracing()
    # Only a process that traces pays for the SDK.
    from runtime.tracing_otlp import OtlpTracing  # noqa: PLC0415

    return OtlpTracing(endpoint, process)
