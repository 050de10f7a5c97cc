"""What a front process demands of clients, and what it presents to workers and targets."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cli.options import HttpOptions
from runtime.grpc_options import NATIVE
from runtime.rpc_client import RpcCaller
from runtime.shared_token import SharedToken
from runtime.tls import ClientTls

if TYPE_CHECKING:
    from runtime.api_keys import ApiKeys


def open_api_keys(config: HttpOptions) -> "ApiKeys | None":
    """Return the keys that clients need; None when none are configured. Raises InvalidConfig."""
    if config.api_keys_file is None and config.api_key is None:
        return None
    from runtime.api_keys import ApiKeys

    return ApiKeys(file=config.api_keys_file, variable=config.api_key)


def key_to_send(file: Path | None, flag: str) -> Callable[[], Mapping[str, str]] | None:
    """Return what presents the key in a file, for a channel. Raises InvalidConfig."""
    return None if file is None else SharedToken(file=file, flag=flag).metadata


def worker_connector(
    tls: ClientTls | None, token: SharedToken | None, *, transport: str = NATIVE
) -> "Callable[[str], RpcCaller]":
    """Return what connects to a worker's address. Raises InvalidConfig for files that are wrong."""
    from transport.choice import make_channel
    from wire.pool import rpc_types

    # Opened once: a file that breaks later must not break the next worker's connection.
    files = None if tls is None else tls.open()
    present = dict if token is None else token.metadata

    def connect(address: str) -> RpcCaller:
        return make_channel(
            address,
            transport=transport,
            rpc_types=rpc_types,
            tls=files,
            call_metadata=present,
        )

    return connect
