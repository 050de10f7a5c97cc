"""The shared memory rpcs of KServe's service: regions of system memory; none of CUDA's."""

from collections.abc import Mapping
from typing import Any

from runtime.errors import Unsupported
from runtime.rpc import CallInfo, UnaryHandler
from server.shared_memory import RegionNotFound, SharedMemory
from wire import inference_pb2 as pb

EXTENSION = "system_shared_memory"


class SharedMemoryCalls:
    """The six rpcs; `memory` None refuses registration and has no regions to tell of."""

    def __init__(self, memory: SharedMemory | None) -> None:
        self._memory = memory

    @property
    def extensions(self) -> tuple[str, ...]:
        """What the server's metadata lists of it."""
        return () if self._memory is None else (EXTENSION,)

    @property
    def unary(self) -> Mapping[str, UnaryHandler]:
        """The handlers by rpc."""
        return {
            "SystemSharedMemoryStatus": self._status,
            "SystemSharedMemoryRegister": self._register,
            "SystemSharedMemoryUnregister": self._unregister,
            "CudaSharedMemoryStatus": self._cuda_status,
            "CudaSharedMemoryRegister": self._cuda_register,
            "CudaSharedMemoryUnregister": self._cuda_unregister,
        }

    async def _status(self, message: Any, info: CallInfo) -> Any:
        regions = self._memory.regions(info.principal) if self._memory else []
        if message.name:
            regions = [region for region in regions if region.name == message.name]
            if not regions:
                raise _unknown(message.name)
        answer = pb.SystemSharedMemoryStatusResponse()
        for region in regions:
            answer.regions[region.name].name = region.name
            answer.regions[region.name].key = region.key
            answer.regions[region.name].offset = region.offset
            answer.regions[region.name].byte_size = region.byte_size
        return answer

    async def _register(self, message: Any, info: CallInfo) -> Any:
        if self._memory is None:
            raise Unsupported("shared memory is off: start the server with --shared-memory")
        self._memory.register(
            info.principal,
            name=message.name,
            key=message.key,
            offset=message.offset,
            byte_size=message.byte_size,
        )
        return pb.SystemSharedMemoryRegisterResponse()

    async def _unregister(self, message: Any, info: CallInfo) -> Any:
        # Clients clean up with it before they register anything.
        if self._memory is not None:
            self._memory.unregister(info.principal, message.name)
        return pb.SystemSharedMemoryUnregisterResponse()

    async def _cuda_status(self, message: Any, info: CallInfo) -> Any:
        if message.name:
            raise _unknown(message.name)
        return pb.CudaSharedMemoryStatusResponse()

    async def _cuda_register(self, message: Any, info: CallInfo) -> Any:
        raise Unsupported("CUDA shared memory is not offered: text is not in a GPU's memory")

    async def _cuda_unregister(self, message: Any, info: CallInfo) -> Any:
        return pb.CudaSharedMemoryUnregisterResponse()


def _unknown(name: str) -> RegionNotFound:
    return RegionNotFound(f"no shared memory region {name!r} is registered", param="name")
