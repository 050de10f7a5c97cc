"""KServe v2 over HTTP, over a backend that follows a script: forms, refusals, errors, leaving."""

import asyncio
import json

import pytest

from gateway_http.config import GatewayConfig
from runtime.api_keys import ApiKeys
from tests.contracts.scripted_backend import ScriptedBackend
from tests.integration.gateway_client import serving, wait_for

INFER = "/v2/models/toy/infer"
GENERATE = "/v2/models/toy/generate"
STREAM = "/v2/models/toy/generate_stream"
TEXT = {"name": "text_input", "datatype": "BYTES", "shape": [1], "data": ["Hi"]}
BODY = {"id": "7", "inputs": [TEXT]}
RAW_HI = b"\x02\x00\x00\x00Hi"
KEY = "key-of-ann-in-plain-text"


def outputs(body: dict) -> dict:
    return {it["name"]: it.get("data") for it in body["outputs"]}


def binary(inputs: list[dict], behind: bytes, **fields: object) -> tuple[bytes, dict[str, str]]:
    head = json.dumps({"inputs": inputs, **fields}).encode()
    length = {"inference-header-content-length": str(len(head))}
    return head + behind, length | {"content-type": "application/octet-stream"}


async def test_the_server_describes_itself() -> None:
    async with serving(ScriptedBackend()) as http:
        server = (await http.get("/v2")).json()
        live = await http.get("/v2/health/live")
    assert server["name"] == "penstock"
    assert {"generate", "binary_tensor_data"} <= set(server["extensions"])
    assert server["version"]
    assert (live.status_code, live.json()) == (200, {"live": True})


@pytest.mark.parametrize(("ready", "status"), [(True, 200), (False, 503)])
async def test_readiness_is_the_backends(ready: bool, status: int) -> None:
    async with serving(ScriptedBackend(ready=ready)) as http:
        server = await http.get("/v2/health/ready")
        model = await http.get("/v2/models/toy/ready")
        version = await http.get("/v2/models/toy/versions/1/ready")
        other = await http.get("/v2/models/toy/versions/2/ready")
    assert (server.status_code, server.json()["ready"]) == (status, ready)
    assert (model.status_code, model.json()) == (status, {"name": "toy", "ready": ready})
    assert version.status_code == status
    assert (other.status_code, other.json()["ready"]) == (503, False)


async def test_metadata_and_configuration_name_the_same_tensors() -> None:
    async with serving(ScriptedBackend()) as http:
        metadata = (await http.get("/v2/models/toy-alias")).json()
        config = (await http.get("/v2/models/toy/versions/1/config")).json()
    assert metadata["name"] == config["name"] == "toy"
    assert metadata["versions"] == ["1"]
    assert [it["name"] for it in metadata["inputs"]] == [it["name"] for it in config["input"]]
    assert {it["name"]: it["shape"] for it in metadata["outputs"]} == {
        it["name"]: it["dims"] for it in config["output"]
    }
    assert config["model_transaction_policy"] == {"decoupled": True}


async def test_the_index_lists_models_and_may_leave_out_those_that_are_not_ready() -> None:
    async with serving(ScriptedBackend(ready=False)) as http:
        listed = await http.post("/v2/repository/index")
        ready = await http.post("/v2/repository/index", json={"ready": True})
    assert [(it["name"], it["state"]) for it in listed.json()] == [("toy", "UNAVAILABLE")]
    assert ready.json() == []


@pytest.mark.parametrize(
    "path", ["/v2/models/no", "/v2/models/toy/versions/9", "/v2/models/no/config"]
)
async def test_an_unknown_model_or_version_is_not_found(path: str) -> None:
    async with serving(ScriptedBackend()) as http:
        answer = await http.get(path)
        refused = await http.post("/v2/models/toy/versions/9/infer", json=BODY)
    assert answer.status_code == refused.status_code == 404
    assert isinstance(answer.json()["error"], str)


async def test_tensors_are_answered_with_tensors() -> None:
    backend = ScriptedBackend()
    async with serving(backend) as http:
        answer = (await http.post(INFER, json=BODY)).json()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("7", "toy", "1")
    assert outputs(answer) == {"text_output": ["Paris é\n"]}
    assert answer["outputs"][0]["shape"] == [1]
    assert answer["parameters"]["triton_final_response"] is True
    assert answer["parameters"]["completion_tokens"] == 3
    (request,) = backend.requests
    assert (request.prompt, request.request_id, request.stream) == ("Hi", "7", False)
    assert request.endpoint == "/v2/models/{name:path}/infer"


