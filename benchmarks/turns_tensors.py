"""The longest turns of a front door's loop for long KServe requests over gRPC, in every form.

As `turns`; each form has its own fleet. The bodies are those of `turns-bodies`.
"""

import argparse
import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks.processes import MODEL, fleet
from benchmarks.turns import COLUMNS, WORKER, columns, turns_file
from benchmarks.turns_bodies import Bodies, add_load_arguments, make_bodies
from runtime.grpc_client import RpcChannel
from wire.inference_pb2 import ModelInferRequest
from wire.pool import KSERVE, rpc_types
from wire.tensors import add_input

_LIMIT_S = 120.0


def _request(
    name: str, datatype: str, values: list[Any], *, typed: bool = False
) -> ModelInferRequest:
    request = ModelInferRequest(model_name=MODEL)
    add_input(request, name, datatype, (len(values),), values, typed=typed)
    add_input(request, "max_tokens", "INT32", (1,), [1], typed=typed)
    return request


def _chat(bodies: Bodies) -> ModelInferRequest:
    _, body = bodies.chat_short()
    return _request("messages", "BYTES", [msgspec.json.encode(body["messages"])])


FORMS: dict[str, Callable[[Bodies], ModelInferRequest]] = {
    "text": lambda bodies: _request("text_input", "BYTES", [bodies.tokenize()[1]["prompt"]]),
    "ids": lambda bodies: _request("input_ids", "INT32", bodies.ids()[1]["prompt"]),
    "ids, typed": lambda bodies: _request(
        "input_ids", "INT32", bodies.ids()[1]["prompt"], typed=True
    ),
    "8,001 messages": _chat,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_load_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Measure and print."""
    bodies = make_bodies(options)
    table = Table("form", *COLUMNS, "answers")
    with turns_file() as file:
        for form, make in FORMS.items():
            made = [make(bodies) for _ in range(options.requests)]
            with fleet(worker=WORKER, front_module="benchmarks.turns_front") as (front, _):
                began_s = time.monotonic()
                answers = asyncio.run(_send(front.ready["grpc"], made, options.streams))
                table.add_row(form, *columns(file, began_s), str(answers))
    Console().print(table)
    return 0


async def _send(address: str, requests: list[ModelInferRequest], streams: int) -> int:
    """Send all, so many at a time; returns how many were answered."""
    left: Iterator[ModelInferRequest] = iter(requests)
    channel = RpcChannel(address, rpc_types=rpc_types)
    answers = 0

    async def one_by_one() -> None:
        nonlocal answers
        for request in left:
            await channel.unary(KSERVE, "ModelInfer", request, timeout_s=_LIMIT_S)
            answers += 1

    try:
        await asyncio.gather(*(one_by_one() for _ in range(streams)))
    finally:
        await channel.close()
    return answers
