"""Message classes from a private descriptor pool.

tritonclient, kserve and mlserver each put package `inference` into protobuf's default pool, and
any two of them in one process raise TypeError. A pool of our own stays out of their way, and a
FileDescriptorSet, unlike generated code, has no gencode version to match against the runtime.
"""

from importlib.resources import files
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

KSERVE = "inference.GRPCInferenceService"
"""The full name of the KServe v2 service."""

FLEET = "penstock.FleetService"
"""The full name of the service that Penstock's processes have for each other."""

POOL = DescriptorPool()

_SET = files("wire").joinpath("wire.binpb").read_bytes()
for _file in FileDescriptorSet.FromString(_SET).file:
    POOL.Add(_file)


def message_class(full_name: str) -> type[Message]:
    """Return the class of the message `full_name`; raises KeyError when the pool lacks it."""
    return GetMessageClass(POOL.FindMessageTypeByName(full_name))


def file_classes(file_name: str) -> dict[str, Any]:
    """Return every top-level message class and enum value of one .proto file, by its short name."""
    descriptor = POOL.FindFileByName(file_name)
    names: dict[str, Any] = {
        name: GetMessageClass(message) for name, message in descriptor.message_types_by_name.items()
    }
    for enum in descriptor.enum_types_by_name.values():
        names.update({value.name: value.number for value in enum.values})
    return names


def rpc_types(service: str) -> dict[str, tuple[type[Message], type[Message]]]:
    """Return {rpc name: (request class, response class)} of a service such as `inference.X`."""
    return {
        method.name: (GetMessageClass(method.input_type), GetMessageClass(method.output_type))
        for method in POOL.FindServiceByName(service).methods
    }