async def test_an_absent_id_is_left_out_of_the_answer() -> None:
    backend = ScriptedBackend()
    async with serving(backend) as http:
        answer = (await http.post(INFER, json={"inputs": [TEXT]})).json()
    assert "id" not in answer
    assert backend.requests[0].request_id.startswith("infer-")


async def test_flags_and_parameters_mean_what_they_mean_over_grpc() -> None:
    flags = [
        {"name": name, "datatype": "BOOL", "shape": [1], "data": [True]}
        for name in ("return_finish_reason", "return_logprobs", "return_num_output_tokens")
    ]
    shape = {**TEXT, "shape": [1, 1], "data": [["Hi"]]}
    body = {
        "inputs": [shape, *flags],
        "outputs": [{"name": "finish_reason"}, {"name": "num_output_tokens"}],
        "parameters": {"max_tokens": "5", "temperature": 0.5, "seed": 2**62},
    }
    backend = ScriptedBackend()
    async with serving(backend) as http:
        answer = (await http.post(INFER, json=body)).json()
    assert outputs(answer) == {"finish_reason": ["stop"], "num_output_tokens": [3]}
    assert answer["outputs"][0]["shape"] == [1, 1]
    sampling = backend.requests[0].sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.seed) == (5, 0.5, 2**62)


async def test_tensors_may_stand_behind_the_json_both_ways() -> None:
    tensor = {**TEXT, "parameters": {"binary_data_size": len(RAW_HI)}}
    del tensor["data"]
    ids = {"name": "return_output_ids", "datatype": "BOOL", "shape": [1], "data": [True]}
    wanted = [
        {"name": "output_ids", "parameters": {"binary_data": False}},
        {"name": "text_output"},
    ]
    content, headers = binary(
        [tensor, ids], RAW_HI, outputs=wanted, parameters={"binary_data_output": True}
    )
    backend = ScriptedBackend()
    async with serving(backend) as http:
        answer = await http.post(INFER, content=content, headers=headers)
    assert answer.status_code == 200
    assert backend.requests[0].prompt == "Hi"
    length = int(answer.headers["inference-header-content-length"])
    body = json.loads(answer.content[:length])
    text = "Paris é\n".encode()
    assert outputs(body) == {"text_output": None, "output_ids": [1, 2, 3]}
    assert body["outputs"][0]["parameters"] == {"binary_data_size": 4 + len(text)}
    assert answer.content[length:] == len(text).to_bytes(4, "little") + text


BAD_TENSORS = {
    "no data": {**TEXT, "data": None},
    "too many": {**TEXT, "data": ["a", "b"]},
    "numbers as text": {**TEXT, "data": [3]},
    "unknown datatype": {**TEXT, "datatype": "TEXT"},
    "negative size": {**TEXT, "shape": [-1]},
    "text as number": {"name": "max_tokens", "datatype": "INT32", "shape": [1], "data": ["5"]},
    "boolean as number": {"name": "max_tokens", "datatype": "INT32", "shape": [1], "data": [True]},
    "fraction": {"name": "max_tokens", "datatype": "INT32", "shape": [1], "data": [1.5]},
    "out of range": {"name": "max_tokens", "datatype": "INT32", "shape": [1], "data": [2**40]},
    "unknown name": {**TEXT, "name": "text"},
    "a size without bytes": {**TEXT, "data": [], "parameters": {"binary_data_size": 6}},
    "a parameter that is a list": {**TEXT, "parameters": {"x": [1]}},
}


@pytest.mark.parametrize("tensor", BAD_TENSORS.values(), ids=BAD_TENSORS)
async def test_a_wrong_tensor_is_refused_with_a_text(tensor: dict) -> None:
    inputs = [tensor] if tensor["name"] != "max_tokens" else [TEXT, tensor]
    backend = ScriptedBackend()
    async with serving(backend) as http:
        answer = await http.post(INFER, json={"inputs": inputs})
    assert answer.status_code == 400
    assert isinstance(answer.json()["error"], str)
    assert backend.requests == []


@pytest.mark.parametrize("length", ["x", "-1", "100000"])
async def test_a_wrong_length_of_the_json_is_refused(length: str) -> None:
    content, headers = binary([TEXT], b"")
    headers["inference-header-content-length"] = length
    async with serving(ScriptedBackend()) as http:
        answer = await http.post(INFER, content=content, headers=headers)
    assert answer.status_code == 400
    assert "inference-header-content-length" in answer.json()["error"]


