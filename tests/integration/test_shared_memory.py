"""System shared memory with Triton's own client: regions, inputs and outputs in them."""

import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc.aio as triton
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException, serialize_byte_tensor

from runtime.access import bearer
from runtime.api_keys import ApiKeys
from runtime.grpc_client import RpcChannel
from server.config import FrontDoorConfig
from server.shared_memory import MAX_TENSOR_BYTES
from tests.integration.kserve_client import infer
from tests.integration.stack import Stack, running_stack
from wire import inference_pb2 as pb
from wire.pool import rpc_types
from worker.sim_engine import SimConfig
from worker.sim_timing import SimTiming

FAST = SimConfig(timing=SimTiming(speedup=0))
PROMPT = serialize_byte_tensor(np.array([b"Hello there"], dtype=object))
SIZE = 4096
_numbers = itertools.count()


@pytest.fixture
async def stack(model_folder: Path) -> AsyncIterator[Stack]:
    config = FrontDoorConfig(shared_memory=True)
    async with running_stack(model_folder, sim=FAST, config=config) as running:
        yield running


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[triton.InferenceServerClient]:
    async with triton.InferenceServerClient(stack.grpc) as opened:
        yield opened


@pytest.fixture
def key() -> Iterator[str]:
    """An object of SIZE bytes that begins with PROMPT."""
    name = f"/penstock-test-{os.getpid()}-{next(_numbers)}"
    handle = shm.create_shared_memory_region("client", name, SIZE, create_only=True)
    shm.set_shared_memory_region(handle, [PROMPT])
    yield name
    with contextlib.suppress(Exception):
        shm.destroy_shared_memory_region(handle)


def shared_input(region: str, size: int = len(PROMPT.item()), offset: int = 0) -> Any:
    text = triton.InferInput("text_input", [1], "BYTES")
    text.set_shared_memory(region, size, offset)
    return text


def ids_output(region: str, size: int, offset: int = 0) -> Any:
    output = triton.InferRequestedOutput("output_ids")
    output.set_shared_memory(region, size, offset)
    return output


def flag(name: str) -> Any:
    tensor = triton.InferInput(name, [1], "BOOL")
    tensor.set_data_from_numpy(np.array([True]))
    return tensor


async def ask(client: Any, text: Any, *outputs: Any, **more: Any) -> Any:
    wanted = [*outputs, triton.InferRequestedOutput("text_output")]
    inputs = [flag("exclude_input_in_output"), text, flag("return_output_ids")]
    parameters = {"max_tokens": 8, "temperature": "0"}
    return await client.infer("sim", inputs, outputs=wanted, parameters=parameters, **more)


def plain_input() -> Any:
    text = triton.InferInput("text_input", [1], "BYTES")
    text.set_data_from_numpy(np.array([b"Hello there"], dtype=object))
    return text


async def refused(call: Any) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as caught:
        await call
    return str(caught.value.status()), str(caught.value.message())


async def test_inputs_and_outputs_may_lie_in_shared_memory(client: Any, key: str) -> None:
    plain = await ask(client, plain_input(), triton.InferRequestedOutput("output_ids"))
    await client.register_system_shared_memory("in", key, SIZE)
    await client.register_system_shared_memory("out", key, 1024, offset=1024)
    shared = await ask(client, shared_input("in"), ids_output("out", 100, offset=24))
    assert shared.as_numpy("text_output") == plain.as_numpy("text_output")
    described = shared.get_output("output_ids").parameters
    assert described["shared_memory_region"].string_param == "out"
    assert described["shared_memory_byte_size"].int64_param == 8 * 4
    assert described["shared_memory_offset"].int64_param == 24
    at = [output.name for output in shared.get_response().outputs].index("output_ids")
    assert shared.get_response().raw_output_contents[at] == b""
    again = shm.create_shared_memory_region("reader", key, SIZE)
    found = shm.get_contents_as_numpy(again, np.int32, [8], offset=1024 + 24)
    assert found.tolist() == plain.as_numpy("output_ids").tolist()
    del found
    shm.destroy_shared_memory_region(again)


async def test_outputs_of_bytes_are_read_by_tritons_client(client: Any, key: str) -> None:
    await client.register_system_shared_memory("r", key, SIZE)
    output = triton.InferRequestedOutput("text_output")
    output.set_shared_memory("r", 2048, 2048)
    inputs = [flag("exclude_input_in_output"), plain_input()]
    parameters = {"max_tokens": 8, "temperature": "0"}
    await client.infer("sim", inputs, outputs=[output], parameters=parameters)
    plain = await ask(client, plain_input())
    again = shm.create_shared_memory_region("reader", key, SIZE)
    text = shm.get_contents_as_numpy(again, np.object_, [1], offset=2048)
    assert text.tolist() == plain.as_numpy("text_output").tolist()
    shm.destroy_shared_memory_region(again)


