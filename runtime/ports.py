"""A look whether a port is free, before work begins that a taken one would make useless."""

import errno
import socket

from runtime.config_option import flag_of
from runtime.errors import InvalidConfig


def require_free_port(host: str, port: int, *, port_field: str, host_field: str) -> None:
    """Raise InvalidConfig naming the flag of the port if it is taken; 0 is always free.

    It names the flag of the host where that is none of this machine's.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(*found[:3]) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(found[4])
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a host's name"
        raise _refused(host, reason, host_field) from error
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise _refused(host, error.strerror, host_field) from error
        raise InvalidConfig(
            f"cannot listen on {host}:{port}: {error.strerror} "
            f"({flag_of(port_field)}; 0 picks a free one)",
            param=port_field,
        ) from error


def _refused(host: str, reason: str | None, field: str) -> InvalidConfig:
    return InvalidConfig(f"cannot listen on {host}: {reason} ({flag_of(field)})", param=field)
