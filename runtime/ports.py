"""Whether ports are free, before work begins that a taken one would make useless; keeping them."""

import errno
import socket
import sys
from contextlib import suppress
from pathlib import Path

from runtime.config_option import flag_of
from runtime.errors import InvalidConfig

_LISTENING = "0A"  # in /proc/net/tcp
_LOCAL_FIELD, _STATE_FIELD, _INODE_FIELD = 1, 3, 9


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
        raise _taken(host, port, port_field, error) from error


def hold_port(host: str, port: int, field: str) -> socket.socket:
    """Take a port for processes that share it: bound with SO_REUSEPORT and never listening.

    It gets no connection, and keeps the number (port 0: a free one) for as long as it is open.
    Raises InvalidConfig naming `field` if somebody has it who does not share it.
    """
    held = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind((host, port))
    except OSError as error:
        held.close()
        raise _taken(host, port, field, error) from error
    return held


def _taken(host: str, port: int, field: str, error: OSError) -> InvalidConfig:
    pid = _listener(port)
    holder = f" by process {pid}" if pid else ""
    return InvalidConfig(
        f"cannot listen on {host}:{port}: {error.strerror}{holder} "
        f"({flag_of(field)}; 0 picks a free one)",
        param=field,
    )


def _refused(host: str, reason: str | None, field: str) -> InvalidConfig:
    return InvalidConfig(f"cannot listen on {host}: {reason} ({flag_of(field)})", param=field)


def _listener(port: int) -> int | None:
    """Return a process of this user that listens on `port`, where /proc tells."""
    if not sys.platform.startswith("linux"):
        return None
    sockets = set()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                here = int(fields[_LOCAL_FIELD].rpartition(":")[2], 16) == port
                if here and fields[_STATE_FIELD] == _LISTENING:
                    sockets.add(f"socket:[{fields[_INODE_FIELD]}]")
    for link in Path("/proc").glob("[0-9]*/fd/*") if sockets else ():
        with suppress(OSError):
            if str(link.readlink()) in sockets:
                return int(link.parts[2])
    return None
