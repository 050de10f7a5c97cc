"""The worker's Prometheus metrics, read at each scrape from what the worker counts anyway."""

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from worker.service import WorkerService
from worker.watch import EngineWatch

_PREFIX = "penstock_worker"


class WorkerCollector(Collector):
    """Reads one worker; called on the status port's thread, so that a token costs no metric."""

    def __init__(self, service: WorkerService, watch: EngineWatch, model: str) -> None:
        self._service = service
        self._watch = watch
        self._model = model

    def collect(self) -> Iterator[Metric]:
        """Yield gauges, then counters."""
        load, flights = self._service.load(), self._service.flights
        for name, text, value in (
            ("requests_running", "Requests the engine computes tokens for.", load.running),
            ("requests_waiting", "Requests that wait in the engine's queue.", load.waiting),
            ("requests_in_flight", "Requests accepted and not ended.", len(flights)),
            ("kv_cache_usage_ratio", "Share of KV blocks that live requests hold.", load.kv_usage),
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
        yield self._outcomes("requests", "Requests by how they ended.", flights.outcomes)
        canaries = self._watch.canary_outcomes
        yield self._outcomes("canary", "Canaries by how they ended.", canaries)

    def _outcomes(self, name: str, text: str, counts: Mapping[str, int]) -> Metric:
        family = CounterMetricFamily(f"{_PREFIX}_{name}", text, labels=("model", "outcome"))
        # A copy: the event loop may add an outcome meanwhile.
        for outcome, count in dict(counts).items():
            family.add_metric((self._model, outcome), count)
        return family
