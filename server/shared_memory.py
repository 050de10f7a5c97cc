"""System shared memory: regions that clients of this machine register, and tensors in them.

Triton's extension_shared_memory.md. Objects are read and written through their file in /dev/shm,
not mapped: a client that makes its object smaller gets an error, where a mapping would end this
process with SIGBUS; and nothing of ours can unlink what is the client's.
"""

import os
import re
import stat
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from runtime.errors import Code, InvalidConfig, InvalidRequest, Overloaded, ServingError
from wire import inference_pb2 as pb
from wire.parameters import plain_parameter, set_parameter
from wire.tensors import decode_inputs, encode_raw

REGION = "shared_memory_region"
SIZE = "shared_memory_byte_size"
OFFSET = "shared_memory_offset"
MAX_REGIONS = 1024
"""Of all clients together; each holds a file open."""
MAX_TENSOR_BYTES = 2**31 - 1
"""As much as a gRPC message can hold: a sparse object must not cost more memory than a request."""
_FOLDER = Path("/dev/shm")
# shm_open(3): a name of up to 255 bytes that begins with a slash and holds no other.
_KEY = re.compile(r"/?[^/\0]{1,255}")
_OPEN = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class RegionExists(ServingError):
    """The caller has registered another region under this name."""

    code = Code.ALREADY_EXISTS
    http_status = 409
    openai_type = "invalid_request_error"
    reason = "region_exists"


class RegionNotFound(ServingError):
    """The caller has registered no region under this name."""

    code = Code.NOT_FOUND
    http_status = 404
    openai_type = "invalid_request_error"
    reason = "region_not_found"


@dataclass(frozen=True, slots=True)
class Region:
    """A part of a shared memory object: `byte_size` bytes from `offset` on."""

    name: str
    key: str
    offset: int
    byte_size: int
    file: int


class Placement(NamedTuple):
    """Where an output shall go: `byte_size` bytes from `offset` in a region."""

    region: str
    offset: int
    byte_size: int


class SharedMemory:
    """The registered regions. Each principal has its own names; without API keys all share one set.

    Regions last until they are unregistered or the process ends; the objects are the clients'.
    Raises InvalidConfig where the system keeps no shared memory in /dev/shm.
    """

    def __init__(self) -> None:
        if not _FOLDER.is_dir():
            raise InvalidConfig(
                f"shared memory needs {_FOLDER}, which {sys.platform} does not have here",
                param="shared_memory",
            )
        self._regions: dict[tuple[str | None, str], Region] = {}

    def regions(self, owner: str | None) -> list[Region]:
        """The caller's regions."""
        return [region for (whose, _), region in self._regions.items() if whose == owner]

    def register(
        self, owner: str | None, *, name: str, key: str, offset: int, byte_size: int
    ) -> None:
        """Open a part of the object `key`.

        Raises InvalidRequest naming the field, RegionExists, or Overloaded when there are too many.
        """
        if not name:
            raise InvalidRequest("name: missing", param="name")
        if (owner, name) in self._regions:
            raise RegionExists(f"shared memory region {name!r} is registered already", param="name")
        if len(self._regions) >= MAX_REGIONS:
            raise Overloaded(f"{MAX_REGIONS} shared memory regions are registered; free some")
        if not byte_size:
            raise InvalidRequest("byte_size: must be above 0", param="byte_size")
        file = _open(key)
        size = os.fstat(file).st_size
        if offset + byte_size > size:
            os.close(file)
            raise InvalidRequest(
                f"byte_size: offset {offset} and {byte_size} bytes are beyond the {size} bytes of "
                f"{key!r}",
                param="byte_size",
            )
        self._regions[owner, name] = Region(name, key, offset, byte_size, file)

    def unregister(self, owner: str | None, name: str = "") -> None:
        """Forget a region of the caller, or without a name all of them; unknown ones are no error.

        Requests that run with it meet an unknown region when they next use it.
        """
        for region in self.regions(owner):
            if name in ("", region.name):
                os.close(self._regions.pop((owner, region.name)).file)

    def close(self) -> None:
        """Forget every region."""
        for region in self._regions.values():
            os.close(region.file)
        self._regions.clear()

    def read(self, owner: str | None, tensor: str, place: Placement) -> bytes:
        """Return what stands at a place; raises InvalidRequest naming the tensor."""
        region = self._region(owner, tensor, place)
        data = os.pread(region.file, place.byte_size, region.offset + place.offset)
        if len(data) < place.byte_size:
            raise _bad(tensor, f"the object behind region {region.name!r} has become smaller")
        return data

    def write(self, owner: str | None, tensor: str, place: Placement, data: bytes) -> None:
        """Put `data` at a place; raises InvalidRequest naming the tensor when it does not fit."""
        region = self._region(owner, tensor, place)
        if len(data) > place.byte_size:
            raise _bad(tensor, f"{len(data)} bytes do not fit into {place.byte_size} bytes")
        start = region.offset + place.offset
        # A write beyond the end would make the object larger.
        if start + len(data) > os.fstat(region.file).st_size:
            raise _bad(tensor, f"the object behind region {region.name!r} has become smaller")
        os.pwrite(region.file, data, start)

    def take_inputs(self, owner: str | None, message: pb.ModelInferRequest) -> None:
        """Move inputs from shared memory into the request, as raw contents.

        `raw_input_contents` has no entries for such inputs; typed contents of the others become
        raw, since a request has one form only. Raises InvalidRequest naming the tensor.
        """
        places = {
            at: _placement(header.name, header.parameters)
            for at, header in enumerate(message.inputs)
            if REGION in header.parameters
        }
        if not places:
            return
        if sum(place.byte_size for place in places.values()) > MAX_TENSOR_BYTES:
            raise InvalidRequest(f"over {MAX_TENSOR_BYTES} bytes in shared memory", param=REGION)
        others = _raw_of_others(message, places)
        raws: list[bytes] = []
        for at, header in enumerate(message.inputs):
            if at not in places:
                raws.append(next(others))
                header.ClearField("contents")
                continue
            if header.HasField("contents"):
                raise _bad(header.name, "typed contents beside shared memory")
            raws.append(self.read(owner, header.name, places[at]))
            _forget(header.parameters)
        del message.raw_input_contents[:]
        message.raw_input_contents.extend(raws)

    def take_outputs(
        self, owner: str | None, message: pb.ModelInferRequest
    ) -> Mapping[str, Placement]:
        """Take from the request where its outputs shall go, by name; checks that there is room.

        Raises InvalidRequest naming the tensor.
        """
        places: dict[str, Placement] = {}
        for output in message.outputs:
            if REGION in output.parameters:
                place = _placement(output.name, output.parameters)
                self._region(owner, output.name, place)
                places[output.name] = place
                _forget(output.parameters)
        return places

    def put_outputs(
        self,
        owner: str | None,
        places: Mapping[str, Placement],
        message: pb.ModelInferResponse,
    ) -> None:
        """Move raw outputs from the response to their places.

        Each leaves an empty raw entry and says where it is and how long. Raises InvalidRequest
        naming the tensor when one does not fit.
        """
        for at, output in enumerate(message.outputs):
            place = places.get(output.name)
            if place is None:
                continue
            data = message.raw_output_contents[at]
            self.write(owner, output.name, place, data)
            message.raw_output_contents[at] = b""
            set_parameter(output.parameters, REGION, place.region)
            set_parameter(output.parameters, SIZE, len(data))
            if place.offset:
                set_parameter(output.parameters, OFFSET, place.offset)

    def _region(self, owner: str | None, tensor: str, place: Placement) -> Region:
        region = self._regions.get((owner, place.region))
        if region is None:
            raise _bad(tensor, f"no shared memory region {place.region!r} is registered")
        if place.offset + place.byte_size > region.byte_size:
            raise _bad(
                tensor,
                f"offset {place.offset} and {place.byte_size} bytes are beyond the "
                f"{region.byte_size} bytes of region {region.name!r}",
            )
        return region


