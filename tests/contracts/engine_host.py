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

from runtime.errors import EngineFailed
from tests.contracts.engine_asking import WAIT_S, Collected, ask, wait_idle
from tests.contracts.engine_contract import CASES, CONTEXT, a_dead_engine_fails_everything
from tests.contracts.engine_requests import PROMPT
from wire.sampling import Sampling
from wire.tokens import TokenDelta, TokenRequest
from worker.vllm_engine import VllmEngine
from worker.vllm_start import VllmSettings
from worker.vllm_steps import PlainRequest

LAST = "a_dead_engine_fails_everything"


def kill_engine() -> None:
    for child in psutil.Process().children(recursive=True):
        if "EngineCore" in child.name():
            os.kill(child.pid, signal.SIGKILL)


async def plain_requests_go_past_vllms_queues(engine: VllmEngine) -> None:
    processor = engine._llm.output_processor
    plain, scored = (
        ask(engine, request_id="plain", max_tokens=100),
        ask(engine, request_id="scored", logprobs=1, max_tokens=100),
    )
    async with asyncio.timeout(WAIT_S):
        await plain.first.wait()
        await scored.first.wait()
    kinds = {it.external_req_id: type(it.queue) for it in processor.request_states.values()}
    assert kinds["plain"] is PlainRequest
    assert kinds["scored"] is not PlainRequest
    await plain.wait()
    await scored.wait()
    assert plain.ids() == scored.ids()
    cancelled = ask(engine, max_tokens=100)
    async with asyncio.timeout(WAIT_S):
        await cancelled.first.wait()
    engine.cancel("a")
    assert not processor.request_states
    assert not processor.external_req_ids
    assert not processor.get_num_queued_tokens()
    assert not any(it.running or it.waiting for it in processor.lora_states.requests.values())
    await wait_idle(engine)


class _Broken(Collected):
    def put(self, delta: TokenDelta) -> None:
        super().put(delta)
        if len(self.deltas) == 3:
            raise RuntimeError("a sink that fails")


async def a_failing_sink_ends_its_request_alone(engine: VllmEngine) -> None:
    other = ask(engine, request_id="other", max_tokens=60)
    broken = _Broken()
    request = TokenRequest(
        request_id="broken", token_ids=PROMPT, sampling=Sampling(max_tokens=150, ignore_eos=True)
    )
    engine.submit(request, broken)
    await broken.wait()
    assert isinstance(broken.error, EngineFailed)
    await other.wait()
    assert len(other.ids()) == 60
    await wait_idle(engine)


OWN_CASES = {
    it.__name__: it
    for it in (plain_requests_go_past_vllms_queues, a_failing_sink_ends_its_request_alone)
}


async def run_case(engine: VllmEngine, name: str) -> str | None:
    try:
        if name == LAST:
            await a_dead_engine_fails_everything(engine, kill_engine)
        else:
            await (OWN_CASES.get(name) or CASES[name])(engine)
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
