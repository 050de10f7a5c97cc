"""Hosts real vLLM for the contract suite: `python -m tests.contracts.engine_host MODEL_FOLDER`.

The engine process is forked, and pytest's own process has threads. One line in, a case's name;
one line out, as JSON: null or the traceback.
"""

import asyncio
import json
import os
import signal
import sys
import traceback

import psutil

from tests.contracts.engine_contract import CASES, CONTEXT, a_dead_engine_fails_everything
from worker.vllm_engine import VllmEngine
from worker.vllm_start import VllmSettings

LAST = "a_dead_engine_fails_everything"


def kill_engine() -> None:
    for child in psutil.Process().children(recursive=True):
        if "EngineCore" in child.name():
            os.kill(child.pid, signal.SIGKILL)


async def run_case(engine: VllmEngine, name: str) -> str | None:
    try:
        if name == LAST:
            await a_dead_engine_fails_everything(engine, kill_engine)
        else:
            await CASES[name](engine)
    except BaseException:  # noqa: BLE001 - the test that asked shows it
        return traceback.format_exc()
    return None


async def serve(engine: VllmEngine, out: int) -> None:
    await engine.start()
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    os.write(out, b"ready\n")
    while line := await reader.readline():
        result = await run_case(engine, line.decode().strip())
        os.write(out, json.dumps(result).encode() + b"\n")
    await engine.close()


if __name__ == "__main__":
    answers = os.dup(1)
    os.dup2(2, 1)
    arguments = ("--max-model-len", str(CONTEXT), "--dtype", "float32")
    hosted = VllmEngine(VllmSettings(model_path=sys.argv[1], arguments=arguments))
    hosted.build()
    asyncio.run(serve(hosted, answers))
