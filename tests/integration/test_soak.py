"""The soak in miniature, with real processes."""

import pytest

from benchmarks.soak.command import KINDS, Soak, soak_processes
from benchmarks.soak.levels import COUNTED


@pytest.mark.timeout(240)
def test_after_a_mixed_load_every_request_has_ended_once_and_everything_is_back() -> None:
    lines: list[str] = []
    soak = Soak(duration_s=4, clients=8, seed=5, burst_every_s=1.5, look_every_s=1)
    report = soak_processes(soak, lines.append)
    assert report["failures"] == []
    assert report["by_kind"].keys() >= {kind.name for kind in KINDS}
    for outcome in ("ok", "overloaded", "left", "refused"):
        assert report["outcomes"][outcome] > 0
    for about in report["processes"].values():
        levels = {name: at for name, at in about["levels"].items() if name in COUNTED}
        assert levels.keys() >= {"event_loop_tasks", "grpc_calls_in_flight"}
        assert all(at["after"] == at["before"] for at in levels.values())
    assert lines
