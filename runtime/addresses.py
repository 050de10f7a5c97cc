"""What a process calls itself in discovery, and where others reach it."""

import logging
import re
import socket
import uuid

log = logging.getLogger(__name__)

_WILDCARDS = ("0.0.0.0", "::", "")


def instance_id_of(name: str) -> str:
    """Return a new id for a process that serves `name`: never used before, fit for discovery."""
    plain = re.sub(r"[^a-z0-9._-]+", "-", f"{name}-{socket.gethostname()}".lower())
    return f"{plain}-{uuid.uuid4().hex[:8]}"


def reachable_address(address: str, advertise_host: str | None) -> str:
    """Return host:port as others reach it: a wildcard address is no destination."""
    host, _, port = address.rpartition(":")
    if advertise_host is not None:
        host = f"[{advertise_host}]" if ":" in advertise_host else advertise_host
    elif host.strip("[]") in _WILDCARDS:
        host = socket.getfqdn()
        if host.startswith("localhost"):
            log.warning("this host calls itself %s: others elsewhere need --advertise-host", host)
    return f"{host}:{port}"
