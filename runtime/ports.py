"""A look whether ports are free, before work begins that a taken one would make useless."""

import errno
import socket
from collections.abc import Mapping

from runtime.config_option import flag_of
from runtime.errors import InvalidConfig


def require_free_ports(host: str, ports: Mapping[str, int], *, host_field: str = "host") -> None:
    """Raise InvalidConfig naming the first of {field: port} that is taken; 0 is always free.

    It names `host_field` where the host is none of this machine's.
    """
    for field, port in ports.items():
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(*found[:3]) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(found[4])
        except UnicodeError as error:
            raise _foreign(host, host_field, "not a host's name") from error
        except OSError as error:
            if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
                raise _foreign(host, host_field, error.strerror) from error
            raise _taken(host, port, field, error) from error


def _foreign(host: str, field: str, reason: str | None) -> InvalidConfig:
    return InvalidConfig(f"cannot listen on {host}: {reason} ({flag_of(field)})", param=field)


def _taken(host: str, port: int, field: str, error: OSError) -> InvalidConfig:
    return InvalidConfig(
        f"cannot listen on {host}:{port}: {error.strerror} ({flag_of(field)}; 0 picks a free one)",
        param=field,
    )
