"""What `penstock bench` sends and counts, over a server that follows a script."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from cli.bench_load import Load, Plan
from cli.bench_report import report
from runtime.errors import Overloaded, WorkerLost
from tests.contracts.scripted_backend import CARD, ScriptedBackend, Step
from tests.waiting import eventually
from wire.cards import ModelCard
from wire.generate import ChoiceDelta, GenerateDelta, GenerateRequest, Usage


def load_of(
    *steps: Step,
    requests: int | None = 10,
    duration_s: float | None = None,
    concurrency: int | None = 4,
    rate: float | None = None,
    card: ModelCard = CARD,
) -> tuple[Load, ScriptedBackend]:
    plan = Plan(
        requests=requests,
        duration_s=duration_s,
        concurrency=concurrency,
        rate=rate,
        prompt_tokens=12,
        max_tokens=3,
        timeout_s=5,
    )
    server = ScriptedBackend(*steps)
    return Load(server, card, plan, seed=1), server


async def test_every_request_is_sent_once_and_counted() -> None:
    load, server = load_of("a", "b", "c")
    await load.warm_up(2)
    await load.run()
    assert len(server.requests) == 12
    found = report(load, target="host:1")
    assert found["requests"] == {"ok": 10, "failed": 0, "unfinished": 0}
    assert (found["output_tokens"], found["prompt_tokens"]) == (30, 50)
    assert len(load.measured.first_token_s) == len(load.measured.whole_s) == 10
    assert len(load.measured.between_tokens_s) == 20
    assert found["output_tokens_per_s"] == pytest.approx(30 / found["elapsed_s"])


async def test_so_many_requests_are_under_way_and_no_more() -> None:
    gate = asyncio.Event()
    load, server = load_of("a", gate, requests=9)
    async with asyncio.TaskGroup() as group:
        group.create_task(load.run())
        await eventually(lambda: server.running == 4)
        assert (load.in_flight, len(server.requests)) == (4, 4)
        gate.set()
    assert (server.running, len(server.requests)) == (0, 9)


async def test_a_rate_does_not_wait_for_answers() -> None:
    gate = asyncio.Event()
    load, server = load_of("a", gate, requests=20, concurrency=None, rate=1e6)
    async with asyncio.TaskGroup() as group:
        group.create_task(load.run())
        await eventually(lambda: server.running == 20)
        gate.set()
    assert load.measured.ok == 20


async def test_a_duration_ends_the_sending_and_running_requests_are_waited_for() -> None:
    load, server = load_of("a", requests=None, duration_s=0.05)
    await load.run()
    assert load.measured.ok == len(server.requests) > 0
    assert load.measured.elapsed_s >= 0.05


async def test_failures_are_counted_by_reason_and_the_others_go_on() -> None:
    load, _ = load_of("a", Overloaded("too many"))
    await load.run()
    found = report(load, target="host:1")
    assert found["requests"] == {"ok": 0, "failed": 10, "unfinished": 0}
    assert found["failures"] == {"overloaded": {"count": 10, "example": "too many"}}
    assert found["request_duration_s"] is None
    with pytest.raises(WorkerLost):
        await load_of(WorkerLost("gone"))[0].warm_up(1)


async def test_what_was_measured_before_a_cancellation_stays() -> None:
    load, server = load_of("a", asyncio.Event())
    running = asyncio.ensure_future(load.run())
    await eventually(lambda: len(load.measured.first_token_s) == 4)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert load.measured.unfinished == 4
    assert load.measured.elapsed_s > 0
    assert server.running == 0


async def test_prompts_are_random_tokens_of_the_length_asked_for_and_differ() -> None:
    load, server = load_of("a")
    again, same = load_of("a")
    for one in (load, again):
        await one.run()
    prompts = [request.prompt_token_ids for request in server.requests]
    assert all(len(ids or ()) == 12 and max(ids or ()) < CARD.vocab_size for ids in prompts)
    assert len({tuple(ids or ()) for ids in prompts}) == 10
    assert prompts == [request.prompt_token_ids for request in same.requests]
    assert all(it.sampling.ignore_eos and it.sampling.max_tokens == 3 for it in server.requests)


async def test_a_server_that_does_not_tell_its_vocabulary_gets_words() -> None:
    card = ModelCard(name="m", path="", context_length=0, vocab_size=0, block_size=0)
    load, server = load_of("a", card=card)
    await load.run()
    assert {len((request.prompt or "").split()) for request in server.requests} == {12}


class Bursts(ScriptedBackend):
    """Sends its tokens in two deltas of four."""

    async def _deltas(self, request: GenerateRequest) -> AsyncIterator[GenerateDelta]:
        for _ in range(2):
            yield GenerateDelta(choices=[ChoiceDelta(token_ids=[1, 2, 3, 4])], prompt_tokens=5)
        yield GenerateDelta(choices=[], usage=Usage(prompt_tokens=5, completion_tokens=8))


async def test_tokens_that_come_together_share_the_time_before_them() -> None:
    load, _ = load_of(requests=1)
    load._server = Bursts()
    await load.run()
    gaps = list(load.measured.between_tokens_s)
    assert len(gaps) == 4
    assert len(set(gaps)) == 1
    assert load.measured.output_tokens == 8
