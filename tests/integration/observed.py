"""A front door, a router, a worker and a gateway as processes, and a little of everything asked."""

import asyncio
import itertools
import json
import urllib.error
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from runtime.grpc_client import RpcChannel
from tests.integration.kserve_client import infer
from tests.integration.test_cli import FREE, Running, chat, get, open_stream, penstock
from tests.integration.test_kv_routing import prompt
from tests.integration.test_router_process import (
    ask_tokens,
    best_worker,
    channel_to,
    eventually_holds,
)
from tests.waiting import wait_until

MODEL = "smollm2"
ENGINE = ("--engine=sim", "--sim-speedup=1")
# One place and one that waits, so that a third request is refused.
PLACES = ("--worker-concurrency=1", "--queue-limit=1")


@dataclass(frozen=True, kw_only=True)
class Observed:
    """The processes by kind."""

    processes: dict[str, Running]
    seeds: Iterator[int] = field(default_factory=itertools.count)

    def metrics(self, kind: str) -> str:
        """What a scrape of the process's status port gets."""
        return get(f"{self.status(kind)}/metrics")[1].decode()

    def status(self, kind: str) -> str:
        """The URL of the process's status port."""
        url: str = self.processes[kind].ready["metrics"]
        return url

    def ask(self) -> None:
        """Six requests that end well: two over the gateway, two over the router, one after a wait.

        Beside them one is wrong, one is refused, and one loses its client.
        """
        asyncio.run(self._ask_router())
        front, gateway = self.processes["frontend"], self.processes["gateway"]
        chat(front.ready["http"], model=MODEL)
        chat(gateway.ready["http"], model=MODEL)
        with open_stream(gateway, max_tokens=4) as answer:
            assert answer.read().endswith(b"data: [DONE]\n\n")
        assert _refused(front, max_tokens=-1) == 400
        with open_stream(front, max_tokens=8000) as stream:
            stream.readline()
            with ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(chat, front.ready["http"], model=MODEL)
                wait_until(lambda: self.health("frontend")["queued"] == 1, limit_s=20)
                assert _refused(front) == 429
                stream.close()
                waiting.result(20)

    async def _ask_router(self) -> None:
        """A prompt that no cache holds, and again when the router knows that one does."""
        tokens = prompt(next(self.seeds), 4)
        async with channel_to(self.processes["router"]) as channel:
            await infer(channel, ask_tokens(tokens))
            await eventually_holds(partial(_unknown_blocks, channel, tokens), lambda n: n == 0)
            await infer(channel, ask_tokens(tokens))

    def health(self, kind: str) -> dict[str, Any]:
        """What /health tells."""
        told: dict[str, Any] = json.loads(get(f"{self.status(kind)}/health")[1])
        return told


@contextmanager
def observed(tmp_path: Path) -> Iterator[Observed]:
    discovery = f"--discovery-path={tmp_path}/discovery"
    with (
        penstock(tmp_path, "frontend", *FREE, discovery, *PLACES) as front,
        penstock(tmp_path, "worker", MODEL, *ENGINE, FREE[0], FREE[2], discovery) as worker,
        penstock(tmp_path, "router", FREE[0], FREE[2], discovery) as router,
        penstock(tmp_path, "gateway", *FREE[1:], f"--target={front.ready['grpc']}") as gateway,
    ):
        all_of_them = Observed(
            processes={
                "frontend": front, "router": router, "worker": worker, "gateway": gateway,
            },
        )  # fmt: skip
        wait_until(lambda: all_of_them.health("frontend")["status"] == "ready", limit_s=20)
        yield all_of_them


async def _unknown_blocks(channel: RpcChannel, token_ids: list[int]) -> int:
    best = await best_worker(channel, token_ids)
    return int(best.prompt_blocks - best.overlap_blocks)


def _refused(front: Running, **fields: Any) -> int:
    with pytest.raises(urllib.error.HTTPError) as caught:
        chat(front.ready["http"], model=MODEL, **fields)
    with caught.value as answer:
        return answer.code
