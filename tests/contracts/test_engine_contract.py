"""The Engine contract, held by the simulator and by real vLLM."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.contracts import engine_contract as contract
from tests.contracts.engine_host import LAST, OWN_CASES
from worker.sim_engine import SimConfig, SimEngine
from worker.sim_timing import SimTiming

ROOT = Path(__file__).parents[2]
HOST_START_S, CASE_S = 180, 120

RunOnVllm = Callable[[str], str | None]


@pytest.fixture(scope="session")
def vllm_host(model_folder: Path) -> Iterator[RunOnVllm]:
    """Runs a case on the one real engine; at the end nothing of it may be left."""
    command = [sys.executable, "-m", "tests.contracts.engine_host", str(model_folder)]
    host = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert host.stdin is not None
    assert host.stdout is not None
    writer, reader = host.stdin, host.stdout
    family = psutil.Process(host.pid)
    try:
        assert reader.readline() == "ready\n"
        children = family.children(recursive=True)

        def run(name: str) -> str | None:
            writer.write(name + "\n")
            writer.flush()
            answer = reader.readline()
            assert answer, "the engine's host is gone"
            result: str | None = json.loads(answer)
            return result

        yield run
        writer.close()
        host.wait(30)
    finally:
        host.kill()
        host.wait()
        reader.close()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


@pytest.mark.parametrize("name", list(contract.CASES))
async def test_the_simulator(name: str) -> None:
    engine = SimEngine(SimConfig(context_length=contract.CONTEXT, timing=SimTiming(speedup=100)))
    await engine.start()
    try:
        await contract.CASES[name](engine)
    finally:
        await engine.close()


async def test_the_simulator_dies_as_an_engine_does() -> None:
    engine = SimEngine(SimConfig(context_length=contract.CONTEXT, timing=SimTiming(speedup=1)))
    await engine.start()
    await contract.a_dead_engine_fails_everything(engine, engine.die)
    await engine.close()


@pytest.mark.vllm
@pytest.mark.timeout(HOST_START_S + CASE_S)
@pytest.mark.parametrize("name", [*contract.CASES, *OWN_CASES, LAST])
def test_vllm(vllm_host: RunOnVllm, name: str) -> None:
    problem = vllm_host(name)
    assert problem is None, problem
