"""The simulated engine: deterministic tokens, formula time, batching, chaos."""

import asyncio
from typing import Any

import pytest

from runtime.errors import InvalidConfig, ServingError, WorkerLost
from tests.waiting import eventually
from wire.block_hash import prefix_hashes
from wire.sampling import Sampling
from wire.tokens import FinishReason, TokenDelta, TokenRequest
from worker.sim_cache import PrefixCache
from worker.sim_engine import SimConfig, SimEngine
from worker.sim_scheduler import Scheduler, Sequence
from worker.sim_timing import Chunk, SimTiming

INSTANT = SimTiming(speedup=0)


class Sink:
    def __init__(self, choices: int = 1) -> None:
        self.deltas: list[TokenDelta] = []
        self.error: ServingError | None = None
        self.over = asyncio.Event()
        self._open = choices

    def put(self, delta: TokenDelta) -> None:
        self.deltas.append(delta)
        self._open -= delta.finish_reason is not None
        if not self._open:
            self.over.set()

    def fail(self, error: ServingError) -> None:
        self.error = error
        self.over.set()

    def ids(self, index: int = 0) -> list[int]:
        return [i for delta in self.deltas if delta.index == index for i in delta.token_ids]


def ask(engine: SimEngine, prompt: list[int], request_id: str = "a", **sampling: Any) -> Sink:
    sink = Sink(sampling.get("n", 1))
    sampling = {"max_tokens": 40} | sampling
    engine.submit(
        TokenRequest(request_id=request_id, token_ids=prompt, sampling=Sampling(**sampling)), sink
    )
    return sink


async def over(sink: Sink) -> Sink:
    async with asyncio.timeout(5):
        await sink.over.wait()
    return sink


