"""What every Engine must do: cases run on the simulator and on real vLLM.

A case gets a started engine whose context is CONTEXT tokens. It leaves nothing running.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import numpy as np

from runtime.errors import (
    ContextLengthExceeded,
    InvalidRequest,
    ServingError,
    Unsupported,
    WorkerLost,
)
from tests.contracts.engine_asking import WAIT_S, answer, ask, refusal, wait_idle
from tests.contracts.engine_requests import (
    ANSWERED,
    BAD_REQUESTS,
    BAD_STRUCTURES,
    PROMPT,
)
from tests.waiting import eventually
from wire.block_hash import prefix_hashes, root_hash
from wire.tokens import FinishReason
from worker.engine import Engine
from worker.kv_log import KvLog

CONTEXT = 256

Case = Callable[[Engine], Awaitable[None]]
CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    CASES[function.__name__] = function
    return function


@case
async def the_same_greedy_prompt_gets_the_same_answer(engine: Engine) -> None:
    assert (await answer(engine)).ids() == (await answer(engine)).ids()


@case
async def an_answer_has_max_tokens_and_ends_with_length(engine: Engine) -> None:
    sink = await answer(engine, max_tokens=11)
    assert len(sink.ids()) == 11
    assert sink.finish() is FinishReason.LENGTH


@case
async def the_end_of_the_context_ends_an_answer(engine: Engine) -> None:
    prompt = [600 + i % 50 for i in range(CONTEXT - 5)]
    for limit in (None, 5000):
        sink = await answer(engine, prompt, max_tokens=limit)
        assert len(sink.ids()) == 5
        assert sink.finish() is FinishReason.LENGTH


@case
async def a_repeated_prompt_is_found_in_the_cache(engine: Engine) -> None:
    prompt = list(range(900, 900 + 3 * engine.info.block_size + 4))
    await answer(engine, prompt)
    again = await answer(engine, prompt)
    assert again.deltas[0].cached_tokens == 3 * engine.info.block_size
    assert all(delta.cached_tokens is None for delta in again.deltas[1:])


@case
async def another_salt_does_not_share_the_cache(engine: Engine) -> None:
    prompt = list(range(1200, 1300))
    await answer(engine, prompt, cache_salt="one")
    other = await answer(engine, prompt, cache_salt="two")
    assert other.deltas[0].cached_tokens == 0
    same = await answer(engine, prompt, cache_salt="one")
    assert same.deltas[0].cached_tokens


@case
async def a_stop_token_ends_the_answer_and_is_its_last_token(engine: Engine) -> None:
    ids = (await answer(engine)).ids()
    stop = ids[4]
    sink = await answer(engine, stop_token_ids=(stop,))
    assert sink.ids() == ids[: ids.index(stop) + 1]
    assert sink.finish() is FinishReason.STOP
    assert sink.deltas[-1].stop_reason == stop


@case
async def the_end_token_ends_the_answer_unless_ignored(engine: Engine) -> None:
    end = engine.info.eos_token_ids[0]
    sink = await answer(engine, logit_bias={end: 100.0}, ignore_eos=False)
    assert sink.ids() == [end]
    assert sink.finish() is FinishReason.STOP
    assert sink.deltas[-1].stop_reason is None
    ignored = await answer(engine, logit_bias={end: 100.0}, ignore_eos=True, max_tokens=4)
    assert ignored.ids() == [end] * 4


@case
async def log_probabilities_start_with_the_token_itself(engine: Engine) -> None:
    sink = await answer(engine, logprobs=3)
    positions = [p for delta in sink.deltas for p in delta.logprobs or []]
    assert [position[0].token_id for position in positions] == sink.ids()
    for position in positions:
        assert 3 <= len(position) <= 4
        assert all(-9999 <= entry.logprob <= 0 for entry in position)


@case
async def prompt_log_probabilities_cover_the_prompt(engine: Engine) -> None:
    sink = await answer(engine, prompt_logprobs=2)
    positions = sink.deltas[0].prompt_logprobs
    assert positions is not None
    assert [p[0].token_id for p in positions[1:]] == PROMPT[1:]
    assert positions[0] == []


@case
async def impossible_tokens_have_finite_log_probabilities(engine: Engine) -> None:
    sink = await answer(engine, allowed_token_ids=(700,), logprobs=5, max_tokens=2)
    for delta in sink.deltas:
        for position in delta.logprobs or []:
            assert all(entry.logprob >= -9999.0 for entry in position)


@case
async def each_of_n_choices_ends_once(engine: Engine) -> None:
    sink = await answer(engine, n=3, temperature=1.0, seed=7, max_tokens=6)
    assert [len(sink.ids(i)) for i in range(3)] == [6, 6, 6]
    ends = sorted(delta.index for delta in sink.deltas if delta.finish_reason)
    assert ends == [0, 1, 2]


@case
async def only_allowed_tokens_are_said(engine: Engine) -> None:
    sink = await answer(engine, allowed_token_ids=(700, 701, 702))
    assert set(sink.ids()) <= {700, 701, 702}


@case
async def bias_forces_and_bans_tokens(engine: Engine) -> None:
    forced = await answer(engine, logit_bias={777: 100.0})
    assert set(forced.ids()) == {777}
    usual = (await answer(engine)).ids()[0]
    banned = await answer(engine, logit_bias={usual: -100.0})
    assert usual not in banned.ids()


@case
async def the_same_seed_gives_the_same_sample(engine: Engine) -> None:
    first = await answer(engine, temperature=1.0, seed=-(2**63))
    again = await answer(engine, temperature=1.0, seed=-(2**63))
    other = await answer(engine, temperature=1.0, seed=2**63 - 1)
    assert first.ids() == again.ids() != other.ids()


@case
async def many_requests_at_once_all_end(engine: Engine) -> None:
    sinks = [
        ask(engine, [600 + i] * 20, request_id=f"many-{i}", max_tokens=5 + i) for i in range(12)
    ]
    for i, sink in enumerate(sinks):
        await sink.wait()
        assert sink.error is None
        assert len(sink.ids()) == 5 + i
    await wait_idle(engine)


@case
async def nothing_arrives_before_submit_has_returned(engine: Engine) -> None:
    sink = ask(engine)
    assert not sink.deltas
    await sink.wait()


@case
async def a_running_id_is_refused_and_free_after_the_end(engine: Engine) -> None:
    running = ask(engine, max_tokens=100, request_id="twin")
    error = await refusal(engine, request_id="twin")
    assert isinstance(error, InvalidRequest)
    assert error.param == "request_id"
    await running.wait()
    assert len(running.ids()) == 100
    await answer(engine, request_id="twin")


@case
async def a_cancelled_request_is_silent_and_frees_the_engine(engine: Engine) -> None:
    sink = ask(engine, max_tokens=150)
    async with asyncio.timeout(WAIT_S):
        await sink.first.wait()
    engine.cancel("a")
    heard = len(sink.deltas)
    await answer(engine)
    await wait_idle(engine)
    assert len(sink.deltas) == heard
    assert sink.error is None
    assert not sink.over.is_set()


@case
async def a_request_cancelled_at_once_never_speaks(engine: Engine) -> None:
    sink = ask(engine)
    engine.cancel("a")
    engine.cancel("a")
    engine.cancel("unknown")
    await answer(engine)
    await wait_idle(engine)
    assert not sink.deltas
    assert sink.error is None


@case
async def odd_ids_and_salts_are_only_names(engine: Engine) -> None:
    for name in ("", "a\nb", "ü" * 300):
        await answer(engine, request_id=name, cache_salt=name, session_id=name)


@case
async def whole_numbers_of_numpy_are_taken_as_numbers(engine: Engine) -> None:
    plain = await answer(engine)
    listed = await answer(engine, [np.int64(i) for i in PROMPT])
    array = await answer(engine, np.array(PROMPT, dtype=np.int32))
    assert plain.ids() == listed.ids() == array.ids()


@case
async def a_probe_is_answered_idle_and_busy(engine: Engine) -> None:
    await engine.probe(WAIT_S)
    sink = ask(engine, max_tokens=30)
    await engine.probe(WAIT_S)
    await sink.wait()


@case
async def a_prompt_without_room_for_an_answer_is_too_long(engine: Engine) -> None:
    for length in (CONTEXT, CONTEXT + 1, 20 * CONTEXT):
        error = await refusal(engine, [600] * length)
        assert isinstance(error, ContextLengthExceeded)
        assert error.param == "input_ids"
    await answer(engine)


@case
async def bad_requests_name_their_field_and_the_engine_goes_on(engine: Engine) -> None:
    for name, (prompt, fields, param) in BAD_REQUESTS.items():
        error = await refusal(engine, prompt, **fields)
        assert isinstance(error, InvalidRequest), (name, error)
        assert error.param == param, (name, error)
        await engine.probe(WAIT_S)
    await answer(engine)


@case
async def bad_structures_end_in_one_error_and_the_engine_goes_on(engine: Engine) -> None:
    for name, spec in BAD_STRUCTURES.items():
        error = await refusal(engine, structured_outputs=spec, ignore_eos=False)
        assert error.param == "structured_outputs", (name, error)
        await engine.probe(WAIT_S)
    await answer(engine)


@case
async def a_structure_is_followed_or_refused_as_unsupported(engine: Engine) -> None:
    try:
        sink = ask(engine, structured_outputs={"choice": ["yes"]}, ignore_eos=False)
    except Unsupported:
        return
    await sink.wait()
    assert sink.error is None
    assert sink.finish() is FinishReason.STOP


@case
async def a_repeating_answer_is_ended_or_refused_as_unsupported(engine: Engine) -> None:
    detection = {"max_pattern_size": 2, "min_count": 5}
    try:
        sink = ask(engine, repetition_detection=detection, allowed_token_ids=[300], max_tokens=100)
    except Unsupported:
        return
    await sink.wait()
    assert sink.error is None
    assert sink.finish() is FinishReason.REPETITION


@case
async def a_request_for_more_than_tokens_gets_the_same_tokens(engine: Engine) -> None:
    await answer(engine)
    for name, fields in ANSWERED.items():
        plain, scored = await answer(engine, **fields), await answer(engine, logprobs=0, **fields)
        assert plain.ids() == scored.ids(), name
        assert plain.ends() == scored.ends(), name
        assert plain.deltas[0].cached_tokens == scored.deltas[0].cached_tokens, name
        assert [len(it.token_ids) for it in plain.deltas] == [1] * len(plain.ids()), name
        assert all(it.logprobs is None for it in plain.deltas), name


@case
async def steps_are_counted_and_dated(engine: Engine) -> None:
    before, began_s = engine.load(), time.monotonic()
    await answer(engine, max_tokens=6)
    await wait_idle(engine)
    after = engine.load()
    assert after.steps >= before.steps + 6
    assert after.stepped_s is not None
    assert began_s <= after.stepped_s <= time.monotonic()


@case
async def looked_up_and_found_tokens_of_the_cache_are_counted(engine: Engine) -> None:
    length = 2 * engine.info.block_size + 3
    before = engine.load()
    for _ in range(2):
        await answer(engine, list(range(1500, 1500 + length)))
        await wait_idle(engine)
    after = engine.load()
    assert after.cache_queried_tokens == before.cache_queried_tokens + 2 * length
    assert after.cache_hit_tokens == before.cache_hit_tokens + 2 * engine.info.block_size


@case
async def only_the_first_delta_says_how_long_the_request_queued(engine: Engine) -> None:
    sink = await answer(engine)
    assert sink.deltas[0].queued_s is not None
    assert 0 <= sink.deltas[0].queued_s < WAIT_S
    assert all(delta.queued_s is None for delta in sink.deltas[1:])


def _holds_all(kv_log: KvLog, hashes: Sequence[int]) -> bool:
    return all(it in kv_log for it in hashes)


@case
async def full_blocks_of_prompt_and_answer_are_told(engine: Engine) -> None:
    (kv_log,) = engine.kv_logs
    size = engine.info.block_size
    prompt = list(range(1700, 1700 + 2 * size + 3))
    for salt in (None, "tenant"):
        sink = await answer(engine, prompt, max_tokens=size, cache_salt=salt)
        # Nothing is computed for the last token.
        computed = [*prompt, *sink.ids()[:-1]]
        hashes = prefix_hashes(computed, size, root_hash(None, salt)).tolist()
        assert len(hashes) == 3
        await eventually(partial(_holds_all, kv_log, hashes), limit_s=WAIT_S)
    assert not kv_log.gaps.total()
    assert not kv_log.ignored.total()


@case
async def each_step_is_told_and_counted_by_its_rank(engine: Engine) -> None:
    heard: list[int] = []

    def listen() -> None:
        heard.append(engine.load().steps)

    before = engine.load().steps
    engine.load_changed.add(listen)
    await answer(engine, max_tokens=6)
    await wait_idle(engine)
    engine.load_changed.discard(listen)
    assert set(range(before + 1, before + 7)) <= set(heard)
    loads = engine.loads()
    assert len(loads) == engine.info.data_parallel_size == 1
    assert loads[0] == engine.load()
    assert engine.info.max_num_seqs > 0


async def a_dead_engine_fails_everything(engine: Engine, kill: Callable[[], None]) -> None:
    """The last case of an engine: `kill` ends it."""
    sinks = [ask(engine, request_id=f"dying-{i}", max_tokens=150) for i in range(4)]
    async with asyncio.timeout(WAIT_S):
        await sinks[0].first.wait()
        kill()
        assert await engine.wait_failed()
    for sink in sinks:
        await sink.wait()
        assert isinstance(sink.error, WorkerLost)
    assert engine.failure
    assert isinstance(await refusal(engine), WorkerLost)
    try:
        await engine.probe(WAIT_S)
    except ServingError:
        return
    raise AssertionError("a dead engine answered a probe")
