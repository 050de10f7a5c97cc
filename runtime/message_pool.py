"""Message classes from a private descriptor pool.

tritonclient, kserve and mlserver each put package `inference` into protobuf's default pool, etcd's
clients `etcdserverpb`, and any two of a kind in one process raise TypeError. A pool of our own
stays out of their way, and a FileDescriptorSet, unlike generated code, has no gencode version to
match against the runtime.
"""

from importlib.resources import files
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass


class MessagePool:
    """What the FileDescriptorSet in `package`'s file `name` describes."""

    def __init__(self, package: str, name: str) -> None:
        self.pool = DescriptorPool()
        described = files(package).joinpath(name).read_bytes()
        for file in FileDescriptorSet.FromString(described).file:
            self.pool.Add(file)

    def message_class(self, full_name: str) -> type[Message]:
        """Return the class of the message `full_name`; raises KeyError when the pool lacks it."""
        return GetMessageClass(self.pool.FindMessageTypeByName(full_name))

    def file_classes(self, file_name: str) -> dict[str, Any]:
        """Return each top-level message class and enum value of a .proto file by its short name."""
        descriptor = self.pool.FindFileByName(file_name)
        names: dict[str, Any] = {
            name: GetMessageClass(message)
            for name, message in descriptor.message_types_by_name.items()
        }
        for enum in descriptor.enum_types_by_name.values():
            names.update({value.name: value.number for value in enum.values})
        return names

    def rpc_types(self, service: str) -> dict[str, tuple[type[Message], type[Message]]]:
        """Return {rpc name: (request class, response class)} of a service such as `inference.X`."""
        return {
            method.name: (GetMessageClass(method.input_type), GetMessageClass(method.output_type))
            for method in self.pool.FindServiceByName(service).methods
        }
