"""Requests to a front door over gRPC, and its answers, for tests."""

import asyncio
import json
from typing import Any

from runtime.rpc_client import RpcCaller, RpcStream
from wire import inference_pb2 as pb
from wire.pool import KSERVE

WAIT_S = 10.0


def ask(request_id: str = "", *, stream: bool = True, model: str = "sim", **parameters: Any) -> Any:
    """A request with `text_input` and sampling parameters as JSON."""
    sampling = {"max_tokens": 8, "temperature": 0} | parameters
    inputs = {"text_input": b"Hello there", "sampling_parameters": json.dumps(sampling).encode()}
    request = pb.ModelInferRequest(model_name=model, id=request_id)
    for name, value in inputs.items():
        add_bytes(request, name, value)
    request.inputs.add(name="return_output_ids", datatype="BOOL", shape=[1])
    request.raw_input_contents.append(b"\1")
    if stream:
        request.inputs.add(name="stream", datatype="BOOL", shape=[1])
        request.raw_input_contents.append(b"\1")
    return request


def add_bytes(request: Any, name: str, value: bytes) -> None:
    request.inputs.add(name=name, datatype="BYTES", shape=[1])
    request.raw_input_contents.append(len(value).to_bytes(4, "little") + value)


def outputs(response: Any) -> dict[str, bytes]:
    return dict(zip((o.name for o in response.outputs), response.raw_output_contents, strict=True))


def text_of(response: Any) -> str:
    return outputs(response)["text_output"][4:].decode()


def ids_of(response: Any) -> list[int]:
    raw = outputs(response)["output_ids"]
    return [int.from_bytes(raw[at : at + 4], "little") for at in range(0, len(raw), 4)]


def ids_by_request(answers: list[Any]) -> dict[str, list[int]]:
    """Request id to all token ids that came for it."""
    found: dict[str, list[int]] = {}
    for answer in answers:
        found.setdefault(answer.infer_response.id, []).extend(ids_of(answer.infer_response))
    return found


def is_final(response: Any) -> bool:
    final: bool = response.parameters["triton_final_response"].bool_param
    return final


async def infer(channel: RpcCaller, request: Any) -> Any:
    return await channel.unary(KSERVE, "ModelInfer", request, timeout_s=WAIT_S)


async def read(stream: RpcStream, finals: int = 1) -> list[Any]:
    """Read until `finals` requests have ended, each by a final response or an error."""
    answers: list[Any] = []
    async with asyncio.timeout(WAIT_S):
        async for answer in stream:
            answers.append(answer)
            finals -= bool(answer.error_message) or is_final(answer.infer_response)
            if finals == 0:
                break
    return answers


def open_stream(channel: RpcCaller, **metadata: str) -> RpcStream:
    return channel.stream(KSERVE, "ModelStreamInfer", metadata=metadata)
