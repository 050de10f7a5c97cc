"""CPU per delivered token of the front door and the worker, beside a bare grpc.aio server's.

The engine is simulated, everything else is real: processes, sockets, tokenizer, text. Both
servers send one message per token; the ratio is what the text work, the data plane and the hop
add to (or, by merging, save of) the transport's own cost.
"""

import argparse
import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvloop

from benchmarks.processes import MODEL, cpu_s, fleet
from benchmarks.yardstick import MESSAGE
from runtime.grpc_client import RpcChannel
from runtime.grpc_options import GRPCIO, NATIVE
from wire import inference_pb2 as pb
from wire.pool import KSERVE, rpc_types

STEP_MS = 20.0
# The simulator's step is 6 ms and 15 µs per sequence: this makes 64 of them take about STEP_MS.
SPEEDUP = 0.35


@contextmanager
def yardstick() -> Iterator[tuple[int, str]]:
    """Run the bare server; yields its pid and address."""
    command = [sys.executable, "-m", "benchmarks.yardstick", str(STEP_MS / 1000)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.pid, process.stdout.readline().strip()
        finally:
            process.kill()


def text_request(tokens: int) -> Any:
    """A streaming request for exactly `tokens` tokens."""
    request = pb.ModelInferRequest(model_name=MODEL, id="1")
    sampling = json.dumps({"max_tokens": tokens, "ignore_eos": True, "temperature": 0}).encode()
    for name, value in {"text_input": b"word " * 100, "sampling_parameters": sampling}.items():
        request.inputs.add(name=name, datatype="BYTES", shape=[1])
        request.raw_input_contents.append(len(value).to_bytes(4, "little") + value)
    request.inputs.add(name="stream", datatype="BOOL", shape=[1])
    request.raw_input_contents.append(b"\1")
    return request


async def load(address: str, request: Any, *, streams: int, connections: int) -> int:
    """Run `streams` streams at once, that share connections; returns how many messages came."""
    channels = [
        RpcChannel(address, rpc_types=rpc_types, keepalive_s=None) for _ in range(connections)
    ]

    async def one(channel: RpcChannel) -> int:
        async with channel.stream(KSERVE, "ModelStreamInfer") as stream:
            stream.send(request)
            stream.half_close()
            return sum([1 async for answer in stream if _checked(answer)])

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(channels[it % connections])) for it in range(streams)]
    for channel in channels:
        await channel.close()
    return sum(task.result() for task in tasks)


def _checked(answer: Any) -> bool:
    if answer.error_message:
        raise SystemExit(f"the server answered: {answer.error_message}")
    return True


def measure(
    pids: dict[str, int], address: str, request: Any, *, streams: int, connections: int
) -> tuple[Any, int]:
    """Return CPU seconds per process name, and messages received."""
    uvloop.run(load(address, request, streams=min(streams, 8), connections=1))
    before = {name: cpu_s(pid) for name, pid in pids.items()}
    messages = uvloop.run(load(address, request, streams=streams, connections=connections))
    return {name: cpu_s(pid) - before[name] for name, pid in pids.items()}, messages


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--streams", type=int, default=64, help="concurrent streams")
    parser.add_argument("--tokens", type=int, default=400, help="tokens per stream")
    parser.add_argument("--connections", type=int, default=16, help="that the streams share")
    parser.add_argument("--transport", choices=(NATIVE, GRPCIO), default=NATIVE)


def run(options: argparse.Namespace) -> int:
    """Measure and print one JSON object."""
    streams, tokens = options.streams, options.tokens
    size = {"streams": streams, "connections": min(options.connections, streams)}
    total = streams * tokens
    flags = ["--grpc-transport", options.transport]
    plain = pb.ModelInferRequest(id=str(tokens))
    with yardstick() as (pid, address):
        bare, bare_messages = measure({"bare": pid}, address, plain, **size)
    pace = ["--sim-speedup", str(SPEEDUP), *flags]
    with fleet(front=["--no-http", *flags], worker=pace) as (front, worker):
        pids = {"front_door": front.pid, "worker": worker.pid}
        spent, messages = measure(pids, front.ready["grpc"], text_request(tokens), **size)
    bare_us = bare["bare"] / bare_messages * 1e6
    report = {
        **size,
        "transport": options.transport,
        "tokens": total,
        "messages_per_token": round(messages / total, 3),
        "message_bytes": len(MESSAGE),
        "bare_grpc_aio_us_per_message": round(bare_us, 2),
        **{f"{name}_us_per_token": round(s / total * 1e6, 2) for name, s in spent.items()},
        "front_door_over_bare": round(spent["front_door"] / total * 1e6 / bare_us, 2),
    }
    print(json.dumps(report, indent=2))
    return 0