def _open(key: str) -> int:
    """Open an object of shared memory; raises InvalidRequest."""
    if not _KEY.fullmatch(key) or ".." in key or key.strip("/") == "." or len(key.encode()) > 255:
        raise InvalidRequest(
            f"key: {key[:64]!r} is no name of a shared memory object: one leading slash at most, "
            "no other, no '..'",
            param="key",
        )
    try:
        file = os.open(_FOLDER / key.removeprefix("/"), _OPEN)
    except OSError as error:
        raise InvalidRequest(
            f"key: shared memory object {key!r} cannot be opened: {error.strerror}", param="key"
        ) from None
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise InvalidRequest(f"key: {key!r} is no shared memory object", param="key")
    return file


def _placement(tensor: str, parameters: Mapping[str, pb.InferParameter]) -> Placement:
    region = plain_parameter(parameters, REGION)
    size = plain_parameter(parameters, SIZE)
    offset = plain_parameter(parameters, OFFSET)
    if not isinstance(region, str):
        raise _bad(tensor, f"{REGION}: expected a string")
    if type(size) is not int or not 0 <= size <= MAX_TENSOR_BYTES:
        raise _bad(tensor, f"{SIZE}: expected a whole number up to {MAX_TENSOR_BYTES}")
    if offset is not None and (type(offset) is not int or offset < 0):
        raise _bad(tensor, f"{OFFSET}: expected a whole number, not negative")
    return Placement(region, offset or 0, size)


def _forget(parameters: Any) -> None:
    for name in (REGION, SIZE, OFFSET):
        if name in parameters:
            del parameters[name]


def _raw_of_others(
    message: pb.ModelInferRequest, places: Mapping[int, Placement]
) -> Iterator[bytes]:
    """The raw contents of the inputs that are not in shared memory, in their order."""
    plain = pb.ModelInferRequest(raw_input_contents=message.raw_input_contents)
    plain.inputs.extend(header for at, header in enumerate(message.inputs) if at not in places)
    # Decoded here for its checks: a wrong number of raw entries must not shift onto other tensors.
    tensors = decode_inputs(plain)
    if message.raw_input_contents:
        return iter(message.raw_input_contents)
    return iter([encode_raw(it.name, it.datatype, it.values) for it in tensors.values()])


def _bad(tensor: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"tensor {tensor!r}: {what}", param=tensor)
