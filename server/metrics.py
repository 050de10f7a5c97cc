"""What the front door counts besides requests (runtime/request_record.py)."""

from collections.abc import Collection
from contextlib import suppress

from prometheus_client import Counter, Gauge, Histogram

from router.router import RouterStats

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
# A decision takes 10 µs for a short prompt, 0.5 ms for one of 128k tokens.
DECISION_TIME = Histogram(
    "penstock_router_decision_seconds",
    "Time to choose a worker, the prompt's hashing included.",
    ("model",),
    buckets=(1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 5e-3, 2e-2),
)
PROMPT_BLOCKS = Counter(
    "penstock_router_prompt_blocks", "KV blocks of the prompts that were sent to a worker.",
    ("model",),
)  # fmt: skip
OVERLAP_BLOCKS = Counter(
    "penstock_router_overlap_blocks",
    "Those of them that the router believed to be in the chosen worker's KV cache.",
    ("model",),
)
KV_EVENTS = Counter(
    "penstock_router_kv_events",
    "Changes in workers' KV caches that were applied: blocks stored, blocks removed, all"
    " cleared; and snapshots that replaced all that was known.",
    ("model", "type"),
)  # fmt: skip
KV_RESYNCS = Counter(
    "penstock_router_kv_resyncs", "Gaps in workers' KV events, each followed by a snapshot.",
    ("model",),
)  # fmt: skip
EVENT_LAG = Histogram(
    "penstock_router_kv_event_lag_seconds",
    "From a change in a worker's KV cache to the router's knowledge of it, by both wall clocks.",
    ("model",),
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5),
)
INDEX_BLOCKS = Gauge(
    "penstock_router_index_blocks", "KV blocks that the router knows of, by worker.",
    ("model", "worker"),
)  # fmt: skip
INDEX_EVICTED = Gauge(
    "penstock_router_index_evicted_blocks",
    "KV blocks that the router has forgotten to keep within its memory bound.",
    ("model",),
)
STALLED = Gauge(
    "penstock_workers_stalled", "Workers that have requests and make no progress.", ("model",)
)
CONNECTED = Gauge("penstock_workers_connected", "Workers that can take requests.", ("model",))
UNLOADED = Gauge(
    "penstock_workers_unloaded", "Workers whose model was unloaded by a client.", ("model",)
)


def begin_model(model: str) -> None:
    """Begin at 0 what may go wrong: to Prometheus the first value of a series is no increase."""
    RETRIES.labels(model)
    KV_RESYNCS.labels(model)
    STALLED.labels(model)
    UNLOADED.labels(model)


def forget_model(model: str) -> None:
    """Remove the series that tell how things stand with a model that is served here no more."""
    for gauge in (CONNECTED, STALLED, UNLOADED, INDEX_EVICTED):
        with suppress(KeyError):
            gauge.remove(model)


def forget_worker(model: str, worker: str, policy: str) -> None:
    """Remove the series of a worker that has left: ids are never used again."""
    with suppress(KeyError):
        DECISIONS.remove(model, worker, policy)
    forget_index(model, worker)


def forget_index(model: str, worker: str) -> None:
    """Remove what an index holds of a worker that cannot be reached."""
    with suppress(KeyError):
        INDEX_BLOCKS.remove(model, worker)


def show_index(model: str, workers: Collection[str], stats: RouterStats) -> None:
    """Show how many blocks a router knows of each of these workers."""
    blocks = dict.fromkeys(workers, 0)
    for place, count in stats.blocks.items():
        if place.worker_id in blocks:
            blocks[place.worker_id] += count
    for worker_id, count in blocks.items():
        INDEX_BLOCKS.labels(model, worker_id).set(count)
    INDEX_EVICTED.labels(model).set(stats.evicted)
