"""Busy thresholds that several front doors share."""

from pathlib import Path

from server.thresholds import SharedThresholds
from wire.routes import Thresholds

HALF = Thresholds(active_decode_blocks=0.5)
FEW = Thresholds(active_prefill_tokens=100)


def test_what_one_sets_the_others_see_at_their_next_look(tmp_path: Path) -> None:
    one, other = (SharedThresholds(tmp_path / "thresholds.json") for _ in range(2))
    assert not other.look()
    one.put("a", HALF)
    assert other.of("a") is None
    assert other.look()
    assert other.of("a") == HALF
    assert not other.look()


def test_setting_one_model_keeps_what_others_have_set_meanwhile(tmp_path: Path) -> None:
    one, other = (SharedThresholds(tmp_path / "thresholds.json") for _ in range(2))
    one.put("a", HALF)
    other.put("b", FEW)
    one.put("a", Thresholds())
    assert other.look()
    assert (other.of("a"), other.of("b")) == (Thresholds(), FEW)
    late = SharedThresholds(tmp_path / "thresholds.json")
    assert late.look()
    assert late.of("b") == FEW


def test_without_a_file_they_stay_here() -> None:
    alone = SharedThresholds()
    alone.put("a", HALF)
    assert alone.of("a") == HALF
    assert not alone.look()


def test_a_file_that_cannot_be_read_leaves_what_is_known_and_is_looked_at_when_it_changes(
    tmp_path: Path,
) -> None:
    shared = SharedThresholds(tmp_path / "thresholds.json")
    shared.put("m", Thresholds(active_prefill_tokens=5))
    (tmp_path / "thresholds.json").write_bytes(b'{"m": 7')
    assert not shared.look()
    assert shared.of("m") == Thresholds(active_prefill_tokens=5)
    SharedThresholds(tmp_path / "other.json").put("m", Thresholds(active_prefill_tokens=9))
    (tmp_path / "other.json").rename(tmp_path / "thresholds.json")
    assert shared.look()
    assert shared.of("m") == Thresholds(active_prefill_tokens=9)
