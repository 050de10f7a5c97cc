"""The worker's Prometheus gauges, read from the engine's last known load at each scrape."""

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from worker.service import WorkerService


class WorkerCollector(Collector):
    """Reads one worker's load; called on the status port's thread."""

    def __init__(self, service: WorkerService, model: str) -> None:
        self._service = service
        self._model = model

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges."""
        load = self._service.load()
        for name, text, value in (
            ("requests_running", "Requests the engine computes tokens for.", load.running),
            ("requests_waiting", "Requests that wait in the engine's queue.", load.waiting),
            ("requests_in_flight", "Requests accepted and not answered.", self._service.in_flight),
            ("kv_cache_usage_ratio", "Share of KV blocks that live requests hold.", load.kv_usage),
        ):
            gauge = GaugeMetricFamily(f"penstock_worker_{name}", text, labels=("model",))
            gauge.add_metric((self._model,), value)
            yield gauge