async def test_bytes_that_belong_to_no_tensor_are_refused() -> None:
    content, headers = binary([TEXT], b"surplus")
    async with serving(ScriptedBackend()) as http:
        answer = await http.post(INFER, content=content, headers=headers)
    assert answer.status_code == 400


async def test_what_is_not_offered_says_so() -> None:
    shared = {**TEXT, "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 6}}
    async with serving(ScriptedBackend()) as http:
        memory = await http.post(INFER, json={"inputs": [shared]})
        image = await http.post(GENERATE, json={"text_input": "Hi", "image": "aGk="})
        coded = await http.post(INFER, content=b"x", headers={"content-encoding": "gzip"})
    assert memory.status_code == image.status_code == 501
    assert coded.status_code == 415


async def test_a_stream_over_infer_or_generate_is_refused_by_name() -> None:
    stream = {"name": "stream", "datatype": "BOOL", "shape": [1], "data": [True]}
    async with serving(ScriptedBackend()) as http:
        infer = await http.post(INFER, json={"inputs": [TEXT, stream]})
        generate = await http.post(GENERATE, json={"text_input": "Hi", "stream": True})
    assert infer.status_code == generate.status_code == 400
    assert "generate_stream" in infer.json()["error"]


async def test_what_the_routing_refuses_has_kserves_form_too() -> None:
    async with serving(ScriptedBackend(), GatewayConfig(max_body_bytes=100)) as http:
        answers = [
            await http.get("/v2/nothing"),
            await http.post("/v2"),
            await http.post(INFER, data={"a": "b"}),
            await http.post(INFER, json={"inputs": [TEXT] * 9}),
            await http.post(INFER, content=b"{", headers={"content-type": "application/json"}),
        ]
    assert [answer.status_code for answer in answers] == [404, 405, 415, 413, 400]
    assert all(isinstance(answer.json()["error"], str) for answer in answers)


async def test_a_long_body_is_read_in_full_or_refused() -> None:
    ids = {"name": "input_ids", "datatype": "INT32", "data": [[it] for it in range(50_000)]}
    backend = ScriptedBackend()
    async with serving(backend) as http:
        answer = await http.post(INFER, json={"inputs": [{**ids, "shape": [50_000]}]})
        refused = await http.post(INFER, json={"inputs": [{**ids, "shape": [49_999]}]})
    assert (answer.status_code, refused.status_code) == (200, 400)
    assert list(backend.requests[0].prompt_token_ids or ()) == list(range(50_000))


async def test_json_that_nests_too_deep_is_refused() -> None:
    deep = json.loads("[" * 400 + "]" * 400)
    async with serving(ScriptedBackend()) as http:
        infer = await http.post(INFER, json={"inputs": [{**TEXT, "data": deep}]})
        generate = await http.post(GENERATE, json={"messages": [{"role": "user", "content": deep}]})
    assert infer.status_code == generate.status_code == 400


@pytest.mark.parametrize(
    ("path", "body"),
    [(INFER, BODY), (GENERATE, {"text_input": "Hi"}), (STREAM, {"text_input": "Hi"})],
)
async def test_a_client_that_leaves_cancels(path: str, body: dict) -> None:
    backend = ScriptedBackend("a", asyncio.Event())
    async with serving(backend) as http:
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(http.post(path, json=body))
            await wait_for(backend.started)
            asking.cancel()
        await wait_for(backend.cancelled)
    assert backend.running == 0


async def test_headers_bring_limit_trace_and_worker() -> None:
    headers = {
        "x-request-timeout": "30",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "x-penstock-worker": "w1",
        "x-penstock-data-parallel-rank": "2",
    }
    body = {**BODY, "parameters": {"timeout": 5_000_000}}
    backend = ScriptedBackend()
    async with serving(backend) as http:
        await http.post(INFER, json=body, headers=headers)
    (request,) = backend.requests
    assert request.timeout_s == 5
    assert request.deadline_s is not None
    assert request.traceparent == headers["traceparent"]
    assert (request.pinned_worker, request.data_parallel_rank) == ("w1", 2)


async def test_all_but_health_needs_a_key() -> None:
    keys = ApiKeys(file=None, variable=KEY)
    async with serving(ScriptedBackend(), access=keys) as http:
        health = await http.get("/v2/health/ready")
        refused = await http.get("/v2")
        stranger = await http.post(INFER, json=BODY)
        known = await http.post(INFER, json=BODY, headers={"authorization": f"Bearer {KEY}"})
    assert health.status_code == 200
    assert refused.status_code == stranger.status_code == 401
    assert isinstance(stranger.json()["error"], str)
    assert known.status_code == 200