async def test_streams_take_shared_memory_too_and_live_on_after_an_error(
    client: Any, key: str
) -> None:
    await client.register_system_shared_memory("r", key, SIZE)

    async def requests() -> AsyncIterator[dict[str, Any]]:
        for name, text, size in (
            ("small", shared_input("r"), 4),
            ("nowhere", shared_input("none"), 400),
            ("good", shared_input("r"), 400),
        ):
            yield {
                "model_name": "sim",
                "inputs": [text, flag("return_output_ids")],
                "outputs": [ids_output("r", size, 1000)],
                "request_id": name,
                "parameters": {"max_tokens": 8},
            }

    ends: dict[str, Any] = {}
    async for result, error in client.stream_infer(requests(), stream_timeout=10):
        if error is None:
            ends[result.get_response().id] = result.get_output("output_ids").parameters
        else:
            ends.setdefault("errors", []).append(str(error.message()))
    assert ends["good"]["shared_memory_byte_size"].int64_param == 32
    assert sorted(ends["errors"]) == [
        "tensor 'output_ids': 32 bytes do not fit into 4 bytes",
        "tensor 'text_input': no shared memory region 'none' is registered",
    ]


async def test_regions_are_listed_named_once_and_unregistered(client: Any, key: str) -> None:
    await client.register_system_shared_memory("a", key, 100)
    await client.register_system_shared_memory("b", key, 200, offset=300)
    status, text = await refused(client.register_system_shared_memory("a", key, 50))
    assert "ALREADY_EXISTS" in status
    assert "'a'" in text
    regions = (await client.get_system_shared_memory_status()).regions
    assert {name: (it.key, it.offset, it.byte_size) for name, it in regions.items()} == {
        "a": (key, 0, 100),
        "b": (key, 300, 200),
    }
    assert list((await client.get_system_shared_memory_status("b")).regions) == ["b"]
    await client.unregister_system_shared_memory("a")
    await client.unregister_system_shared_memory("a")
    status, _ = await refused(client.get_system_shared_memory_status("a"))
    assert "NOT_FOUND" in status
    await client.unregister_system_shared_memory()
    assert not (await client.get_system_shared_memory_status()).regions
    status, text = await refused(ask(client, shared_input("b")))
    assert "INVALID_ARGUMENT" in status
    assert "'b'" in text
    # The client's object is still there.
    assert Path("/dev/shm", key.strip("/")).stat().st_size >= SIZE


@pytest.mark.parametrize(
    ("wrong", "size", "offset", "named"),
    [
        ("/no-such-object", 1, 0, "cannot be opened"),
        ("../etc/passwd", 1, 0, "is no name"),
        ("/../etc/passwd", 1, 0, "is no name"),
        ("//slashes", 1, 0, "is no name"),
        ("a/b", 1, 0, "is no name"),
        ("..", 1, 0, "is no name"),
        (".", 1, 0, "is no name"),
        ("", 1, 0, "is no name"),
        ("x" * 300, 1, 0, "is no name"),
        ("é" * 200, 1, 0, "is no name"),
        (None, SIZE + 1, 0, "beyond"),
        (None, 1, SIZE, "beyond"),
        (None, 2**63, 2**63, "beyond"),
        (None, 0, 0, "byte_size"),
    ],
)
async def test_a_wrong_region_is_refused(
    client: Any, key: str, wrong: str | None, size: int, offset: int, named: str
) -> None:
    asked = key if wrong is None else wrong
    status, text = await refused(client.register_system_shared_memory("r", asked, size, offset))
    assert "INVALID_ARGUMENT" in status
    assert named in text
    assert not (await client.get_system_shared_memory_status()).regions


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
async def test_what_is_no_shared_memory_object_is_refused(
    client: Any, key: str, tmp_path: Path, kind: str
) -> None:
    place = Path("/dev/shm", key.strip("/") + "-other")
    try:
        match kind:
            case "link":
                place.symlink_to("/etc/hostname")
            case "folder":
                place.mkdir()
            case "pipe":
                os.mkfifo(place)
        status, _ = await refused(client.register_system_shared_memory("r", f"/{place.name}", 1))
        assert "INVALID_ARGUMENT" in status
    finally:
        place.rmdir() if kind == "folder" else place.unlink()


