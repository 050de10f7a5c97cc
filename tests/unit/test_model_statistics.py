"""The sums of ModelStatistics, from the times of requests."""

from typing import Any

import pytest

from runtime.errors import Cancelled, ServingError, WorkerLost
from runtime.request_record import RequestRecord
from server.kserve_statistics import encode_statistics
from server.model_statistics import Durations, ModelStatistics

S = 1_000_000_000


def record(**times: Any) -> RequestRecord:
    """Admitted at 10 s, first token at 13 s, last one at 17 s unless told otherwise."""
    made = RequestRecord(request_id="r", endpoint="test", started_s=10.0)
    made.first_s, made.last_s = 13.0, 17.0
    for name, value in times.items():
        setattr(made, name, value)
    return made


def end(
    stats: ModelStatistics,
    of: RequestRecord,
    error: ServingError | None = None,
    *,
    sent_s: float = 12.0,
    streamed: bool = False,
) -> None:
    stats.ended(of, error, sent_s=sent_s, streamed=streamed, now=18.0)


def test_a_complete_request_is_split_into_waits_encoding_and_the_workers_work() -> None:
    stats = ModelStatistics()
    end(stats, record(queued_s=1.5, engine_queued_s=0.25))
    assert stats.success == Durations(1, 8 * S)
    assert stats.queue == Durations(1, 1_750_000_000)
    assert stats.compute_input == Durations(1, 500_000_000)
    assert stats.compute_infer == Durations(1, 4_750_000_000)
    assert stats.fail == Durations()
    whole = (stats.queue, stats.compute_input, stats.compute_infer)
    assert sum(part.ns for part in whole) == 7 * S  # up to the last token, a second before the end


@pytest.mark.parametrize(("cached", "hits", "misses"), [(0, 0, 1), (16, 1, 0)])
def test_a_request_with_cached_tokens_is_a_hit(cached: int, hits: int, misses: int) -> None:
    stats = ModelStatistics()
    end(stats, record(cached_tokens=cached))
    assert (stats.cache_hit.count, stats.cache_miss.count) == (hits, misses)
    assert stats.cache_hit.ns + stats.cache_miss.ns == 1 * S


def test_what_fails_counts_as_nothing_else() -> None:
    stats = ModelStatistics()
    end(stats, record(), WorkerLost("gone"))
    end(stats, record(first_s=None), Cancelled("gone"), sent_s=0.0)
    assert stats.fail == Durations(2, 16 * S)
    assert not any(
        it.count
        for it in (stats.success, stats.queue, stats.compute_infer, stats.cache_miss)
    )  # fmt: skip


def test_streams_are_told_by_their_first_and_final_response() -> None:
    stats = ModelStatistics()
    end(stats, record(), streamed=True)
    end(stats, record(), WorkerLost("gone"), streamed=True)
    end(stats, record(), Cancelled("gone"), streamed=True)
    end(stats, record(first_s=None), Cancelled("gone"), streamed=True)
    end(stats, record(first_s=None), WorkerLost("gone"), streamed=True)
    end(stats, record(), streamed=False)
    first, final = stats.first_response, stats.final_response
    assert first.success == Durations(3, 9 * S)
    assert first.compute_infer == Durations(3, 3 * S)
    assert (first.fail.count, first.cancel.count) == (1, 1)
    assert final.success == Durations(1, 5 * S)
    assert final.compute_infer == Durations(1, 4 * S)
    assert (final.fail.count, final.cancel.count) == (1, 1)


def test_a_clock_that_steps_back_makes_no_negative_time() -> None:
    stats = ModelStatistics()
    end(stats, record(last_s=11.0))
    assert stats.compute_infer == Durations(1, 0)


def test_the_message_has_what_was_counted_and_says_that_decoding_was_not_timed() -> None:
    stats = ModelStatistics()
    written = encode_statistics("m", stats)
    assert (written.name, written.version, written.last_inference) == ("m", "1", 0)
    assert not written.response_stats
    end(stats, record(), streamed=True)
    written = encode_statistics("m", stats)
    assert written.last_inference > 0
    assert (written.inference_count, written.execution_count) == (1, 1)
    sums = written.inference_stats
    assert (sums.success.count, sums.success.ns) == (1, 8 * S)
    assert (sums.compute_output.count, sums.compute_output.ns) == (1, 0)
    assert set(written.response_stats) == {"0", "final"}
    assert written.response_stats["0"].success.ns == 3 * S
    assert not written.batch_stats
