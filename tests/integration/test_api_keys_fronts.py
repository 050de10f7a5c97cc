"""API keys on both fronts of one front door: who gets in, and what a key may do."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from gateway_http.config import GatewayConfig
from gateway_http.kserve_backend import KServeBackend
from runtime.access import bearer
from runtime.api_keys import ApiKeys
from runtime.errors import Overloaded, ServingError, Unauthenticated
from runtime.grpc_client import ClientStream, RpcChannel
from runtime.grpc_reflection_service import REFLECTION_SERVICE
from runtime.grpc_reflection_service import RPC_TYPES as REFLECTION_TYPES
from tests.certificates import replace
from tests.integration.gateway_client import openai_for, serving
from tests.integration.stack import Stack, running_stack
from tests.waiting import eventually
from wire import inference_pb2 as pb
from wire.pool import KSERVE, rpc_types
from wire.text_response import decode_text_response
from worker.sim_engine import SimConfig
from worker.sim_timing import SimTiming

ANN, BOB, EVE = "key-of-ann-in-plain-text", "key-of-bob-in-plain-text", "key-that-nobody-knows"
WAIT_S = 10.0
CHAT = {"model": "sim", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
ENTRIES = f"""
- name: ann
  key: {ANN}
- name: bob
  sha256: {hashlib.sha256(BOB.encode()).hexdigest()}
"""


@dataclass(frozen=True, kw_only=True)
class Fronts:
    stack: Stack
    http: httpx2.AsyncClient
    file: Path

    def channel(self, key: str | None) -> RpcChannel:
        present = {} if key is None else bearer(key)
        return RpcChannel(self.stack.grpc, rpc_types=_types, call_metadata=lambda: present)


def _types(service: str) -> Any:
    return REFLECTION_TYPES if service == REFLECTION_SERVICE else rpc_types(service)


async def opened(
    folder: Path, tmp_path: Path, entries: str, *, speedup: float
) -> AsyncIterator[Fronts]:
    file = tmp_path / "keys.yaml"
    file.write_text(entries)
    keys = ApiKeys(file=file, variable=None)
    sim = SimConfig(timing=SimTiming(speedup=speedup))
    async with (
        asyncio.timeout(40),
        running_stack(folder, sim=sim, keys=keys) as stack,
        serving(stack.door.backend, access=keys) as http,
    ):
        yield Fronts(stack=stack, http=http, file=file)


@pytest.fixture
async def fronts(model_folder: Path, tmp_path: Path) -> AsyncIterator[Fronts]:
    async for made in opened(model_folder, tmp_path, ENTRIES, speedup=0):
        yield made


@pytest.fixture
async def limited(model_folder: Path, tmp_path: Path) -> AsyncIterator[Fronts]:
    """Ann may have one request at a time, Bob two a minute; an answer takes its time."""
    entries = f"""
- {{name: ann, key: {ANN}, max_concurrency: 1}}
- {{name: bob, key: {BOB}, requests_per_minute: 2}}
"""
    async for made in opened(model_folder, tmp_path, entries, speedup=1):
        yield made


def ask(request_id: str, max_tokens: int = 2, *, stream: bool = True) -> Any:
    request = pb.ModelInferRequest(model_name="sim", id=request_id)
    request.parameters["max_tokens"].int64_param = max_tokens
    request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    request.raw_input_contents.append(b"\2\0\0\0Hi")
    request.inputs.add(name="stream", datatype="BOOL", shape=[1])
    request.raw_input_contents.append(bytes([stream]))
    return request


async def end_of(stream: ClientStream, request_id: str) -> ServingError | None:
    """Read until a request's end; returns its error."""
    async for response in stream:
        try:
            delta = decode_text_response(response)
        except ServingError as error:
            assert response.infer_response.id == request_id
            return error
        if delta.final and response.infer_response.id == request_id:
            return None
    raise AssertionError("the stream ended first")


async def grpc_error(channel: RpcChannel, method: str, message: Any) -> ServingError | None:
    try:
        await channel.unary(KSERVE, method, message, timeout_s=WAIT_S)
    except ServingError as error:
        return error
    finally:
        await channel.close()
    return None


