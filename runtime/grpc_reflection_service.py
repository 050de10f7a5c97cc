"""grpc.reflection, v1 and v1alpha, as Services over the pool that the services come from.

Ours and not grpc_reflection's servicer, so that it counts, drains and maps errors like any other.
"""

from collections.abc import Sequence
from typing import Any

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection_pb2

from runtime.errors import Code
from runtime.rpc import Call, Service

REFLECTION_SERVICE = "grpc.reflection.v1alpha.ServerReflection"
SERVICES = ("grpc.reflection.v1.ServerReflection", REFLECTION_SERVICE)
RPC_TYPES: dict[str, tuple[type, type]] = {
    "ServerReflectionInfo": (
        reflection_pb2.ServerReflectionRequest,
        reflection_pb2.ServerReflectionResponse,
    ),
}


def reflection_services(names: Sequence[str], pool: DescriptorPool) -> list[Service]:
    """Return the services, which list `names` and answer look-ups from `pool`.

    Both versions have the same messages on the wire.
    """
    answers = _Answers(sorted(names), pool)
    return [
        Service(name=name, streams={"ServerReflectionInfo": lambda call: _Session(call, answers)})
        for name in SERVICES
    ]


def add_own_files(pool: DescriptorPool) -> None:
    """Put the .proto files of both versions into `pool`, once.

    v1 is not in grpcio-reflection 1.81; its file is that of v1alpha under another package
    (github.com/grpc/grpc-proto, grpc/reflection/v1/reflection.proto).
    """
    old = reflection_pb2.DESCRIPTOR
    add_file(pool, old)
    name = "grpc/reflection/v1/reflection.proto"
    try:
        pool.FindFileByName(name)
    except KeyError:
        file = FileDescriptorProto.FromString(old.serialized_pb)
        file.name = name
        file.package = "grpc.reflection.v1"
        for message in file.message_type:
            for field in message.field:
                if field.type_name:
                    field.type_name = _as_v1(field.type_name)
        for method in file.service[0].method:
            method.input_type = _as_v1(method.input_type)
            method.output_type = _as_v1(method.output_type)
        pool.AddSerializedFile(file.SerializeToString())


def _as_v1(type_name: str) -> str:
    return type_name.replace(".grpc.reflection.v1alpha.", ".grpc.reflection.v1.")


def add_file(pool: DescriptorPool, file: FileDescriptor) -> None:
    """Put a .proto file of another pool, with what it imports, into `pool`, once."""
    try:
        pool.FindFileByName(file.name)
    except KeyError:
        for dependency in file.dependencies:
            add_file(pool, dependency)
        pool.AddSerializedFile(file.serialized_pb)


class _Answers:
    def __init__(self, names: Sequence[str], pool: DescriptorPool) -> None:
        self._names = names
        self._pool = pool

    def answer(self, request: Any) -> Any:
        """Return the response to one request; what is not there is an error response."""
        response = reflection_pb2.ServerReflectionResponse(
            valid_host=request.host, original_request=request
        )
        kind = request.WhichOneof("message_request")
        look_up = getattr(self, f"_{kind}", None) if kind else None
        if look_up is None:
            response.error_response.error_code = Code.INVALID_ARGUMENT
            response.error_response.error_message = "message_request is not set"
            return response
        try:
            look_up(getattr(request, kind), response)
        except KeyError:
            response.error_response.error_code = Code.NOT_FOUND
            response.error_response.error_message = f"{kind}: not found"
        return response

    def _list_services(self, _: str, response: Any) -> None:
        for name in self._names:
            response.list_services_response.service.add(name=name)

    def _file_by_filename(self, name: str, response: Any) -> None:
        self._put_files(self._pool.FindFileByName(name), response)

    def _file_containing_symbol(self, symbol: str, response: Any) -> None:
        self._put_files(self._pool.FindFileContainingSymbol(symbol), response)

    def _file_containing_extension(self, asked: Any, response: Any) -> None:
        message = self._pool.FindMessageTypeByName(asked.containing_type)
        extension = self._pool.FindExtensionByNumber(message, asked.extension_number)
        self._put_files(self._pool.FindFileContainingSymbol(extension.full_name), response)

    def _all_extension_numbers_of_type(self, name: str, response: Any) -> None:
        message = self._pool.FindMessageTypeByName(name)
        numbers = response.all_extension_numbers_response
        numbers.base_type_name = name
        numbers.extension_number.extend(e.number for e in self._pool.FindAllExtensions(message))

    def _put_files(self, file: FileDescriptor, response: Any) -> None:
        for one in _with_imports(file, {}).values():
            proto = FileDescriptorProto()
            one.CopyToProto(proto)
            response.file_descriptor_response.file_descriptor_proto.append(
                proto.SerializeToString()
            )


def _with_imports(
    file: FileDescriptor, seen: dict[str, FileDescriptor]
) -> dict[str, FileDescriptor]:
    if file.name not in seen:
        seen[file.name] = file
        for dependency in file.dependencies:
            _with_imports(dependency, seen)
    return seen


class _Session:
    """One ServerReflectionInfo stream: each request is answered at once, in order."""

    def __init__(self, call: Call, answers: _Answers) -> None:
        self._call = call
        self._answers = answers

    def on_message(self, message: Any) -> None:
        self._call.send(self._answers.answer(message))

    def on_half_close(self) -> None:
        self._call.finish()

    def on_writable(self) -> None:
        pass

    def on_cancel(self) -> None:
        pass
