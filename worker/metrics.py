"""The worker's Prometheus metrics, read at each scrape from what the worker counts anyway."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from worker.fleet_service import FleetService
from worker.service import WorkerService
from worker.watch import EngineWatch

_PREFIX = "penstock_worker"


class WorkerCollector(Collector):
    """Reads one worker; called on the status port's thread, so that a token costs no metric."""

    def __init__(self, service: WorkerService, watch: EngineWatch, fleet: FleetService) -> None:
        self._service = service
        self._watch = watch
        self._fleet = fleet
        self._model = service.card.name

    def collect(self) -> Iterator[Metric]:
        """Yield gauges, then counters."""
        load, flights = self._service.load(), self._service.flights
        fleet, kv_logs = self._fleet, self._fleet.kv_logs
        for name, text, value in (
            ("requests_running", "Requests the engine computes tokens for.", load.running),
            ("requests_waiting", "Requests that wait in the engine's queue.", load.waiting),
            ("requests_in_flight", "Requests accepted and not ended.", len(flights)),
            ("kv_cache_usage_ratio", "Share of KV blocks that live requests hold.", load.kv_usage),
            ("kv_blocks", "Different KV blocks that can be found.", sum(map(len, kv_logs))),
            ("kv_subscribers", "Calls that watch KV events.", fleet.kv_subscribers),
        ):
            gauge = GaugeMetricFamily(f"{_PREFIX}_{name}", text, labels=("model",))
            gauge.add_metric((self._model,), value)
            yield gauge
        for name, text, count in (
            ("engine_steps", "Steps the engine has made.", load.steps),
            ("output_tokens", "Tokens generated.", flights.output_tokens),
            ("frames_sent", "Step frames sent to front doors.", flights.frames_sent),
            (
                "prefix_cache_queries_tokens",
                "Prompt tokens looked up in the prefix cache.",
                load.cache_queried_tokens,
            ),
            (
                "prefix_cache_hits_tokens",
                "Prompt tokens found in the prefix cache.",
                load.cache_hit_tokens,
            ),
        ):
            counter = CounterMetricFamily(f"{_PREFIX}_{name}", text, labels=("model",))
            counter.add_metric((self._model,), count)
            yield counter
        canaries = self._watch.canary_outcomes
        for name, text, label, counts in (
            ("requests", "Requests by how they ended.", "outcome", [flights.outcomes]),
            ("canary", "Canaries by how they ended.", "outcome", [canaries]),
            ("kv_events", "KV events by type.", "type", [it.told for it in kv_logs]),
            ("kv_gaps", "Gaps in the engine's events.", "outcome", [it.gaps for it in kv_logs]),
            ("kv_blocks_ignored", "KV blocks not told.", "reason", [it.ignored for it in kv_logs]),
        ):
            yield self._counts(name, text, label, counts)

    def _counts(
        self, name: str, text: str, label: str, counts: Sequence[Mapping[str, int]]
    ) -> Metric:
        family = CounterMetricFamily(f"{_PREFIX}_{name}", text, labels=("model", label))
        total: Counter[str] = Counter()
        for each in counts:
            # A copy: the event loop may add a value meanwhile.
            total.update(dict(each))
        for value, count in total.items():
            family.add_metric((self._model, value), count)
        return family
