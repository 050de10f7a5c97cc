"""One view of several processes' metrics: each series keeps its value and says whose it is."""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from runtime.status_client import ANSWER_LIMIT_S, ask_all

_LABEL = "process"
_FAILURES = Counter(
    "penstock_scrape_failures",
    "Times a child process did not give its metrics to its parent in time.",
    ("child",),
)


class MergedRegistry:
    """What StatusServer takes for a registry: the children's metrics and this process's own.

    `sources` returns {process: URL of its metrics} of those that should answer. `collect` asks
    them all at the same time and blocks for at most `limit_s` seconds; who does not answer is left
    out and counted. A sample that has a label `process` already keeps it as `exported_process`,
    as Prometheus does.
    """

    def __init__(
        self,
        own_name: str,
        sources: Callable[[], Mapping[str, str]],
        *,
        own: CollectorRegistry = REGISTRY,
        limit_s: float = ANSWER_LIMIT_S,
    ) -> None:
        self._own_name, self._own = own_name, own
        self._sources = sources
        self._limit_s = limit_s

    def collect(self) -> Iterable[Metric]:
        """Return the families, each with the samples of all processes."""
        urls = self._sources()
        answers = ask_all(urls, limit_s=self._limit_s)
        families: dict[str, Metric] = {}
        for process in urls:
            try:
                answer = answers[process]
                parsed = _parse(answer.body) if answer.status == 200 else None
            except (KeyError, ValueError):
                parsed = None
            if parsed is None:
                _FAILURES.labels(process).inc()
            else:
                _add(families, process, parsed)
        # By way of text like the others, so that equal families have equal names and types.
        _add(families, self._own_name, _parse(generate_latest(self._own)))
        return families.values()


def _parse(text: bytes) -> list[Metric]:
    return list(text_string_to_metric_families(text.decode()))


def _add(families: dict[str, Metric], process: str, metrics: Iterable[Metric]) -> None:
    for metric in metrics:
        # The time a counter was made is a sample of its family, though text has no place for it.
        name = metric.name.removesuffix("_created")
        family = families.get(name) or families.get(metric.name)
        if family is None:
            family = Metric(metric.name, metric.documentation, metric.type)
            families[metric.name] = family
        for sample in metric.samples:
            labels = dict(sample.labels)
            if _LABEL in labels:
                labels[f"exported_{_LABEL}"] = labels.pop(_LABEL)
            family.samples.append(sample._replace(labels={**labels, _LABEL: process}))
