"""Two real vLLM workers: conversations go back to the cache that holds them, while it does."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import openai
import pytest

from tests.e2e.conftest import MODEL, Served, serving
from tests.waiting import wait_until

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]
BLOCK_TOKENS = 32
# Room for two conversations of this test, and not for four.
CACHE_BLOCKS = 16
WAIT_S = 60.0
RULES = "You are the guide of a museum. " + "Room {0} holds the works of painter number {0}. " * 12


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    engine = ["--max-model-len", "384", "--max-num-seqs", "4", "--enforce-eager"]
    engine += ["--num-gpu-blocks-override", str(CACHE_BLOCKS)]
    with serving(tmp_path_factory.mktemp("pair"), "--workers", "2", engine=engine) as it:
        yield it


@dataclass
class Answer:
    """What a turn came to."""

    worker: str
    overlap_blocks: int
    cached_tokens: int
    text: str


def beginning(room: int) -> list[Any]:
    """The first turn of a conversation: some 200 tokens that no other one shares."""
    rules = RULES.format(room)
    return [
        {"role": "system", "content": f"{room} {rules}"},
        {"role": "user", "content": "Who painted here?"},
    ]


def ask(client: openai.OpenAI, messages: list[Any], worker: str | None = None) -> Answer:
    headers = {"x-penstock-explain-route": "true"}
    if worker is not None:
        headers["x-penstock-worker"] = worker
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL,
        messages=messages,
        temperature=0,
        max_tokens=4,
        extra_headers=headers,
    )
    answer = raw.parse()
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    return Answer(
        worker=raw.headers["x-penstock-worker"],
        overlap_blocks=int(raw.headers["x-penstock-overlap-blocks"]),
        cached_tokens=answer.usage.prompt_tokens_details.cached_tokens or 0,
        text=answer.choices[0].message.content or "",
    )


def overlaps(pair: Served, messages: list[Any]) -> dict[str, int]:
    """How many blocks of a prompt the router believes in each worker's cache."""
    body = {"model": MODEL, "messages": messages}
    told = httpx2.post(f"{pair.http}/v1/route", json=body, timeout=WAIT_S).json()
    return {it["worker_id"]: it["overlap_blocks"] for it in told["candidates"]}


def test_a_second_turn_finds_its_first_in_the_cache_until_it_is_evicted(pair: Served) -> None:
    client = openai.OpenAI(base_url=f"{pair.http}/v1", api_key="none", timeout=WAIT_S)
    # The front door is ready with the first worker.
    wait_until(lambda: len(overlaps(pair, beginning(1))) == 2, limit_s=WAIT_S)
    here, there = overlaps(pair, beginning(1))
    full_blocks = 5
    for room, worker in ((1, here), (2, there)):
        first = ask(client, beginning(room), worker)
        assert first.worker == worker
        assert first.cached_tokens == 0
        wait_until(lambda: overlaps(pair, beginning(room))[worker] >= full_blocks, limit_s=WAIT_S)  # noqa: B023
        messages = [
            *beginning(room),
            {"role": "assistant", "content": first.text},
            {"role": "user", "content": "When?"},
        ]
        second = ask(client, messages)
        assert second.worker == worker
        assert second.overlap_blocks >= full_blocks
        # What the router foresaw is what the engine found.
        assert second.cached_tokens == second.overlap_blocks * BLOCK_TOKENS

    for room in range(3, 9):
        ask(client, beginning(room), here)
    wait_until(lambda: overlaps(pair, beginning(1))[here] == 0, limit_s=WAIT_S)
    assert overlaps(pair, beginning(2))[there] >= full_blocks
    assert ask(client, beginning(1), here).cached_tokens == 0