@pytest.mark.parametrize("key", [ANN, BOB])
async def test_a_known_key_opens_both_fronts(fronts: Fronts, key: str) -> None:
    assert await grpc_error(fronts.channel(key), "ServerLive", pb.ServerLiveRequest()) is None
    async with openai_for(fronts.http, key) as client:
        answer = await client.chat.completions.create(**CHAT)
        assert answer.usage.completion_tokens == 4
        assert [model.id async for model in await client.models.list()] == ["sim"]


@pytest.mark.parametrize("key", [None, EVE, ANN[:-1]])
async def test_no_key_and_a_wrong_key_open_neither(fronts: Fronts, key: str | None) -> None:
    error = await grpc_error(fronts.channel(key), "ServerLive", pb.ServerLiveRequest())
    assert isinstance(error, Unauthenticated)
    headers = {} if key is None else bearer(key)
    answer = await fronts.http.post("/v1/chat/completions", json=CHAT, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    shown = answer.json()["error"]
    assert (shown["type"], shown["code"]) == ("invalid_request_error", "invalid_api_key")
    assert fronts.stack.door.in_flight == 0


async def test_openais_client_raises_its_authentication_error(fronts: Fronts) -> None:
    async with openai_for(fronts.http, EVE) as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.chat.completions.create(**CHAT)
    assert caught.value.code == "invalid_api_key"


async def test_a_key_may_come_as_anthropics_clients_send_it(fronts: Fronts) -> None:
    for key, status in ((ANN, 200), (EVE, 401)):
        answer = await fronts.http.get("/v1/models", headers={"x-api-key": key})
        assert answer.status_code == status


async def test_tritons_client_sends_its_key_as_a_header(fronts: Fronts) -> None:
    async with triton.InferenceServerClient(fronts.stack.grpc) as client:
        with pytest.raises(InferenceServerException, match="UNAUTHENTICATED"):
            await client.is_server_live()
        assert await client.is_server_live(headers=bearer(ANN))
        text = triton.InferInput("text_input", [1], "BYTES")
        text.set_data_from_numpy(np.array([b"Hi"], dtype=object))
        answer = await client.infer("sim", [text], headers=bearer(BOB))
        assert answer.as_numpy("text_output")[0]


async def test_only_health_is_open_to_all(fronts: Fronts) -> None:
    for path in ("/live", "/ready", "/health"):
        assert (await fronts.http.get(path)).status_code == 200
    closed = ("/metrics", "/docs", "/openapi.json", "/v1/models", "/nowhere", "/live/", "//live")
    for path in closed:
        assert (await fronts.http.get(path)).status_code == 401, path
    assert (await fronts.http.get("/metrics", headers=bearer(ANN))).status_code == 200
    channel = fronts.channel(None)
    async with channel.stream("grpc.health.v1.Health", "Watch"):
        pass
    await channel.is_serving(timeout_s=WAIT_S)
    with pytest.raises(Unauthenticated):
        async with channel.stream(REFLECTION_SERVICE, "ServerReflectionInfo") as stream:
            await anext(stream)
    await channel.close()


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """An HTTP/2 frame (RFC 9113 section 4.1)."""
    return (
        len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
    )


def literal(name: str, value: str) -> bytes:
    """A header that is in no table (RFC 7541 section 6.2.2)."""
    return b"".join([b"\0", bytes([len(name)]), name.encode(), bytes([len(value)]), value.encode()])


async def test_what_a_stranger_sends_is_not_waited_for(fronts: Fronts) -> None:
    headers = {
        ":method": "POST", ":scheme": "http", ":path": f"/{KSERVE}/ModelInfer", ":authority": "x",
        "content-type": "application/grpc", "te": "trailers", "authorization": f"Bearer {EVE}",
    }  # fmt: skip
    block = b"".join(literal(name, value) for name, value in headers.items())
    promise_of_40_mb = b"\0" + (40_000_000).to_bytes(4, "big")
    host, _, port = fronts.stack.grpc.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + frame(4, 0, 0)
        + frame(1, 4, 1, block)
        + frame(0, 0, 1, promise_of_40_mb)
    )
    await reader.readuntil(b"invalid_api_key")
    writer.close()


