"""Plays a workload against a front door, open loop, and notes each request's first token."""

import asyncio
import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.processes import MODEL
from benchmarks.routing.workloads import Conversation, Workload
from runtime.grpc_client import RpcChannel
from wire import inference_pb2 as pb
from wire.pool import KSERVE, rpc_types

_REQUEST_LIMIT_S = 120.0
_CONNECTIONS = 4


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One answered request; times in seconds, `number` within its conversation from 0."""

    number: int
    first_token_s: float
    prompt_tokens: int
    cached_tokens: int


async def replay(address: str, workload: Workload) -> list[Turn]:
    """Run every conversation at its time; raises what a request fails with."""
    channels = [
        RpcChannel(address, rpc_types=rpc_types, keepalive_s=None) for _ in range(_CONNECTIONS)
    ]
    turns: list[Turn] = []
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    try:
        async with asyncio.TaskGroup() as group:
            for number, conversation in enumerate(workload.conversations):
                await asyncio.sleep(began_s + conversation.due_s - loop.time())
                channel = channels[number % _CONNECTIONS]
                group.create_task(_converse(channel, conversation, turns))
    finally:
        for channel in channels:
            await channel.close()
    return turns


async def _converse(channel: RpcChannel, it: Conversation, turns: list[Turn]) -> None:
    prompt: list[int] = []
    for number, added in enumerate(it.turns):
        prompt += added
        turn, answer = await _ask(channel, number, prompt, it.answer)
        turns.append(turn)
        prompt += answer


async def _ask(
    channel: RpcChannel, number: int, prompt: Sequence[int], answer: int
) -> tuple[Turn, list[int]]:
    loop = asyncio.get_running_loop()
    began_s, first_s, ids = loop.time(), None, array("i")
    async with channel.stream(KSERVE, "ModelStreamInfer", timeout_s=_REQUEST_LIMIT_S) as stream:
        stream.send(_request(prompt, answer))
        stream.half_close()
        async for message in stream:
            if message.error_message:
                raise RuntimeError(message.error_message)
            if first_s is None:
                first_s = loop.time()
            response = message.infer_response
            ids.frombytes(response.raw_output_contents[0])
            parameters = response.parameters
            if "completion_tokens" in parameters:
                turn = Turn(
                    number=number,
                    first_token_s=first_s - began_s,
                    prompt_tokens=len(prompt),
                    cached_tokens=parameters["cached_tokens"].int64_param,
                )
                return turn, ids.tolist()
    raise RuntimeError("a request had no end")


def _request(prompt: Sequence[int], answer: int) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=MODEL)
    sampling = json.dumps({"max_tokens": answer, "temperature": 0, "ignore_eos": True}).encode()
    for name, datatype, shape, raw in (
        ("input_ids", "INT32", [len(prompt)], array("i", prompt).tobytes()),
        ("sampling_parameters", "BYTES", [1], len(sampling).to_bytes(4, "little") + sampling),
        ("stream", "BOOL", [1], b"\1"),
        ("return_output_ids", "BOOL", [1], b"\1"),
    ):
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(raw)
    request.outputs.add(name="output_ids")
    return request
