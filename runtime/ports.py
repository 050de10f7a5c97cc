"""A look whether ports are free, before work begins that a taken one would make useless."""

import socket
from collections.abc import Mapping

from runtime.errors import InvalidConfig


def require_free_ports(host: str, ports: Mapping[str, int]) -> None:
    """Raise InvalidConfig naming the first of {field: port} that is taken; 0 is always free."""
    for field, port in ports.items():
        if port == 0:
            continue
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(*found[:3]) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(found[4])
        except OSError as error:
            flag = f"--{field.replace('_', '-')}"
            raise InvalidConfig(
                f"cannot listen on {host}:{port}: {error.strerror} ({flag}; 0 picks a free one)",
                param=field,
            ) from error
