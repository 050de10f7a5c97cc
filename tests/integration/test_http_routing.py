"""Routing over HTTP: where answers came from, dry runs, pins and busy thresholds."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gateway_http.kserve_backend import KServeBackend
from runtime.api_keys import ApiKeys
from runtime.grpc_client import RpcChannel
from runtime.request_record import REQUESTS
from tests.integration.gateway_client import serving
from tests.integration.stack import Stack, running_stack
from tests.integration.test_kv_routing import BLOCK, FAST, agrees, prompt
from tests.waiting import eventually
from wire.pool import rpc_types
from worker.sim_engine import SimConfig
from worker.sim_timing import SimTiming

CHAT = {"model": "sim", "messages": [{"role": "user", "content": "Hi " * 100}], "max_tokens": 4}
WORKER, RANK = "x-penstock-worker", "x-penstock-data-parallel-rank"
OVERLAP, BLOCKS = "x-penstock-overlap-blocks", "x-penstock-prompt-blocks"
EXPLAIN = {"x-penstock-explain-route": "true"}
# A step of 1 s: what runs still runs when it is looked at.
SLOW = SimConfig(block_size=BLOCK, kv_blocks=64, context_length=512,
                 timing=SimTiming(step_ms=1000))  # fmt: skip
NONE = {"active_decode_blocks_threshold": None, "active_prefill_tokens_threshold": None}


def completion(token_ids: list[int], **more: Any) -> dict[str, Any]:
    return {"model": "sim", "prompt": token_ids, "max_tokens": 4, "temperature": 0, **more}


@dataclass(frozen=True)
class Front:
    stack: Stack
    http: httpx2.AsyncClient

    async def post(self, path: str, body: Any, **headers: str) -> httpx2.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.http.post(path, json=body, headers=named)


@pytest.fixture
async def front(model_folder: Path) -> AsyncIterator[Front]:
    async with (
        running_stack(model_folder, workers=2, sim=FAST) as stack,
        serving(stack.door.backend, routing=stack.door.routing) as http,
    ):
        yield Front(stack, http)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_says_where_it_came_from_to_who_asks(front: Front, stream: bool) -> None:
    body = completion(prompt(1, 4), stream=stream)
    first = await front.http.post("/v1/completions", json=body, headers=EXPLAIN)
    assert first.status_code == 200
    assert first.headers[WORKER] in {"worker-0", "worker-1"}
    assert (first.headers[RANK], first.headers[OVERLAP], first.headers[BLOCKS]) == ("0", "0", "4")
    assert float(first.headers["x-penstock-route-cost"]) > 0
    await eventually(agrees(front.stack))
    again = await front.http.post("/v1/completions", json=body, headers=EXPLAIN)
    assert again.headers[WORKER] == first.headers[WORKER]
    assert again.headers[OVERLAP] == "4"
    chat = await front.http.post(
        "/v1/chat/completions", json={**CHAT, "stream": stream}, headers=EXPLAIN
    )
    assert chat.headers[WORKER] in {"worker-0", "worker-1"}
    for headers in ({}, {"x-penstock-explain-route": "false"}):
        plain = await front.http.post("/v1/completions", json=body, headers=headers)
        assert plain.status_code == 200
        assert not [name for name in plain.headers if name.startswith("x-penstock")]


@pytest.mark.parametrize("name", ["worker-0", "worker-1"])
async def test_a_pinned_request_goes_there(front: Front, name: str) -> None:
    headers = EXPLAIN | {WORKER: name, RANK: "0"}
    for path, body in (
        ("/v1/completions", completion(prompt(2, 2))),
        ("/v1/chat/completions", CHAT),
    ):
        answer = await front.http.post(path, json=body, headers=headers)
        assert answer.headers[WORKER] == name
    told = await front.http.post("/v1/route", json=CHAT, headers=headers)
    assert [it["worker_id"] for it in told.json()["candidates"]] == [name]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/route"])
async def test_a_pin_that_nobody_can_follow_is_named(front: Front, path: str) -> None:
    body = completion(prompt(2, 2))
    for rank in ("-1", "x", "1.5", "", "9999999999"):
        answer = await front.http.post(path, json=body, headers={RANK: rank})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, RANK), rank
    for headers in ({RANK: "7"}, {RANK: "1", WORKER: "worker-1"}):
        answer = await front.http.post(path, json=body, headers=headers)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, "data_parallel_rank"), error
    answer = await front.http.post(path, json=body, headers={WORKER: "worker-9"})
    assert answer.status_code == 503
    assert "worker 'worker-9' does not serve sim" in answer.json()["error"]["message"]


async def test_a_dry_run_judges_every_worker_and_sends_nothing(front: Front) -> None:
    body = completion(prompt(3, 4))
    idle = (await front.post("/v1/route", body)).json()
    assert (idle["model"], idle["prompt_blocks"], idle["overlap_blocks"]) == ("sim", 4, 0)
    assert front.stack.door.in_flight == front.stack.engine_load == 0
    assert not any(len(worker.engine.kv_logs[0]) for worker in front.stack.workers)
    for name in ("worker-1", "worker-0"):
        beginning = prompt(int(name[-1]), 4)
        await front.http.post("/v1/completions", json=completion(beginning), headers={WORKER: name})
        await eventually(agrees(front.stack))
        told = (await front.post("/v1/route", completion([*beginning, 5]))).json()
        best, other = told["candidates"]
        assert told["worker_id"] == best["worker_id"] == name
        assert told["overlap_blocks"] == best["overlap_blocks"] == 4
        assert other["overlap_blocks"] == 0
        assert best["cost"] < other["cost"]
        assert not best["busy"] | other["busy"]
        address = {worker.name: worker.address for worker in front.stack.workers}[name]
        assert told["address"] == address


async def test_a_dry_run_of_a_chat_is_that_of_its_prompt(front: Front) -> None:
    answer = await front.http.post("/v1/chat/completions", json=CHAT, headers=EXPLAIN)
    await eventually(agrees(front.stack))
    told = (await front.post("/v1/route", CHAT)).json()
    assert told["worker_id"] == answer.headers[WORKER]
    assert told["prompt_blocks"] == int(answer.headers[BLOCKS]) > 5
    assert told["overlap_blocks"] == told["prompt_blocks"]


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b"{", 400, None),
        (b"[]", 400, None),
        (b"{}", 400, "model"),
        (b'{"model": "sim"}', 400, "prompt"),
        (b'{"model": "sim", "prompt": []}', 400, "prompt"),
        (b'{"model": "sim", "prompt": ["a", "b"]}', 400, "prompt"),
        (b'{"model": "sim", "messages": "Hi"}', 400, "messages"),
        (b'{"model": "sim", "messages": [{"role": "king"}]}', 400, "messages[0].role"),
        (b'{"model": "none", "prompt": "a"}', 404, "model"),
        (b'{"model": "none", "messages": [{"role": "user", "content": "a"}]}', 404, "model"),
    ],
)
async def test_a_dry_run_of_no_request_is_refused_as_the_request_is(
    front: Front, body: bytes, status: int, param: str | None
) -> None:
    answer = await front.http.post(
        "/v1/route", content=body, headers={"content-type": "application/json"}
    )
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
    # A question is no request: no outcome is counted.
    assert "/v1/route" not in {
        sample.labels["endpoint"] for family in REQUESTS.collect() for sample in family.samples
    }


async def test_thresholds_are_read_changed_and_taken_away(front: Front) -> None:
    async def shown() -> Any:
        return (await front.http.get("/busy_threshold")).json()["thresholds"]

    assert await shown() == [{"model": "sim"} | NONE]
    both = {"active_decode_blocks_threshold": 0.5, "active_prefill_tokens_threshold": 1000}
    answer = await front.post("/busy_threshold", {"model": "sim"} | both)
    assert (answer.status_code, answer.json()) == (200, {"model": "sim"} | both)
    # Without values it is a question, and what is not named stays.
    assert (await front.post("/busy_threshold", {"model": "sim"})).json() == {"model": "sim"} | both
    one = {"active_decode_blocks_threshold": None}
    assert (await front.post("/busy_threshold", {"model": "sim"} | one)).json() == (
        {"model": "sim"} | both | one
    )
    assert await shown() == [{"model": "sim"} | both | one]
    gone = await front.http.delete("/busy_threshold", params={"model": "sim"})
    assert (gone.status_code, gone.json()) == (200, {"model": "sim"} | NONE)
    assert await shown() == [{"model": "sim"} | NONE]
    await front.post("/busy_threshold", {"model": "sim"} | both)
    gone = await front.http.request("DELETE", "/busy_threshold", json={"model": "sim"})
    assert gone.json() == {"model": "sim"} | NONE


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "model"),
        ({"model": ""}, 400, "model"),
        ({"model": "sim", "active_decode_blocks_threshold": 1.01}, 400,
         "active_decode_blocks_threshold"),
        ({"model": "sim", "active_decode_blocks_threshold": "0.5"}, 400,
         "active_decode_blocks_threshold"),
        ({"model": "sim", "active_prefill_tokens_threshold": -1}, 400,
         "active_prefill_tokens_threshold"),
        ({"model": "sim", "active_prefill_tokens_threshold": 1.5}, 400,
         "active_prefill_tokens_threshold"),
        ({"model": "sim", "threshold": 1}, 400, None),
        ({"model": "none"}, 404, "model"),
    ],
)  # fmt: skip
async def test_a_threshold_that_is_none_is_refused(
    front: Front, body: Any, status: int, param: str | None
) -> None:
    answer = await front.post("/busy_threshold", body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


async def test_an_unknown_model_has_no_thresholds_to_take_away(front: Front) -> None:
    gone = await front.http.delete("/busy_threshold", params={"model": "none"})
    assert gone.status_code == 404
    assert (await front.http.delete("/busy_threshold")).status_code == 400


async def test_while_all_workers_are_busy_requests_are_told_to_come_back(
    model_folder: Path,
) -> None:
    async with (
        running_stack(model_folder, workers=2, sim=SLOW) as stack,
        serving(stack.door.backend, routing=stack.door.routing) as http,
        asyncio.TaskGroup() as tasks,
    ):
        front = Front(stack, http)
        threshold = {"model": "sim", "active_decode_blocks_threshold": 0.0}
        await front.post("/busy_threshold", threshold)
        waiting = []
        for number in range(2):
            body = completion(prompt(number, 2), max_tokens=100)
            waiting.append(tasks.create_task(front.post("/v1/completions", body)))
            await eventually(lambda: stack.engine_load == len(waiting))
        loads = [worker.engine.load() for worker in stack.workers]
        assert [load.running + load.waiting for load in loads] == [1, 1]
        for stream in (False, True):
            answer = await front.post("/v1/completions", completion(prompt(8, 2), stream=stream))
            assert answer.status_code == 429
            assert int(answer.headers["retry-after"]) > 0
            assert "all workers are busy" in answer.json()["error"]["message"]
        pinned = await front.post("/v1/chat/completions", CHAT, x_penstock_worker="worker-1")
        assert pinned.status_code == 429
        assert "worker 'worker-1' is busy" in pinned.json()["error"]["message"]
        told = (await front.post("/v1/route", completion(prompt(8, 2)))).json()
        assert [it["busy"] for it in told["candidates"]] == [True, True]
        await front.http.delete("/busy_threshold", params={"model": "sim"})
        waiting.append(tasks.create_task(front.post("/v1/completions", body)))
        await eventually(lambda: stack.engine_load == 3)
        for task in waiting:
            task.cancel()
        await eventually(lambda: stack.engine_load == 0)
        (model,) = stack.door._fleet.models()
        assert model.router.active() == {}


PATHS = [
    ("POST", "/v1/route"),
    ("GET", "/busy_threshold"),
    ("POST", "/busy_threshold"),
    ("DELETE", "/busy_threshold"),
]


@pytest.mark.parametrize(("method", "path"), PATHS)
async def test_a_gateway_that_does_not_route_has_no_such_path(
    front: Front, method: str, path: str
) -> None:
    channel = RpcChannel(front.stack.grpc, rpc_types=rpc_types)
    async with serving(KServeBackend(channel)) as http:
        answer = await http.request(method, path, json={"model": "sim", "prompt": "a"})
        assert answer.status_code == 404
    await channel.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_gateway_hands_pins_on_and_tells_where_answers_came_from(
    front: Front, stream: bool
) -> None:
    channel = RpcChannel(front.stack.grpc, rpc_types=rpc_types)
    body = completion(prompt(1, 4), stream=stream)
    async with serving(KServeBackend(channel)) as http:
        for name in ("worker-1", "worker-0"):
            pins = EXPLAIN | {WORKER: name, RANK: "0"}
            answer = await http.post("/v1/completions", json=body, headers=pins)
            assert answer.status_code == 200
            assert (answer.headers[WORKER], answer.headers[RANK]) == (name, "0")
            assert (answer.headers[OVERLAP], answer.headers[BLOCKS]) == ("0", "4")
        answer = await http.post("/v1/completions", json=body, headers={RANK: "7"})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, "data_parallel_rank"), error
    await channel.close()


async def test_routing_needs_a_key_where_keys_are_demanded(front: Front, tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text("- name: ann\n  key: key-of-ann-in-plain-text\n")
    keys = ApiKeys(file=file, variable=None)
    door = front.stack.door
    async with serving(door.backend, access=keys, routing=door.routing) as http:
        for method, path in PATHS:
            body = {"model": "sim"} | ({"prompt": "a"} if "route" in path else {})
            assert (await http.request(method, path, json=body)).status_code == 401
            headers = {"authorization": "Bearer key-of-ann-in-plain-text"}
            answer = await http.request(method, path, json=body, headers=headers)
            assert answer.status_code == 200
