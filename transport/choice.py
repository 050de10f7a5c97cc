"""The transports there are, behind one interface."""

from collections.abc import Callable, Mapping, Sequence

from google.protobuf.descriptor_pool import DescriptorPool

from runtime.access import Access
from runtime.grpc_client import RpcChannel
from runtime.grpc_options import NATIVE, GrpcOptions
from runtime.grpc_server import GrpcServer
from runtime.rpc import RpcTypes, Service
from runtime.rpc_client import RpcCaller
from runtime.rpc_server import RpcServer
from runtime.tls import ClientIdentity, ClientTls, ServerIdentity
from transport.channel import NativeChannel
from transport.server import NativeServer


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


def make_channel(
    address: str,
    *,
    transport: str = NATIVE,
    rpc_types: RpcTypes,
    keepalive_s: float | None = 10.0,
    tls: ClientTls | ClientIdentity | None = None,
    call_metadata: Callable[[], Mapping[str, str]] = dict,
) -> RpcCaller:
    """Return a client of the named transport; see runtime.grpc_client.RpcChannel."""
    make: Callable[..., RpcCaller] = NativeChannel if transport == NATIVE else RpcChannel
    return make(
        address,
        rpc_types=rpc_types,
        keepalive_s=keepalive_s,
        tls=tls,
        call_metadata=call_metadata,
    )