@pytest.mark.parametrize(
    ("size", "offset", "named"),
    [
        (SIZE + 1, 0, "beyond the"),
        (10, SIZE, "beyond the"),
        (2**62, 0, "byte_size"),
        (MAX_TENSOR_BYTES, 0, "beyond the"),
        (-1, 0, "byte_size"),
        (8, -8, "offset"),
        (3, 0, "left over"),
    ],
)
async def test_a_wrong_place_in_a_region_is_refused_by_tensor(
    client: Any, key: str, size: int, offset: int, named: str
) -> None:
    await client.register_system_shared_memory("r", key, SIZE)
    status, text = await refused(ask(client, shared_input("r", size, offset)))
    assert "INVALID_ARGUMENT" in status
    assert "'text_input'" in text
    assert named in text


async def test_an_object_that_shrinks_costs_its_requests_only(client: Any, key: str) -> None:
    await client.register_system_shared_memory("r", key, SIZE)
    os.truncate(Path("/dev/shm", key.strip("/")), 8)
    for call in (
        ask(client, shared_input("r")),
        ask(client, plain_input(), ids_output("r", 400)),
    ):
        status, text = await refused(call)
        assert "INVALID_ARGUMENT" in status
        assert "become smaller" in text
    assert Path("/dev/shm", key.strip("/")).stat().st_size == 8
    assert (await ask(client, plain_input())).as_numpy("text_output") is not None


async def test_typed_contents_may_stand_beside_shared_memory(
    client: Any, stack: Stack, key: str
) -> None:
    await client.register_system_shared_memory("r", key, SIZE)
    request = pb.ModelInferRequest(model_name="sim")
    limit = request.inputs.add(name="max_tokens", datatype="INT32", shape=[1])
    limit.contents.int_contents.append(3)
    text = request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    text.parameters["shared_memory_region"].string_param = "r"
    text.parameters["shared_memory_byte_size"].int64_param = len(PROMPT.item())
    channel = RpcChannel(stack.grpc, rpc_types=rpc_types)
    answer = await infer(channel, request)
    assert answer.parameters["completion_tokens"].int64_param == 3
    await channel.close()


async def test_cuda_shared_memory_is_refused_and_empty(client: Any) -> None:
    status, text = await refused(client.register_cuda_shared_memory("c", b"aGFuZGxl", 0, 8))
    assert "UNIMPLEMENTED" in status
    assert "CUDA" in text
    assert not (await client.get_cuda_shared_memory_status()).regions
    await client.unregister_cuda_shared_memory()


async def test_the_metadata_lists_it_only_when_it_is_on(
    client: Any, model_folder: Path, key: str
) -> None:
    metadata = await client.get_server_metadata()
    assert "system_shared_memory" in metadata.extensions
    assert not [it for it in metadata.extensions if "cuda" in it]
    async with (
        running_stack(model_folder, sim=FAST) as off,
        triton.InferenceServerClient(off.grpc) as other,
    ):
        metadata = await other.get_server_metadata()
        assert "system_shared_memory" not in metadata.extensions
        status, text = await refused(other.register_system_shared_memory("r", key, SIZE))
        assert "UNIMPLEMENTED" in status
        assert "--shared-memory" in text
        assert not (await other.get_system_shared_memory_status()).regions
        await other.unregister_system_shared_memory()
        for call in (
            ask(other, shared_input("r")),
            ask(other, plain_input(), ids_output("r", 400)),
        ):
            status, text = await refused(call)
            assert "UNIMPLEMENTED" in status
            assert "shared memory" in text


async def test_each_api_key_has_its_own_regions(
    model_folder: Path, tmp_path: Path, key: str
) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text("- {name: ann, key: key-of-ann-0000}\n- {name: bob, key: key-of-bob-0000}\n")
    config = FrontDoorConfig(shared_memory=True)
    async with (
        running_stack(
            model_folder, sim=FAST, config=config, keys=ApiKeys(file=file, variable=None)
        ) as stack,
        triton.InferenceServerClient(stack.grpc) as client,
    ):
        ann, bob = bearer("key-of-ann-0000"), bearer("key-of-bob-0000")
        await client.register_system_shared_memory("r", key, SIZE, headers=ann)
        assert not (await client.get_system_shared_memory_status(headers=bob)).regions
        status, _ = await refused(ask(client, shared_input("r"), headers=bob))
        assert "INVALID_ARGUMENT" in status
        await client.unregister_system_shared_memory(headers=bob)
        await client.register_system_shared_memory("r", key, SIZE, headers=bob)
        assert (await ask(client, shared_input("r"), headers=ann)).as_numpy("text_output")
