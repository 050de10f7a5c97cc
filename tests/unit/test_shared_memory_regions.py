"""Regions of shared memory without a server: bounds, owners, and requests made of anything."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.router import RouteRequest
from runtime.errors import Code, InvalidRequest, Overloaded, ServingError
from server import shared_memory
from server.routing import route_request
from server.shared_memory import MAX_REGIONS, MAX_TENSOR_BYTES, Placement, SharedMemory
from server.text.codec import EncodedPrompt
from tests.unit.wire_fuzz import PARAMETER, requests
from wire import inference_pb2 as pb
from wire.generate import GenerateRequest
from wire.sampling import Sampling

SIZE = 256
CONTENT = bytes(range(256))


@pytest.fixture
def key(tmp_path: Path) -> Iterator[str]:
    """An object of SIZE bytes."""
    file = Path("/dev/shm", f"penstock-unit-{os.getpid()}-{tmp_path.name}")
    file.write_bytes(CONTENT)
    yield f"/{file.name}"
    file.unlink()


@pytest.fixture
def memory(key: str) -> Iterator[SharedMemory]:
    made = SharedMemory()
    made.register(None, name="r", key=key, offset=16, byte_size=100)
    yield made
    made.close()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def shared(message: pb.ModelInferRequest, size: int, offset: int | None = None) -> None:
    header = message.inputs.add(name=f"in-{len(message.inputs)}", datatype="UINT8", shape=[size])
    header.parameters["shared_memory_region"].string_param = "r"
    header.parameters["shared_memory_byte_size"].int64_param = size
    if offset is not None:
        header.parameters["shared_memory_offset"].int64_param = offset


def test_offsets_count_from_the_regions_own(memory: SharedMemory) -> None:
    message = pb.ModelInferRequest(raw_input_contents=[b"\7"])
    shared(message, 2)
    message.inputs.add(name="plain", datatype="UINT8", shape=[1])
    shared(message, 3, offset=97)
    memory.take_inputs(None, message)
    assert message.raw_input_contents[:] == [CONTENT[16:18], b"\7", CONTENT[113:116]]
    assert not any(header.parameters for header in message.inputs)


@pytest.mark.parametrize("raws", [[], [b"\7", b"\7"]])
def test_raw_contents_must_be_those_of_the_other_inputs(
    memory: SharedMemory, raws: list[bytes]
) -> None:
    message = pb.ModelInferRequest(raw_input_contents=raws)
    shared(message, 2)
    message.inputs.add(name="plain", datatype="UINT8", shape=[1])
    with pytest.raises(InvalidRequest):
        memory.take_inputs(None, message)


def test_one_request_cannot_copy_more_than_a_message_holds(memory: SharedMemory, key: str) -> None:
    os.truncate(Path("/dev/shm", key[1:]), 2**40)  # sparse: it takes no memory
    memory.register(None, name="big", key=key, offset=0, byte_size=2**40)
    message = pb.ModelInferRequest()
    for number in range(5):
        shared(message, MAX_TENSOR_BYTES // 4)
        message.inputs[number].parameters["shared_memory_region"].string_param = "big"
    with pytest.raises(InvalidRequest, match=f"over {MAX_TENSOR_BYTES} bytes"):
        memory.take_inputs(None, message)


def test_a_write_never_makes_the_object_larger(memory: SharedMemory, key: str) -> None:
    file = Path("/dev/shm", key[1:])
    memory.write(None, "out", Placement("r", 96, 4), b"abcd")
    assert file.read_bytes()[112:116] == b"abcd"
    os.truncate(file, 114)
    with pytest.raises(InvalidRequest, match="smaller"):
        memory.write(None, "out", Placement("r", 96, 4), b"abcd")
    assert file.stat().st_size == 114


def test_regions_are_bounded_and_every_file_is_closed(key: str) -> None:
    before = open_files()
    memory = SharedMemory()
    for number in range(MAX_REGIONS - 1):
        memory.register("ann", name=f"{number}", key=key, offset=0, byte_size=1)
    memory.register("bob", name="0", key=key, offset=0, byte_size=1)
    with pytest.raises(Overloaded):
        memory.register("bob", name="1", key=key, offset=0, byte_size=1)
    memory.unregister("bob", "0")
    with pytest.raises(InvalidRequest):
        memory.register("bob", name="1", key=key, offset=0, byte_size=SIZE + 1)
    assert open_files() == before + MAX_REGIONS - 1
    memory.unregister("ann")
    assert open_files() == before


def test_a_region_that_was_freed_meanwhile_is_unknown_to_the_answer(memory: SharedMemory) -> None:
    message = pb.ModelInferRequest()
    output = message.outputs.add(name="text_output")
    output.parameters["shared_memory_region"].string_param = "r"
    output.parameters["shared_memory_byte_size"].int64_param = 50
    places = memory.take_outputs(None, message)
    assert not output.parameters
    memory.unregister(None)
    response = pb.ModelInferResponse(raw_output_contents=[b"\1\0\0\0a"])
    response.outputs.add(name="text_output", datatype="BYTES", shape=[1])
    with pytest.raises(InvalidRequest, match="'r'"):
        memory.put_outputs(None, places, response)


@settings(
    deadline=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(requests(), st.lists(st.tuples(PARAMETER, PARAMETER, PARAMETER), min_size=1, max_size=3))
def test_no_parameters_break_it(
    memory: SharedMemory, message: pb.ModelInferRequest, values: list[tuple[pb.InferParameter, ...]]
) -> None:
    names = (shared_memory.REGION, shared_memory.SIZE, shared_memory.OFFSET)
    headers: list[Any] = [*message.inputs, *message.outputs]
    for header, given_values in zip(headers, values, strict=False):
        for name, value in zip(names, given_values, strict=True):
            header.parameters[name].CopyFrom(value)
    try:
        memory.take_inputs(None, message)
        memory.take_outputs(None, message)
    except ServingError as error:
        if error.code is not Code.INVALID_ARGUMENT or error.param is None:
            raise


def test_each_api_key_has_sessions_of_its_own() -> None:
    def routed(principal: str | None, session: str | None) -> RouteRequest:
        request = GenerateRequest(
            request_id="r", model="m", sampling=Sampling(), session_id=session, principal=principal
        )
        return route_request(request, EncodedPrompt([]), key="k")  # type: ignore[arg-type]

    ids = {routed(who, "7").session_id for who in ("ann", "bob", None)}
    assert len(ids) == 3
    assert routed("ann", None).session_id is None