async def test_a_stranger_learns_nothing_of_a_body(fronts: Fronts) -> None:
    no_json = {**bearer(EVE), "content-type": "application/json"}
    answer = await fronts.http.post("/v1/completions", content=b"no JSON", headers=no_json)
    assert answer.status_code == 401


async def test_changed_keys_hold_at_once_on_both_fronts(fronts: Fronts) -> None:
    replace(fronts.file, f"[{{name: ann, key: {EVE}}}]".encode())
    for key, status in ((ANN, 401), (EVE, 200)):
        assert (await fronts.http.get("/v1/models", headers=bearer(key))).status_code == status
        error = await grpc_error(fronts.channel(key), "ServerLive", pb.ServerLiveRequest())
        assert isinstance(error, Unauthenticated) == (status == 401)


async def test_a_request_holds_its_place_until_it_ends_and_refusals_leave_the_stream_alive(
    limited: Fronts,
) -> None:
    channel = limited.channel(ANN)
    async with channel.stream(KSERVE, "ModelStreamInfer") as stream:
        stream.send(ask("long", max_tokens=4000))
        stream.send(ask("second"))
        refused = await end_of(stream, "second")
        assert isinstance(refused, Overloaded)
        assert "1 requests at a time" in refused.message
        answer = await limited.http.post(
            "/v1/chat/completions", json={**CHAT, "stream": True}, headers=bearer(ANN)
        )
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert answer.json()["error"]["type"] == "rate_limit_error"
        stream.cancel()
    await eventually(lambda: limited.stack.door.in_flight == 0)
    async with channel.stream(KSERVE, "ModelStreamInfer") as stream:
        for name in ("third", "fourth"):
            stream.send(ask(name))
            assert await end_of(stream, name) is None
    await channel.close()


async def test_each_request_of_a_stream_counts_in_the_rate_and_so_do_those_over_http(
    limited: Fronts,
) -> None:
    channel = limited.channel(BOB)
    async with channel.stream(KSERVE, "ModelStreamInfer") as stream:
        for name in ("one", "two"):
            stream.send(ask(name))
            assert await end_of(stream, name) is None
        stream.send(ask("three"))
        assert isinstance(await end_of(stream, "three"), Overloaded)
    await channel.close()
    error = await grpc_error(limited.channel(BOB), "ModelInfer", ask("four", stream=False))
    assert isinstance(error, Overloaded)
    async with openai_for(limited.http, BOB) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(**CHAT)
    assert 50 <= int(caught.value.response.headers["retry-after"]) <= 61
    async with openai_for(limited.http, ANN) as client:
        assert (await client.chat.completions.create(**CHAT)).usage.completion_tokens == 4


async def test_an_open_stream_of_a_withdrawn_key_finishes_and_begins_nothing(
    limited: Fronts,
) -> None:
    channel = limited.channel(ANN)
    async with channel.stream(KSERVE, "ModelStreamInfer") as stream:
        stream.send(ask("running", max_tokens=30))
        await anext(stream)
        replace(limited.file, f"[{{name: bob, key: {BOB}}}]".encode())
        assert await end_of(stream, "running") is None
        stream.send(ask("new"))
        assert isinstance(await end_of(stream, "new"), Unauthenticated)
    await channel.close()


async def test_a_gateway_of_its_own_holds_its_clients_to_their_keys(
    model_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(f"[{{name: ann, key: {ANN}, requests_per_minute: 1}}]")
    keys = ApiKeys(file=file, variable=None)
    sim = SimConfig(timing=SimTiming(speedup=0))
    async with asyncio.timeout(40), running_stack(model_folder, sim=sim) as stack:
        channel = RpcChannel(stack.grpc, rpc_types=rpc_types)
        backend = KServeBackend(channel, limits=keys)
        async with serving(backend, GatewayConfig(), access=keys) as http:
            statuses = [
                (await http.post("/v1/chat/completions", json=CHAT, headers=headers)).status_code
                for headers in ({}, bearer(ANN), bearer(ANN))
            ]
        await channel.close()
    assert statuses == [401, 200, 429]
