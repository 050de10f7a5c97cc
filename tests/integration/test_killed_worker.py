"""A worker that is killed takes its blocks along; the one in its place begins with none."""

import os
import re
import signal
from itertools import count

from tests.integration.test_cli import FREE, SIM, Running, chat, get, penstock
from tests.integration.test_front_group import metric, pids
from tests.waiting import wait_until

SAMPLE = re.compile(r'^penstock_router_index_blocks\{.*worker="([^"]+)".*\} (\S+)$', re.M)
LONG = "It rains on the hills and on the sea. " * 20


def index(one: Running) -> dict[str, float]:
    """How many blocks the front door knows of each worker."""
    shown = get(f"{one.ready['metrics']}/metrics")[1].decode()
    return {worker: float(blocks) for worker, blocks in SAMPLE.findall(shown)}


def test_kill_9_of_a_worker_purges_its_blocks_and_its_successor_starts_clean(tmp_path):
    with penstock(tmp_path, "serve", "smollm2", *SIM, *FREE, "--workers=2") as one:
        wait_until(lambda: len(index(one)) == 2, limit_s=20)
        numbers = count()

        def both_hold_blocks() -> bool:
            text = f"{next(numbers)} {LONG}"
            chat(one.ready["http"], model="smollm2", messages=[{"role": "user", "content": text}])
            return all(blocks > 10 for blocks in index(one).values())

        # Which worker a new prompt goes to is chance.
        wait_until(both_hold_blocks, limit_s=20)
        held = sorted(metric(one, "penstock_worker_kv_blocks").values())
        wait_until(lambda: sorted(index(one).values()) == held, limit_s=10)
        before = index(one)
        os.kill(pids(one)["smollm2-0"], signal.SIGKILL)
        wait_until(lambda: len(index(one).keys() - before.keys()) == 1, limit_s=30)
        after = index(one)
        (fresh,) = after.keys() - before.keys()
        (left,) = after.keys() & before.keys()
        assert after[fresh] == 0
        assert after[left] == before[left]
        assert chat(one.ready["http"], model="smollm2")["choices"]
        assert one.stop() == 0
