"""`penstock frontend --processes N`: front doors that share their ports, under one parent."""

import asyncio
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cli.family import Family, Member, child_command
from cli.options import FrontOptions
from runtime.metrics import PREFIX
from runtime.ports import hold_port
from runtime.process import private_folder
from runtime.supervisor import ChildSpec

_LOG = logging.getLogger(__name__)
FRONT = "front"
_LOOPBACKS = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}
_IF_NO_MEMORY = "run fewer --processes"


def run_group(config: FrontOptions, arguments: Sequence[str]) -> int:
    """Run `config.processes` front doors until stopped; `arguments` are this process's own."""
    import uvloop

    folder = private_folder("penstock-frontend")
    try:
        with held_ports(config) as ports, asyncio.Runner(loop_factory=uvloop.new_event_loop) as run:
            members = front_members(config, ["frontend", *arguments], ports, folder)
            family = Family(
                "frontend",
                config,
                members,
                folder=folder,
                at_ready=_log_ready,
                progress=_LOG.info,
            )
            run.run(family.run())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _log_ready(told: Mapping[str, Any]) -> None:
    _LOG.info("ready: %s", ", ".join(told["models"]) or "no model has a worker yet")


@contextmanager
def held_ports(config: FrontOptions) -> Iterator[dict[str, int]]:
    """Settle the ports of the front doors and keep them while the block runs.

    Yields {"grpc_port": number, "http_port": number}, 0 for a front that is not served.
    """
    ports = {"grpc_port": 0, "http_port": 0}
    with ExitStack() as held:
        for field, is_off in (("grpc_port", config.no_grpc), ("http_port", config.no_http)):
            if not is_off:
                taken = held.enter_context(hold_port(config.host, getattr(config, field), field))
                ports[field] = taken.getsockname()[1]
        yield ports


def front_members(
    config: FrontOptions,
    command: Sequence[str],
    ports: Mapping[str, int],
    folder: Path,
    environment: Mapping[str, str] | None = None,
) -> list[Member]:
    """Describe `config.processes` front doors on the same ports; `command` is one's command line.

    What only the parent does (the metrics port, the prefix, the processes) is overridden in it.
    """

    def member(name: str) -> Member:
        def make(number: int, status_url: str) -> ChildSpec:
            ready, status = (
                folder / f"{name}.{number}.{kind}.json" for kind in ("ready", "status")
            )
            argv = child_command(
                *command,
                "--processes=1",
                "--share-port",
                f"--grpc-port={ports['grpc_port']}",
                f"--http-port={ports['http_port']}",
                "--metrics-host=127.0.0.1",
                "--metrics-port=0",
                f"--metrics-prefix={PREFIX}",
                f"--metrics-from={_from_here(status_url)}/metrics",
                f"--group-folder={folder}",
                f"--ready-file={ready}",
                f"--status-file={status}",
            )
            return ChildSpec(
                name=name,
                argv=argv,
                ready_file=ready,
                status_file=status,
                environment=environment,
                if_no_memory=_IF_NO_MEMORY,
            )

        return Member(name=name, make=make, is_front=True, surge=True)

    return [member(f"{FRONT}-{number}") for number in range(config.processes)]


def _from_here(url: str) -> str:
    """Return the URL by which a process of this machine reaches a listener of this machine."""
    where = urlsplit(url)
    host = _LOOPBACKS.get(where.hostname or "")
    return f"{where.scheme}://{host}:{where.port}" if host else url
