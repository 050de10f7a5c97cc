"""The engine's load and counts, as vLLM's scheduler reports them once per step."""

import logging
import time
from typing import Any

from worker.engine import EngineLoad
from worker.listeners import Listeners

log = logging.getLogger(__name__)


class _Rank:
    """What one data-parallel rank reported last, and what it has counted."""

    def __init__(self) -> None:
        self.running = 0
        self.waiting = 0
        self.kv_usage = 0.0
        self.steps = 0
        self.stepped_s = 0.0
        self.queried_tokens = 0
        self.hit_tokens = 0

    def note(self, stats: Any) -> None:
        """Take over a vllm.v1.metrics.stats.SchedulerStats; its cache counts are of this step."""
        self.running = stats.num_running_reqs
        self.waiting = stats.num_waiting_reqs + stats.num_skipped_waiting_reqs
        self.kv_usage = stats.kv_cache_usage
        self.steps += 1
        self.stepped_s = time.monotonic()
        self.queried_tokens += stats.prefix_cache_stats.queries
        self.hit_tokens += stats.prefix_cache_stats.hits

    def load(self) -> EngineLoad:
        """Return it as a load."""
        return EngineLoad(
            running=self.running,
            waiting=self.waiting,
            kv_usage=self.kv_usage,
            steps=self.steps,
            stepped_s=self.stepped_s or None,
            cache_queried_tokens=self.queried_tokens,
            cache_hit_tokens=self.hit_tokens,
        )


class LoadRecord:
    """The last reports of all data-parallel ranks, one by one and added up."""

    def __init__(self) -> None:
        self.changed = Listeners()
        self._ranks: dict[int, _Rank] = {}

    def load(self) -> EngineLoad:
        """Return the sum; `kv_usage` is the mean of the ranks."""
        ranks = list(self._ranks.values())
        if not ranks:
            return EngineLoad()
        busy = [rank.stepped_s for rank in ranks if rank.running + rank.waiting]
        return EngineLoad(
            running=sum(rank.running for rank in ranks),
            waiting=sum(rank.waiting for rank in ranks),
            kv_usage=sum(rank.kv_usage for rank in ranks) / len(ranks),
            steps=sum(rank.steps for rank in ranks),
            stepped_s=min(busy) if busy else max(rank.stepped_s for rank in ranks),
            cache_queried_tokens=sum(rank.queried_tokens for rank in ranks),
            cache_hit_tokens=sum(rank.hit_tokens for rank in ranks),
        )

    def loads(self, size: int) -> tuple[EngineLoad, ...]:
        """Return the loads of the ranks below `size`; who has made no step yet has none."""
        idle = _Rank()
        return tuple(self._ranks.get(rank, idle).load() for rank in range(size))

    def note(self, rank: int, stats: Any) -> None:
        """Keep a rank's SchedulerStats."""
        self._ranks.setdefault(rank, _Rank()).note(stats)
        self.changed.tell()

    def logger_class(self) -> type:
        """Return the class of a vLLM stat logger that reports here.

        It passes for vLLM's own Prometheus logger, because vLLM adds that one unless it is given
        one: forty metrics of other names, fed once per token.
        """
        from vllm.v1.metrics.loggers import PrometheusStatLogger

        record = self

        class Logger(PrometheusStatLogger):  # type: ignore[misc]
            def __init__(self, vllm_config: Any, engine_indexes: Any = None) -> None:
                self.engine_indexes = engine_indexes

            def record(
                self,
                scheduler_stats: Any,
                iteration_stats: Any,
                mm_cache_stats: Any = None,
                engine_idx: int = 0,
            ) -> None:
                # An exception here would put the whole engine into error for good.
                try:
                    if scheduler_stats is not None:
                        record.note(engine_idx, scheduler_stats)
                except Exception:
                    log.exception("the engine's load cannot be read")

            def log_engine_initialized(self) -> None:
                pass

            def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
                pass

            def record_admission_rejection(self, reason: str) -> None:
                pass

        return Logger
