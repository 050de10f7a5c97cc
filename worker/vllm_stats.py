"""The engine's load, as vLLM's scheduler reports it once per step."""

import logging
from typing import Any

from worker.engine import EngineLoad

log = logging.getLogger(__name__)


class LoadRecord:
    """The last reports of all data-parallel ranks, added up."""

    def __init__(self) -> None:
        self._ranks: dict[int, EngineLoad] = {}

    def load(self) -> EngineLoad:
        """Return the sum; `kv_usage` is the mean of the ranks."""
        ranks = list(self._ranks.values()) or [EngineLoad()]
        return EngineLoad(
            running=sum(rank.running for rank in ranks),
            waiting=sum(rank.waiting for rank in ranks),
            kv_usage=sum(rank.kv_usage for rank in ranks) / len(ranks),
        )

    def note(self, rank: int, stats: Any) -> None:
        """Keep a rank's vllm.v1.metrics.stats.SchedulerStats."""
        self._ranks[rank] = EngineLoad(
            running=stats.num_running_reqs,
            waiting=stats.num_waiting_reqs + stats.num_skipped_waiting_reqs,
            kv_usage=stats.kv_cache_usage,
        )

    def logger(self, vllm_config: Any, engine_index: int = 0) -> Any:
        """Return a vLLM StatLoggerBase that reports here."""
        from vllm.v1.metrics.loggers import StatLoggerBase

        record = self

        class Logger(StatLoggerBase):  # type: ignore[misc]
            def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
                self.engine_index = engine_index

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

        return Logger(vllm_config, engine_index)
