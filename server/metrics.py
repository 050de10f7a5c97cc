"""What the front door counts besides requests (runtime/request_record.py)."""

from contextlib import suppress

from prometheus_client import Counter, Gauge

DECISIONS = Counter(
    "penstock_router_decisions", "Requests sent to a worker.", ("model", "worker", "policy")
)
RETRIES = Counter(
    "penstock_request_retries",
    "Requests sent to another worker because theirs was lost before the first token.",
    ("model",),
)
CANCELS = Counter(
    "penstock_worker_cancels",
    "Requests stopped at their worker: clients gone, stop strings, limits.",
    ("model",),
)
FRAMES = Counter("penstock_worker_frames_received", "Step frames read from workers.", ("model",))
CONNECTED = Gauge("penstock_workers_connected", "Workers that can take requests.", ("model",))


def forget_worker(model: str, worker: str, policy: str) -> None:
    """Remove the series of a worker that has left: ids are never used again."""
    with suppress(KeyError):
        DECISIONS.remove(model, worker, policy)
