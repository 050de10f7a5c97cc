"""The transports there are, behind one interface."""

from collections.abc import Callable, Mapping, Sequence

from google.protobuf.descriptor_pool import DescriptorPool

from runtime.access import Access
from runtime.grpc_options import NATIVE, GrpcOptions
from runtime.grpc_server import GrpcServer
from runtime.rpc import Service
from runtime.rpc_server import RpcServer
from runtime.tls import ServerIdentity
from transport.server import NativeServer

RpcTypes = Callable[[str], Mapping[str, tuple[type, type]]]


def make_server(
    *,
    services: Sequence[Service],
    rpc_types: RpcTypes,
    pool: DescriptorPool,
    host: str,
    port: int,
    options: GrpcOptions | None = None,
    tls: ServerIdentity | None = None,
    access: Access | None = None,
) -> RpcServer:
    """Return the server of `options.transport`.

    With `tls` nothing else than TLS is spoken; with `access` every call but those of health needs
    a key that it knows.
    """
    options = options or GrpcOptions()
    make: Callable[..., RpcServer] = NativeServer if options.transport == NATIVE else GrpcServer
    return make(
        services=services,
        rpc_types=rpc_types,
        pool=pool,
        host=host,
        port=port,
        options=options,
        tls=tls,
        access=access,
    )