async def test_a_second_engine_goes_on_exactly_where_the_first_stopped() -> None:
    config = SimConfig(timing=INSTANT, mean_answer_tokens=60)
    for seed in (None, 5):
        prompt = [1, 2, 3, 4, 5]
        whole = (await over(ask(SimEngine(config), prompt, max_tokens=200, seed=seed))).ids()
        for cut in (1, len(whole) // 2):
            rest = await over(
                ask(SimEngine(config), prompt + whole[:cut], max_tokens=200 - cut, seed=seed)
            )
            assert rest.ids() == whole[cut:]


async def test_choice_i_says_what_seed_plus_i_says_alone() -> None:
    engine = SimEngine(SimConfig(timing=INSTANT))
    both = await over(ask(engine, [1, 2, 3], n=2, seed=10))
    alone = await over(ask(engine, [1, 2, 3], seed=11))
    assert both.ids(1) == alone.ids() != both.ids(0)


async def test_tokens_stay_in_the_plain_range() -> None:
    config = SimConfig(timing=INSTANT, first_token_id=100, plain_tokens=50)
    sink = await over(ask(SimEngine(config), [1], max_tokens=500))
    assert set(sink.ids()) <= set(range(100, 150))


async def test_answers_end_by_themselves_near_the_mean_unless_told_not_to() -> None:
    engine = SimEngine(SimConfig(timing=INSTANT, mean_answer_tokens=20))
    sinks = [
        await over(ask(engine, [number], max_tokens=1000, seed=number)) for number in range(200)
    ]
    assert all(sink.deltas[-1].finish_reason is FinishReason.STOP for sink in sinks)
    assert all(sink.ids()[-1] == 2 and 2 not in sink.ids()[:-1] for sink in sinks)
    mean = sum(len(sink.ids()) for sink in sinks) / len(sinks)
    assert 15 < mean < 25
    at_least = await over(ask(engine, [1], max_tokens=1000, min_tokens=300))
    assert len(at_least.ids()) > 300
    never = await over(ask(engine, [1], max_tokens=400, ignore_eos=True))
    assert len(never.ids()) == 400


async def test_a_small_cache_delays_requests_but_answers_all_of_them() -> None:
    config = SimConfig(
        timing=INSTANT, context_length=64, block_size=4, kv_blocks=20, max_num_batched_tokens=16
    )
    alone = [(await over(ask(SimEngine(config), [i] * 9, max_tokens=50))).ids() for i in range(8)]
    engine = SimEngine(config)
    sinks = [ask(engine, [i] * 9, f"r{i}", max_tokens=50) for i in range(8)]
    for sink, ids in zip(sinks, alone, strict=True):
        assert (await over(sink)).ids() == ids
    load = engine.load()
    assert (load.running, load.waiting, load.kv_usage) == (0, 0, 0.0)


async def test_what_the_cache_holds_is_told() -> None:
    config = SimConfig(timing=INSTANT, context_length=64, block_size=4, kv_blocks=16)
    engine = SimEngine(config)
    (kv_log,) = engine.kv_logs
    for number in range(6):
        sink = await over(ask(engine, [number] * 20, max_tokens=10))
        # The last token is computed by nobody: no block holds it.
        held = prefix_hashes([*[number] * 20, *sink.ids()[:-1]], 4).tolist()
        assert set(held) <= set(kv_log)
        assert len(kv_log) == engine._cache.stored_blocks <= 16
    assert kv_log.told["removed"]
    engine.clear_cache()
    assert not len(kv_log)
    assert kv_log.told["cleared"] == 1
    assert not kv_log.ignored.total()


async def test_an_engine_that_tells_nothing_has_no_log() -> None:
    engine = SimEngine(SimConfig(timing=INSTANT), kv_events=False)
    await over(ask(engine, [1] * 100))
    engine.clear_cache()
    assert engine.kv_logs == ()


async def test_one_broken_sink_does_not_stop_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(Sink):
        def put(self, delta: TokenDelta) -> None:
            raise RuntimeError("broken")

    engine = SimEngine(SimConfig(timing=INSTANT))
    sampling = Sampling(max_tokens=5)
    engine.submit(TokenRequest(request_id="broken", token_ids=[1], sampling=sampling), Broken())
    assert len((await over(ask(engine, [1]))).ids()) == 40
    assert "the sink of request broken raised" in caplog.text


async def test_death_and_hanging_come_in_the_configured_step() -> None:
    dying = SimEngine(SimConfig(timing=INSTANT, die_after_steps=3))
    sink = await over(ask(dying, [1]))
    assert isinstance(sink.error, WorkerLost)
    assert len(sink.ids()) == 2
    hanging = SimEngine(SimConfig(timing=INSTANT, hang_after_steps=1))
    silent = ask(hanging, [1])
    with pytest.raises(TimeoutError):
        await hanging.probe(0.01)
    assert not silent.deltas
    await hanging.close()
    assert isinstance(silent.error, WorkerLost)


async def test_an_engine_that_moves_again_answers_what_it_took_and_what_it_had_begun() -> None:
    engine = SimEngine(SimConfig(timing=SimTiming(step_ms=1)))
    whole = await over(ask(engine, [1, 2, 3]))
    begun = ask(engine, [1, 2, 3], "begun")
    await eventually(lambda: bool(begun.deltas))
    engine.hang()
    heard = len(begun.deltas)
    taken = ask(engine, [1, 2, 3], "taken")
    with pytest.raises(TimeoutError):
        await engine.probe(0.05)
    assert len(begun.deltas) == heard
    engine.resume()
    for sink in (begun, taken):
        assert (await over(sink)).ids() == whole.ids()
    await engine.probe(1)


async def test_prefill_and_decode_take_the_time_of_the_formula() -> None:
    timing = SimTiming(speedup=2, step_ms=20)
    engine = SimEngine(SimConfig(timing=timing))
    loop = asyncio.get_running_loop()
    began = loop.time()
    await over(ask(engine, [1] * 100, max_tokens=6))
    first = timing.step_s([Chunk(new_tokens=100, context_tokens=0, decode=False)])
    decode = timing.step_s([Chunk(new_tokens=1, context_tokens=100, decode=True)])
    assert first + 5 * decode <= loop.time() - began < 5 * (first + 5 * decode)


def test_step_time_grows_as_the_formula_says() -> None:
    timing = SimTiming(
        step_ms=1.0,
        prefill_us_per_token=10.0,
        prefill_ns_per_token_pair=2.0,
        decode_us_per_sequence=100.0,
        decode_ns_per_context_token=50.0,
    )
    prefill = Chunk(new_tokens=1000, context_tokens=500, decode=False)
    decode = Chunk(new_tokens=1, context_tokens=2000, decode=True)
    assert timing.step_s([]) == pytest.approx(0.001)
    assert timing.step_s([prefill]) == pytest.approx(0.001 + 0.010 + 0.002)
    assert timing.step_s([decode, decode]) == pytest.approx(0.001 + 2 * 0.0002)
    assert SimTiming(speedup=0).step_s([prefill]) == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [("block_size", 0), ("kv_blocks", 3), ("first_token_id", 10**6), ("max_num_seqs", 0)],
)
def test_impossible_settings_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidConfig) as caught:
        SimConfig(**{field: value})
    assert caught.value.param == field


def scheduler(**limits: int) -> Scheduler:
    sizes = {"block_size": 4, "max_sequences": 8, "max_tokens_per_step": 10} | limits
    return Scheduler(PrefixCache(100), **sizes)


def test_a_long_prompt_is_computed_in_chunks_while_answers_go_on() -> None:
    plan = scheduler()
    short = Sequence(token_ids=[1, 2])
    plan.add(short)
    ((_, chunk),) = plan.plan()
    assert plan.advance(short, chunk)
    short.token_ids.append(3)
    short.answered = 1
    plan.add(long := Sequence(token_ids=list(range(25))))
    shares = []
    for _ in range(3):
        work = plan.plan()
        shares.append([chunk.new_tokens for _, chunk in work])
        for sequence, chunk in work:
            plan.advance(sequence, chunk)
        short.token_ids.append(3)
    assert shares == [[1, 9], [1, 9], [1, 7]]
    assert long.todo == 0


def test_no_more_sequences_run_than_allowed_and_the_first_come_first() -> None:
    plan = scheduler(max_sequences=2)
    sequences = [Sequence(token_ids=[i]) for i in range(4)]
    for sequence in sequences:
        plan.add(sequence)
    assert [sequence for sequence, _ in plan.plan()] == sequences[:2]
    plan.remove(sequences[0])
    assert [sequence for sequence, _ in plan.plan()][-1] is sequences[2]
    plan.remove(sequences[3])
    assert not plan.waiting
