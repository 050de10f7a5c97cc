"""Opens the discovery back end that the configuration names."""

from pathlib import Path

from runtime.discovery import Discovery
from runtime.errors import InvalidConfig

KINDS = ("memory", "file")


def open_discovery(kind: str, path: str | None) -> Discovery:
    """Return a back end: `memory`, or `file` in folder `path`; raises InvalidConfig.

    Without a path the folder is the user's own on this machine, so that processes started apart
    find each other. Only the chosen one's libraries are imported.
    """
    if kind == "memory":
        from runtime.discovery_memory import MemoryDiscovery  # noqa: PLC0415

        return MemoryDiscovery()
    if kind == "file":
        from platformdirs import user_state_path  # noqa: PLC0415

        from runtime.discovery_file import FileDiscovery  # noqa: PLC0415

        return FileDiscovery(Path(path) if path else user_state_path("penstock") / "discovery")
    raise InvalidConfig(f"discovery {kind!r} is not one of: {', '.join(KINDS)}", param="discovery")
