"""What real vLLM tells of its prefix cache is what it finds there."""

import asyncio
import json
import random

import pytest

from runtime.grpc_client import ClientStream, RpcChannel
from tests.e2e.conftest import MODEL, Served
from tests.kv_follower import Follower
from tests.waiting import eventually
from wire.block_hash import prefix_hashes, root_hash
from wire.kv_events import decode_batch, watch_request
from wire.pool import FLEET, KSERVE, rpc_types
from wire.sampling import Sampling
from wire.token_contract import decode_token_response, encode_token_request
from wire.tokens import TokenRequest

pytestmark = pytest.mark.vllm
WAIT_S = 60.0
BLOCK_TOKENS = 32


def worker_address(served: Served) -> str:
    (record,) = (served.discovery / "instances").glob("*.json")
    address: str = json.loads(record.read_text())["value"]["address"]
    return address


async def cached_tokens(channel: RpcChannel, prompt: list[int], salt: str | None) -> int:
    """What the engine found of a prompt in its cache."""
    sampling = Sampling(max_tokens=2, temperature=0.0, ignore_eos=True)
    request = TokenRequest(request_id="a", token_ids=prompt, sampling=sampling, cache_salt=salt)
    message = encode_token_request(request, MODEL)
    answer = await channel.unary(KSERVE, "ModelInfer", message, timeout_s=WAIT_S)
    usage = decode_token_response(answer).usage
    assert usage is not None
    return usage.cached_tokens


async def test_a_follower_foresees_what_the_engine_finds(served: Served) -> None:
    channel = RpcChannel(worker_address(served), rpc_types=rpc_types)
    follower, dice = Follower(), random.Random(7)

    async def follow(stream: ClientStream) -> None:
        async for message in stream:
            follower.take(decode_batch(message))

    def tokens(count: int) -> list[int]:
        return [dice.randrange(1000, 40_000) for _ in range(count)]

    shared = tokens(3 * BLOCK_TOKENS + 5)
    prompts = [shared + tokens(2 * BLOCK_TOKENS), tokens(BLOCK_TOKENS), shared + tokens(70)]
    async with asyncio.TaskGroup() as tasks, channel.stream(FLEET, "WatchKvEvents") as stream:
        stream.send(watch_request({}))
        stream.half_close()
        following = tasks.create_task(follow(stream))
        await eventually(lambda: follower.position is not None, limit_s=WAIT_S)
        found = []
        for salt in (None, "tenant"):
            for prompt in [*prompts, prompts[0]]:
                chain = prefix_hashes(prompt, BLOCK_TOKENS, root_hash(None, salt)).tolist()
                # The engine computes a prompt's last token anew.
                usable = chain[: (len(prompt) - 1) // BLOCK_TOKENS]
                foreseen = sum(block in follower.blocks for block in usable)
                found.append(await cached_tokens(channel, prompt, salt))
                assert found[-1] == foreseen * BLOCK_TOKENS
                await eventually(lambda: set(chain) <= follower.blocks, limit_s=WAIT_S)  # noqa: B023
        following.cancel()
    await channel.close()
    assert found == [0, 0, 96, 160] * 2
