"""What the HTTP front counts; generations are counted by runtime/request_record.py."""

from prometheus_client import Counter, Gauge, Histogram

# Three per decade from a health check's millisecond to the longest answers.
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600)

REQUESTS = Counter("penstock_http_requests", "Finished HTTP requests.", ("endpoint", "status"))
IN_FLIGHT = Gauge("penstock_http_requests_in_flight", "HTTP requests being answered.")
CONNECTIONS = Gauge("penstock_http_connections", "Connections of HTTP clients, idle ones too.")
DURATION = Histogram(
    "penstock_http_request_duration_seconds",
    "From the request's headers to the end of its answer.",
    ("endpoint",),
    buckets=_SECONDS,
)
