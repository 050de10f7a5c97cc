"""KServe v2 over HTTP before real workers: what gRPC answers, in the front door and alone."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gateway_http.kserve_backend import KServeBackend
from runtime.errors import ServingError
from runtime.grpc_client import RpcChannel
from tests.integration.gateway_client import serving
from tests.integration.kserve_client import infer, read
from tests.integration.stack import Stack, running_stack
from tests.waiting import eventually
from wire import inference_pb2 as pb
from wire.pool import KSERVE, rpc_types
from wire.tensors import add_input, decode_outputs
from worker.sim_engine import SimConfig
from worker.sim_timing import SimTiming

INFER = "/v2/models/sim/infer"
SLOW = SimConfig(timing=SimTiming())
WAIT_S = 10.0
_Inputs = list[tuple[str, str, list[int], list[Any]]]


@dataclass(frozen=True)
class Setup:
    http: httpx2.AsyncClient
    grpc: RpcChannel
    stack: Stack


@pytest.fixture(params=["in the front door", "alone"])
async def setup(request: Any, model_folder: Path) -> AsyncIterator[Setup]:
    async with running_stack(model_folder, sim=SLOW) as stack:
        channel = RpcChannel(stack.grpc, rpc_types=rpc_types)
        alone = request.param == "alone"
        backend = KServeBackend(channel) if alone else stack.door.backend
        async with serving(backend) as http:
            yield Setup(http, channel, stack)
        await channel.close()


def flag(name: str) -> tuple[str, str, list[int], list[Any]]:
    return (name, "BOOL", [1], [True])


ALL_OUTPUTS = [
    flag("return_finish_reason"),
    flag("return_output_ids"),
    flag("return_logprobs"),
    flag("return_cumulative_logprob"),
    flag("return_num_input_tokens"),
    flag("return_num_output_tokens"),
]
GREEDY = ("sampling_parameters", "BYTES", [1], ['{"temperature": 0, "max_tokens": 9}'])
SAME: dict[str, _Inputs] = {
    "a text": [("text_input", "BYTES", [1], ["Hello there"]), GREEDY],
    "the answer alone": [
        ("text_input", "BYTES", [1], ["Hello"]),
        GREEDY,
        flag("exclude_input_in_output"),
    ],
    "a batch of one": [("text_input", "BYTES", [1, 1], ["Hello there"]), GREEDY, *ALL_OUTPUTS],
    "ids": [("input_ids", "INT64", [3], [5, 6, 7]), GREEDY, *ALL_OUTPUTS],
    "a chat": [("messages", "BYTES", [1], ['[{"role": "user", "content": "Hi"}]']), GREEDY],
    "log probabilities": [
        ("text_input", "BYTES", [1], ["Hi"]),
        ("sampling_parameters", "BYTES", [1], ['{"temperature": 0, "logprobs": 2}']),
        *ALL_OUTPUTS,
    ],
    "several choices": [
        ("text_input", "BYTES", [1], ["Hi"]),
        ("n", "INT32", [1], [3]),
        ("seed", "UINT64", [1], [7]),
        ("temperature", "FP32", [1], [1.0]),
        *ALL_OUTPUTS,
    ],
}
REFUSED: dict[str, _Inputs] = {
    "an empty prompt": [("text_input", "BYTES", [1], [""])],
    "an unknown input": [("text", "BYTES", [1], ["Hi"])],
    "no prompt": [GREEDY],
    "two prompts": [("text_input", "BYTES", [1], ["Hi"]), ("input_ids", "INT32", [1], [5])],
    "a wrong datatype": [("text_input", "INT32", [1], [5])],
    "too few elements": [("text_input", "BYTES", [2], ["Hi"])],
    "a wrong value": [("text_input", "BYTES", [1], ["Hi"]), ("top_p", "FP32", [1], [7.0])],
    "a prompt beyond the context": [("input_ids", "INT32", [9000], [5] * 9000)],
}


def over_grpc(inputs: _Inputs) -> Any:
    message = pb.ModelInferRequest(model_name="sim", id="same")
    for name, datatype, shape, data in inputs:
        # Written with a shape that fits, so that one that does not fit can be sent.
        add_input(message, name, datatype, (len(data),), data)
        del message.inputs[-1].shape[:]
        message.inputs[-1].shape.extend(shape)
    return message


def over_http(inputs: _Inputs) -> dict[str, Any]:
    names = ("name", "datatype", "shape", "data")
    return {"id": "same", "inputs": [dict(zip(names, it, strict=True)) for it in inputs]}


def as_json(response: Any) -> dict[str, Any]:
    """The tensors of a gRPC response as HTTP has them."""
    tensors = decode_outputs(response).values()
    return {
        it.name: (
            it.datatype,
            list(it.shape),
            [x.decode() if isinstance(x, bytes) else x for x in it.values.ravel().tolist()],
        )
        for it in tensors
    }


@pytest.mark.parametrize("inputs", SAME.values(), ids=SAME)
async def test_the_same_request_has_the_same_tensors_over_both(
    setup: Setup, inputs: _Inputs
) -> None:
    answer = await setup.http.post(INFER, json=over_http(inputs))
    assert answer.status_code == 200
    body = answer.json()
    response = await infer(setup.grpc, over_grpc(inputs))
    assert body["id"] == response.id == "same"
    assert body["model_name"] == response.model_name
    assert body["model_version"] == response.model_version
    tensors = {it["name"]: (it["datatype"], it["shape"], it["data"]) for it in body["outputs"]}
    assert tensors == as_json(response)
    counts = ("prompt_tokens", "completion_tokens")
    assert [body["parameters"][it] for it in counts] == [
        response.parameters[it].int64_param for it in counts
    ]


@pytest.mark.parametrize("inputs", REFUSED.values(), ids=REFUSED)
async def test_the_same_request_is_refused_alike_over_both(setup: Setup, inputs: _Inputs) -> None:
    answer = await setup.http.post(INFER, json=over_http(inputs))
    with pytest.raises(ServingError) as refused:
        await infer(setup.grpc, over_grpc(inputs))
    assert answer.status_code == refused.value.http_status
    assert answer.json() == {"error": refused.value.message}


async def test_streamed_events_join_to_the_text_that_grpc_streams(setup: Setup) -> None:
    body = {"text_input": "Hello there", "temperature": 0, "max_tokens": 9}
    answer = await setup.http.post("/v2/models/sim/generate_stream", json=body)
    whole = await setup.http.post(
        "/v2/models/sim/generate", json=body | {"exclude_input_in_output": True}
    )
    message = over_grpc([("text_input", "BYTES", [1], ["Hello there"]), GREEDY, flag("stream")])
    async with asyncio.timeout(WAIT_S):
        async with setup.grpc.stream(KSERVE, "ModelStreamInfer") as stream:
            stream.send(message)
            stream.half_close()
            responses = await read(stream)
    parts = [json.loads(it.removeprefix("data: ")) for it in answer.text.split("\n\n")[:-1]]
    streamed = "".join(as_json(it.infer_response)["text_output"][2][0] for it in responses)
    assert "".join(part["text_output"] for part in parts) == streamed != ""
    assert whole.json()["text_output"] == streamed
    assert parts[-1]["completion_tokens"] == whole.json()["completion_tokens"] == 9


async def test_the_model_and_its_readiness_are_those_of_grpc(setup: Setup) -> None:
    metadata = (await setup.http.get("/v2/models/sim")).json()
    grpc = await setup.grpc.unary(
        KSERVE, "ModelMetadata", pb.ModelMetadataRequest(name="sim"), timeout_s=WAIT_S
    )
    assert [it["name"] for it in metadata["inputs"]] == [it.name for it in grpc.inputs]
    assert [it["shape"] for it in metadata["outputs"]] == [list(it.shape) for it in grpc.outputs]
    assert (await setup.http.get("/v2/models/sim/ready")).status_code == 200
    assert (await setup.http.get("/v2/models/other/ready")).status_code in (404, 503)
    index = await setup.http.post("/v2/repository/index")
    assert index.json() == [{"name": "sim", "version": "1", "state": "READY", "reason": ""}]


async def test_a_client_that_leaves_frees_the_engine(setup: Setup) -> None:
    body = {"text_input": "Hi", "sampling_parameters": {"max_tokens": None, "ignore_eos": True}}
    for path in ("generate", "generate_stream"):
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(setup.http.post(f"/v2/models/sim/{path}", json=body))
            await eventually(lambda: setup.stack.engine_load == 1)
            asking.cancel()
        await eventually(lambda: setup.stack.engine_load == 0)
        await eventually(lambda: setup.stack.door.in_flight == 0)


async def test_kserves_rest_client_is_understood(setup: Setup) -> None:
    """What kserve's InferRequest.to_rest() sends, JSON and binary, and what it asks for first."""
    http, plain = setup.http, {"name": "text_input", "shape": [1], "datatype": "BYTES"}
    assert (await http.get("/v2/health/live")).json()["live"] is True
    assert (await http.get("/v2/health/ready")).json()["ready"] is True
    assert (await http.get("/v2/models/sim/ready")).json()["ready"] is True
    body = {"id": "k", "inputs": [{**plain, "data": ["Hi"], "parameters": {}}], "parameters": {}}
    answer = await http.post(INFER, content=json.dumps(body).encode())
    assert answer.json()["outputs"][0]["name"] == "text_output"
    raw = b"\x02\x00\x00\x00Hi"
    inputs = [{**plain, "parameters": {"binary_data_size": len(raw)}}]
    head = json.dumps({"id": "k", "inputs": inputs}).encode()
    headers = {
        "inference-header-content-length": str(len(head)),
        "content-type": "application/octet-stream",
    }
    again = await http.post(INFER, content=head + raw, headers=headers)
    assert again.json()["outputs"] == answer.json()["outputs"]


HTTP_CLIENT = Path(__file__).parents[2] / "examples" / "triton_http.py"


@pytest.mark.skipif(find_spec("geventhttpclient") is None, reason="needs tritonclient[http]")
async def test_tritonclients_http_client_is_understood(setup: Setup) -> None:
    address = str(setup.http.base_url).removeprefix("http://").rstrip("/")
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, str(HTTP_CLIENT), address],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() != ""
