"""What every process measures of itself, and the operator's choice of the metrics' prefix.

Metrics are declared beside what they count, in prometheus_client's default registry, and all
begin with `penstock_`.
"""

import platform
from collections.abc import Iterable
from copy import copy
from importlib.metadata import version
from typing import Protocol

from prometheus_client import Gauge, Histogram, Metric

PREFIX = "penstock"

# Two per decade up to 100 ms, then what hurts: 5 s is a client's time-out for a health check.
EVENT_LOOP_LAG = Histogram(
    "penstock_event_loop_lag_seconds",
    "How much later than asked the event loop ran a timer, measured once a second.",
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 5, 30),
)
_BUILD_INFO = Gauge(
    "penstock_build_info", "Always 1; the labels say what runs.", ("process", "version", "python")
)


class Collecting(Protocol):
    """What metrics are read from: a CollectorRegistry, or something that looks like one."""

    def collect(self) -> Iterable[Metric]:
        """Return the families with their samples."""
        ...


def set_build_info(process: str) -> None:
    """Say what kind of process this is."""
    _BUILD_INFO.labels(process, version("penstock"), platform.python_version()).set(1)


class PrefixedRegistry:
    """A registry whose `penstock_` metrics are shown with another prefix; others stay as named."""

    def __init__(self, registry: Collecting, prefix: str) -> None:
        self._registry = registry
        self._prefix = prefix

    def collect(self) -> Iterable[Metric]:
        """Return renamed copies."""
        return [self._renamed(metric) for metric in self._registry.collect()]

    def _renamed(self, metric: Metric) -> Metric:
        if self._prefix == PREFIX or not metric.name.startswith(f"{PREFIX}_"):
            return metric
        shown = copy(metric)
        shown.name = self._prefix + metric.name.removeprefix(PREFIX)
        shown.samples = [
            sample._replace(name=self._prefix + sample.name.removeprefix(PREFIX))
            for sample in metric.samples
        ]
        return shown
