"""Several front doors count as one."""

from pathlib import Path

from runtime.request_record import RequestRecord
from server.group_statistics import GroupStatistics
from server.model_statistics import Durations, ModelStatistics


def count(of: GroupStatistics, model: str, *, started_s: float = 10.0) -> None:
    record = RequestRecord(request_id="r", endpoint="test", started_s=started_s)
    record.first_s, record.last_s = started_s + 2, started_s + 3
    of.own[model].ended(
        record, None, sent_s=started_s + 1, streamed=True, now=started_s + 4
    )  # fmt: skip


def test_alone_a_front_door_tells_what_it_has_counted() -> None:
    alone = GroupStatistics()
    count(alone, "m")
    alone.share()
    assert alone.of("m") == alone.own["m"]
    assert alone.of("other") == ModelStatistics()


def test_what_others_have_shared_is_added(tmp_path: Path) -> None:
    one, other = GroupStatistics(tmp_path), GroupStatistics(tmp_path)
    count(one, "m", started_s=10.0)
    count(other, "m", started_s=50.0)
    count(other, "n")
    other.share()
    total = one.of("m")
    assert total.success == Durations(2, 8_000_000_000)
    assert total.first_response.compute_infer == Durations(2, 2_000_000_000)
    assert total.last_s == 50.0
    assert one.of("n").success.count == 1
    assert other.of("m").success.count == 1
    one.share()
    assert other.of("m") == total


def test_what_was_counted_by_one_that_has_ended_stays_counted(tmp_path: Path) -> None:
    before = GroupStatistics(tmp_path)
    count(before, "m")
    before.share()
    after = GroupStatistics(tmp_path)
    count(after, "m")
    after.share()
    assert after.of("m").success.count == GroupStatistics(tmp_path).of("m").success.count == 2
