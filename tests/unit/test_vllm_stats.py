"""vLLM's reports, one per step and rank, as one load. Needs no vLLM."""

from types import SimpleNamespace
from typing import Any

from worker.engine import EngineLoad
from worker.vllm_stats import LoadRecord


def report(running: int = 0, kv_usage: float = 0.0, queries: int = 0, hits: int = 0) -> Any:
    return SimpleNamespace(
        num_running_reqs=running,
        num_waiting_reqs=0,
        num_skipped_waiting_reqs=running,
        kv_cache_usage=kv_usage,
        prefix_cache_stats=SimpleNamespace(queries=queries, hits=hits),
    )


def test_reports_add_up_over_steps_and_ranks() -> None:
    record = LoadRecord()
    assert record.load() == EngineLoad()
    record.note(0, report(running=2, kv_usage=0.5, queries=40, hits=32))
    record.note(1, report(running=1, kv_usage=0.25, queries=10))
    record.note(0, report(running=1, kv_usage=0.25, queries=5, hits=1))
    load = record.load()
    assert (load.running, load.waiting, load.kv_usage, load.steps) == (2, 2, 0.25, 3)
    assert (load.cache_queried_tokens, load.cache_hit_tokens) == (55, 33)
    first, second, third = record.loads(3)
    assert (first.running, first.waiting, first.kv_usage, first.steps) == (1, 1, 0.25, 2)
    assert (second.cache_queried_tokens, second.cache_hit_tokens) == (10, 0)
    assert third == EngineLoad()


def test_each_report_is_told() -> None:
    record, heard = LoadRecord(), []
    record.changed.add(lambda: heard.append(record.load().steps))
    record.note(0, report())
    record.note(1, report())
    assert heard == [1, 2]


def test_the_last_step_is_that_of_the_busy_rank_furthest_behind() -> None:
    record = LoadRecord()
    record.note(0, report(running=1))
    first_s = record.load().stepped_s
    record.note(1, report(running=1))
    assert record.load().stepped_s == first_s
    record.note(0, report())
    second_s = record.load().stepped_s
    record.note(1, report())
    third_s = record.load().stepped_s
    assert None not in (first_s, second_s, third_s)
    assert first_s < second_s < third_s  # type: ignore[operator]
