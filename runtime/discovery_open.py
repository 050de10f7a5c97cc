"""Opens the discovery back end that the configuration names."""

from pathlib import Path

from runtime.discovery import Discovery
from runtime.errors import InvalidConfig
from runtime.options_discovery import KINDS, DiscoveryOptions


def open_discovery(options: DiscoveryOptions) -> Discovery:
    """Return the back end that `options` name; call it in a running event loop.

    Without a path, file discovery's folder is the user's own on this machine, so that processes
    started apart find each other. Only the chosen one's libraries are imported. Raises
    InvalidConfig.
    """
    kind, path = options.discovery, options.discovery_path
    if kind == "memory":
        from runtime.discovery_memory import MemoryDiscovery  # noqa: PLC0415

        return MemoryDiscovery()
    if kind == "file":
        from platformdirs import user_state_path  # noqa: PLC0415

        from runtime.discovery_file import FileDiscovery  # noqa: PLC0415

        return FileDiscovery(Path(path) if path else user_state_path("penstock") / "discovery")
    if kind == "etcd":
        from runtime.discovery_etcd import EtcdDiscovery  # noqa: PLC0415

        return EtcdDiscovery(options)
    raise InvalidConfig(f"discovery {kind!r} is not one of: {', '.join(KINDS)}", param="discovery")
