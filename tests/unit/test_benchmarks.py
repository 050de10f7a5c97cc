"""What the benchmarks conclude from what they see, and that their command line is understood."""

import asyncio
from random import Random
from typing import Any

import pytest

from benchmarks import router_speed, turns
from benchmarks.__main__ import parse
from benchmarks.overload import command as overload
from benchmarks.overload.generator import Fate, Plan
from benchmarks.soak import command as soak
from benchmarks.soak.kserve_visits import Answers, ask
from benchmarks.soak.ledger import OK, Fault, Kind, Ledger, Site
from benchmarks.soak.levels import Sample, growth, not_back
from benchmarks.soak.openai_visits import Events
from benchmarks.suite import cases
from benchmarks.suite import command as suite
from benchmarks.suite.client import lags
from benchmarks.suite.jobs import GRPC_STREAM, Case, Outcome, Spread
from benchmarks.suite.report import row
from wire.generate import ChoiceDelta, GenerateDelta, Usage
from worker.sim_timing import Chunk, SimTiming

PLAN = Plan(address="", duration_s=30, tokens=(1, 1), prompt_words=1, patience_s=10, seed=1)


def test_without_a_command_the_suite_runs() -> None:
    assert parse([]).run is suite.run
    options = parse(["--quick", "--repeats", "2"])
    assert (options.run, options.quick, options.repeats) == (suite.run, True, 2)


def test_each_command_has_options_of_its_own() -> None:
    options = parse(["soak", "--minutes", "0.5", "--json"])
    assert (options.run, options.minutes, options.json) == (soak.run, 0.5, True)
    options = parse(["router-speed", "--blocks", "1000"])
    assert (options.run, options.blocks) == (router_speed.run, 1000)
    options = parse(["overload", "--queue-limit", "3"])
    assert (options.run, options.queue_limit) == (overload.run, 3)
    options = parse(["turns", "--words", "10"])
    assert (options.run, options.words) == (turns.run, [10])
    with pytest.raises(SystemExit):
        parse(["soak", "--streams", "8"])


def site() -> Site:
    nothing: Any = None
    return Site(grpc="", http="", channels=[], client=nothing)


def delta(*ids: int, usage: int | None = None) -> GenerateDelta:
    told = None if usage is None else Usage(prompt_tokens=1, completion_tokens=usage)
    return GenerateDelta(choices=[ChoiceDelta(token_ids=list(ids))], usage=told)


def test_an_answer_with_its_end_is_good_once_all_its_tokens_came() -> None:
    request = ask(Random(1))
    answers = Answers(site(), [request])
    answers.take_delta(request.request_id, delta(1, 2))
    assert not answers.complete
    answers.take_delta(request.request_id, delta(3, usage=3))
    assert answers.complete
    assert answers.outcomes() == [OK]


def test_lost_tokens_and_answers_of_others_are_faults() -> None:
    first, second = (ask(Random(1)) for _ in range(2))
    answers = Answers(site(), [first, second])
    answers.take_delta(first.request_id, delta(1, 2, usage=2))
    with pytest.raises(Fault, match="tokens of another request"):
        answers.take_delta(second.request_id, delta(1, 3, usage=2))
    with pytest.raises(Fault, match="1 tokens came, 2 were counted"):
        Answers(site(), [first]).take_delta(first.request_id, delta(1, usage=2))
    with pytest.raises(Fault, match="nobody asked"):
        answers.take_delta("stranger", delta(1))


def test_events_after_the_end_and_choices_without_one_are_faults() -> None:
    events = Events(choices=1)
    with pytest.raises(Fault, match="0 of 1 choices were finished"):
        events.take("data: [DONE]")
    for line in ('data: {"choices": [{"index": 0, "finish_reason": "stop"}]}', "", "data: [DONE]"):
        events.take(line)
    assert events.end == OK
    with pytest.raises(Fault, match="went on after its end"):
        events.take('data: {"error": {"code": "internal"}}')


async def test_a_visit_is_accounted_for_and_what_is_unexpected_is_a_fault() -> None:
    async def good(place: Site, rng: Random) -> list[str]:
        return [OK, OK]

    async def strange(place: Site, rng: Random) -> list[str]:
        return ["internal"]

    async def broken(place: Site, rng: Random) -> list[str]:
        raise ExceptionGroup("many", [Fault("two ends")])

    ledger = Ledger()
    async with asyncio.TaskGroup() as group:
        for visit in (good, strange, broken):
            kind = Kind(visit.__name__, 1, visit)
            group.create_task(ledger.play(kind, site(), Random(1)))
    assert ledger.outcomes["good"] == {OK: 2}
    assert ledger.faults == ["strange: ended with internal", "broken: Fault('two ends')"]


