"""ModelStatistics in the words of Triton's statistics extension."""

import time
from datetime import UTC, datetime
from typing import Any

from runtime.rpc import CallInfo
from server.fleet import Fleet
from server.group_statistics import GroupStatistics
from server.model_statistics import Durations, ModelStatistics, ResponseStatistics
from wire import inference_pb2 as pb
from wire.kserve_terms import check_version
from wire.text_schema import MODEL_VERSION

FIRST_RESPONSE = "0"
FINAL_RESPONSE = "final"
"""Keys of `response_stats`: an index for each token would be a count for each token."""


class StatisticsCalls:
    """The handler of ModelStatistics."""

    def __init__(self, fleet: Fleet, statistics: GroupStatistics) -> None:
        self._fleet = fleet
        self._statistics = statistics

    async def statistics(self, message: Any, info: CallInfo) -> Any:
        """ModelStatistics of one model, or of all when none is named; raises ModelNotFound."""
        models = [self._fleet.model(message.name)] if message.name else self._fleet.models()
        check_version(message.name, message.version)
        return pb.ModelStatisticsResponse(
            model_stats=[
                encode_statistics(it.card.name, self._statistics.of(it.card.name)) for it in models
            ]
        )


def encode_statistics(model: str, stats: ModelStatistics) -> pb.ModelStatistics:
    """Write a model's sums.

    Turning tokens into text goes on beside the engine's work and is not measured: compute_output
    counts without time. What the engine batches is its own matter, so that an inference is an
    execution and batch_stats stay empty.
    """
    done = stats.success.count
    responses = {FIRST_RESPONSE: stats.first_response, FINAL_RESPONSE: stats.final_response}
    return pb.ModelStatistics(
        name=model,
        version=MODEL_VERSION,
        last_inference=0 if stats.last_s is None else _epoch_ms(stats.last_s),
        inference_count=done,
        execution_count=done,
        inference_stats=pb.InferStatistics(
            success=_written(stats.success),
            fail=_written(stats.fail),
            queue=_written(stats.queue),
            compute_input=_written(stats.compute_input),
            compute_infer=_written(stats.compute_infer),
            compute_output=pb.StatisticDuration(count=done),
            cache_hit=_written(stats.cache_hit),
            cache_miss=_written(stats.cache_miss),
        ),
        response_stats={key: _response(it) for key, it in responses.items() if _any(it)},
    )


def _epoch_ms(monotonic_s: float) -> int:
    """A time of `time.monotonic` in ms since the Unix epoch, by what both clocks say now."""
    age_s = time.monotonic() - monotonic_s
    return round((datetime.now(UTC).timestamp() - age_s) * 1000)


def _response(stats: ResponseStatistics) -> pb.InferResponseStatistics:
    return pb.InferResponseStatistics(
        compute_infer=_written(stats.compute_infer),
        compute_output=pb.StatisticDuration(count=stats.compute_infer.count),
        success=_written(stats.success),
        fail=_written(stats.fail),
        cancel=_written(stats.cancel),
    )


def _any(stats: ResponseStatistics) -> bool:
    return bool(stats.success.count or stats.fail.count or stats.cancel.count)


def _written(durations: Durations) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=durations.count, ns=durations.ns)
