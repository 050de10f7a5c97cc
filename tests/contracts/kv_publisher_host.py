"""vLLM's own event publishers without an engine: `python -m tests.contracts.kv_publisher_host DIR`.

Two data-parallel ranks. Out: one line, where they publish by rank, as JSON. In: a line each time
that both shall publish the next block of the rank's chain. The first one is out by then.
"""

import itertools
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from worker.vllm_kv_events import private_events_config

RANKS = 2
SIZE = 4


def tokens_of(rank: int) -> list[int]:
    """The tokens of each block of the rank's chain."""
    return [rank] * SIZE


def block(rank: int, number: int) -> Any:
    from vllm.distributed.kv_events import BlockStored

    return BlockStored(
        block_hashes=[1 + number],
        parent_block_hash=number or None,
        token_ids=tokens_of(rank),
        block_size=SIZE,
        lora_id=None,
        medium="GPU",
        lora_name=None,
        group_idx=0,
    )


if __name__ == "__main__":
    from vllm.distributed.kv_events import EventPublisherFactory, KVEventBatch

    config = private_events_config(Path(sys.argv[1]))
    publishers = [EventPublisherFactory.create(config, rank) for rank in range(RANKS)]
    for number in itertools.count():
        for rank, publisher in enumerate(publishers):
            publisher.publish(KVEventBatch(ts=1.0, events=[block(rank, number)]))
        if number == 0:
            print(json.dumps([asdict(it.get_publisher_config()) for it in publishers]), flush=True)
        if not sys.stdin.readline():
            break
    for publisher in publishers:
        publisher.shutdown()