def sample(at_s: float = 0.0, rss_mib: float = 100.0, **levels: float) -> Sample:
    return Sample(at_s=at_s, rss_mib=rss_mib, cpu_s=0.0, levels=levels)


def test_levels_that_did_not_return_are_named() -> None:
    before = {"door": sample(descriptors=20, threads=9, requests_in_flight=0)}
    assert not_back(before, before) == []
    after = {"door": sample(descriptors=18, threads=11, requests_in_flight=-1)}
    assert not_back(before, after) == ["door: requests_in_flight is -1, was 0 before the load"]
    after = {"door": sample(descriptors=21, threads=12, requests_in_flight=0)}
    assert len(not_back(before, after)) == 2


def test_memory_is_fitted_over_the_second_half() -> None:
    looks = [sample(at_s=30.0 * n, rss_mib=100 + max(0, n - 5)) for n in range(10)]
    fit = growth(looks)
    assert fit is not None
    assert (fit.samples, fit.mib, fit.mib_per_hour, fit.r_squared) == (5, 4.0, 120.0, 1.0)
    assert growth(looks[:6]) is None


def test_overload_counts_what_came_after_clients_gave_up_for_the_first_time() -> None:
    fates = [
        Fate(1.0, 1.0, 1.5, 2.0, "ok", 10),  # before that
        Fate(11.0, 11.0, 12.0, 15.0, "ok", 20),
        Fate(12.0, 12.5, 15.0, 40.0, "ok", 30),  # ended too late
        Fate(13.0, 13.0, 13.1, 13.1, "overloaded", 0),
        Fate(14.0, 14.0, None, 24.0, "deadline_exceeded", 0),
    ]
    about = overload.summary(fates, PLAN, load=4.0)
    assert about["goodput_requests_per_s"] == 0.05
    assert about["goodput_tokens_per_s"] == 1.0
    assert about["outcomes"] == {"ok": 0.5, "overloaded": 0.25, "deadline_exceeded": 0.25}
    assert about["ttft_p50_ms"] == 3000
    assert about["generator_late_p99_ms"] > 400


def test_what_is_left_at_the_highest_load_is_told_as_ratios() -> None:
    runs = [
        {"load": load, "goodput_requests_per_s": goodput, "ttft_p99_ms": ttft}
        for load, goodput, ttft in ((0.5, 5.0, 50.0), (1.0, 9.0, 100.0), (4.0, 8.1, 150.0))
    ]
    assert overload.ratios(runs) == {"goodput_over_best": 0.9, "ttft_p99_over_1x": 1.5}


def test_the_router_is_measured_on_prompts_that_it_knows_and_does_not() -> None:
    figures = router_speed.decision(tokens=64, places=4, repeats=3)
    assert min(figures["known"], figures["unknown"]) > figures["hashing"] > 0


def test_every_figure_of_the_routers_index_is_above_zero() -> None:
    figures = router_speed.index_figures(blocks=2000)
    assert min(value for name, value in figures.items() if name != "restore_s") > 0


def test_a_steady_stream_has_no_lag() -> None:
    assert max(lags([(number * 0.02, 1) for number in range(10)])) == pytest.approx(0, abs=1e-9)


def test_of_tokens_that_come_together_the_first_is_late() -> None:
    arrivals = [(0.0, 1), (0.02, 1), (0.06, 2), (0.08, 1)]
    assert lags(arrivals) == pytest.approx([0, 0, 0.02, 0, 0])


@pytest.mark.parametrize("streams", [1, 64, 256])
def test_the_simulator_is_set_to_a_step_per_interval(streams: int) -> None:
    timing = SimTiming(speedup=cases.speedup(streams, 150, 0.02))
    halfway = Chunk(new_tokens=1, context_tokens=175, decode=True)
    assert timing.step_s([halfway] * streams) == pytest.approx(0.02)


def outcome(front_us: float, *, tokens: int = 10) -> Outcome:
    return Outcome(
        expected=10,
        tokens=tokens,
        messages=5,
        seconds=1.0,
        cpu_us={"front": front_us, "worker": 3.0},
        cpu_us_whole={"front": 2 * front_us, "worker": 4.0},
        first_ms=Spread(p50=1.0, p99=2.0),
    )


def test_a_ratio_is_that_of_the_medians_of_all_repeats() -> None:
    case = Case(name="x", kind=GRPC_STREAM)
    found = row(case, {"penstock": [outcome(1), outcome(2), outcome(9)], "bare": [outcome(4)]})
    assert found.over_bare == {"penstock": 0.5}
    assert found.figures[0].front_us_range == (1, 9)
    assert found.figures[0].worker_us == 3.0


def test_lost_tokens_are_added_up() -> None:
    found = row(Case(name="x", kind=GRPC_STREAM), {"bare": [outcome(1), outcome(1, tokens=7)]})
    assert found.figures[0].lost == 3
