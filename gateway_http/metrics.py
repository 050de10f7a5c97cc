"""What the HTTP front counts, in the process's default Prometheus registry."""

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

REQUESTS = Counter("penstock_gateway_requests", "Finished HTTP requests.", ("endpoint", "status"))
IN_FLIGHT = Gauge("penstock_gateway_requests_in_flight", "HTTP requests being answered.")
DURATION = Histogram(
    "penstock_gateway_request_duration_seconds",
    "From the request's headers to the end of its answer.",
    ("endpoint",),
    buckets=_SECONDS,
)
FIRST_DELTA = Histogram(
    "penstock_gateway_time_to_first_token_seconds",
    "From the request's headers to the first delta of its generation.",
    ("endpoint",),
    buckets=_SECONDS,
)
