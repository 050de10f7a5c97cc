"""Our proto against the descriptors that tritonclient ships: same names, numbers and types."""

from collections.abc import Iterator

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FileDescriptorProto,
    MethodDescriptorProto,
    ServiceDescriptorProto,
)
from tritonclient.grpc import model_config_pb2, service_pb2

from wire.pool import POOL

# KServe's answers to loading and unloading, which Triton leaves empty.
ADDED = {
    "RepositoryModelLoadResponse.model_name",
    "RepositoryModelLoadResponse.isLoaded",
    "RepositoryModelUnloadResponse.model_name",
    "RepositoryModelUnloadResponse.isUnloaded",
}


def ours() -> FileDescriptorProto:
    proto = FileDescriptorProto()
    POOL.FindFileByName("inference.proto").CopyToProto(proto)
    return proto


def theirs() -> FileDescriptorProto:
    """Both of tritonclient's files as one."""
    merged = FileDescriptorProto()
    for module in (service_pb2, model_config_pb2):
        part = FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(part)
        merged.message_type.extend(part.message_type)
        merged.enum_type.extend(part.enum_type)
        merged.service.extend(part.service)
    return merged


def messages(
    found: list[DescriptorProto], prefix: str = ""
) -> Iterator[tuple[str, DescriptorProto]]:
    for message in found:
        name = prefix + message.name
        yield name, message
        yield from messages(list(message.nested_type), f"{name}.")


def enums(proto: FileDescriptorProto) -> Iterator[tuple[str, EnumDescriptorProto]]:
    for enum in proto.enum_type:
        yield enum.name, enum
    for name, message in messages(list(proto.message_type)):
        for enum in message.enum_type:
            yield f"{name}.{enum.name}", enum


def fields(proto: FileDescriptorProto) -> dict[str, tuple]:
    return {
        f"{name}.{field.name}": (
            field.number,
            field.type,
            field.label,
            field.type_name,
            message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else None,
        )
        for name, message in messages(list(proto.message_type))
        for field in message.field
    }


def method(entry: MethodDescriptorProto) -> tuple:
    return entry.input_type, entry.output_type, entry.client_streaming, entry.server_streaming


def test_both_speak_for_one_package() -> None:
    assert ours().package == service_pb2.DESCRIPTOR.package == "inference"


def test_every_field_has_the_published_number_and_type() -> None:
    published = fields(theirs())
    defined = fields(ours())
    assert len(defined) > 150
    assert {name for name in defined if name not in published} == ADDED
    assert {name: it for name, it in defined.items() if name not in ADDED} == {
        name: it for name, it in published.items() if name in defined
    }


def test_every_published_field_left_out_is_reserved() -> None:
    published = fields(theirs())
    reserved = {
        name: [range(it.start, it.end) for it in message.reserved_range]
        for name, message in messages(list(ours().message_type))
    }
    defined = fields(ours())
    for full_name in published.keys() - defined.keys():
        message, _, _ = full_name.rpartition(".")
        number = published[full_name][0]
        if message in reserved:
            assert any(number in span for span in reserved[message]), full_name


def test_every_enum_has_the_published_values() -> None:
    published = dict(enums(theirs()))
    for name, enum in enums(ours()):
        assert {it.name: it.number for it in enum.value} == {
            it.name: it.number for it in published[name].value
        }


def test_the_services_have_the_same_methods() -> None:
    (our_service,) = ours().service
    (their_service,) = theirs().service

    def methods(service: ServiceDescriptorProto) -> dict[str, tuple]:
        return {entry.name: method(entry) for entry in service.method}

    assert our_service.name == their_service.name == "GRPCInferenceService"
    assert methods(our_service) == methods(their_service)


@pytest.mark.parametrize("name", ["ModelInferRequest", "ModelInferResponse", "ModelConfig"])
def test_our_classes_are_not_the_default_pools(name: str) -> None:
    own = POOL.FindMessageTypeByName(f"inference.{name}")
    published = (model_config_pb2 if name == "ModelConfig" else service_pb2).DESCRIPTOR
    assert own is not published.message_types_by_name[name]
