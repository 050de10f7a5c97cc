"""Whether ports are free, before work begins that a taken one would make useless; keeping them."""

import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from runtime.errors import InvalidConfig

_LISTENING = "0A"  # in /proc/net/tcp
_LOCAL_FIELD, _STATE_FIELD, _INODE_FIELD = 1, 3, 9


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
            raise _taken(host, port, field, error) from error


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
    flag = f"--{field.replace('_', '-')}"
    return InvalidConfig(
        f"cannot listen on {host}:{port}: {error.strerror}{holder} ({flag}; 0 picks a free one)",
        param=field,
    )


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
