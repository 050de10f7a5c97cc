"""Our subscribers and vLLM's own publishers: several ranks on sockets of one private folder."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.contracts.kv_publisher_host import RANKS, SIZE, tokens_of
from tests.waiting import eventually
from wire.block_hash import prefix_hashes
from worker.kv_log import KvLog
from worker.vllm_kv_events import follow, kv_sources

ROOT = Path(__file__).parents[2]


async def follow_until(
    heard: Callable[[], bool], published: dict[int, Any], logs: list[KvLog]
) -> None:
    config = SimpleNamespace(
        kv_events_config=published[0],
        cache_config=SimpleNamespace(enable_prefix_caching=True),
        parallel_config=SimpleNamespace(data_parallel_size=RANKS, data_parallel_size_local=RANKS),
    )
    async with asyncio.TaskGroup() as tasks:
        subscribers = follow(kv_sources(config, published), logs, SIZE)
        running = [tasks.create_task(subscriber.run()) for subscriber in subscribers]
        await eventually(heard, limit_s=20, look_every_s=0.2)
        for task in running:
            task.cancel()


@pytest.mark.vllm
@pytest.mark.timeout(120)
def test_each_rank_is_followed_from_its_first_event_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.contracts.kv_publisher_host", str(tmp_path)]
    host = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert host.stdin is not None
    assert host.stdout is not None
    stdin, logs = host.stdin, [KvLog(rank) for rank in range(RANKS)]

    def publish_more() -> bool:
        stdin.write("\n")
        stdin.flush()
        return all(len(log) > 1 for log in logs)

    try:
        configs = json.loads(host.stdout.readline())
        published = {rank: SimpleNamespace(**it) for rank, it in enumerate(configs)}
        asyncio.run(follow_until(publish_more, published, logs))
        for log in logs:
            chain = prefix_hashes(tokens_of(log.rank) * len(log), SIZE).tolist()
            assert set(log) == set(chain)
            # What was published before anybody listened.
            assert log.gaps["replayed"] == 1
        stdin.close()
        assert host.wait(10) == 0
    finally:
        host.kill()
        host.wait()
        host.stdout.close()
