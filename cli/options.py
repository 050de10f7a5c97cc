"""What the front processes' command lines share."""

from dataclasses import dataclass

from router.policies import POLICIES
from runtime.config import option
from runtime.discovery_open import KINDS
from runtime.errors import InvalidConfig
from runtime.options import ProcessOptions
from runtime.supervisor import RestartPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpOptions(ProcessOptions):
    """What every process with an HTTP front has."""

    http_port: int = option(8000, help="port of the OpenAI front; 0 picks a free one")
    max_body_bytes: int = option(16 * 1024 * 1024, help="largest HTTP request", unit="bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontOptions(HttpOptions):
    """What every front door has."""

    grpc_port: int = option(8001, help="port of the KServe front; 0 picks a free one")
    no_http: bool = option(False, help="do not serve the OpenAI front")
    no_grpc: bool = option(False, help="do not serve the KServe front")
    discovery: str = option("file", help="where workers are found", choices=KINDS)
    discovery_path: str | None = option(
        None, help="folder of file discovery (default: one of the user's)"
    )
    max_message_bytes: int = option(-1, help="largest gRPC message; -1 is no limit", unit="bytes")
    router_policy: str = option(
        "round-robin", help="how a worker is chosen", choices=tuple(POLICIES)
    )
    request_timeout_s: float = option(0.0, help="limit of a whole request; 0 is none", unit="s")
    processes: int = option(1, help="front door processes, which share the ports")
    restart_limit: int = option(
        5, help="restarts of one child process within the window before all is given up"
    )
    restart_window_s: float = option(
        600.0, help="window that restarts are counted in; 0 never gives up", unit="s"
    )

    def __post_init__(self) -> None:
        """Raise InvalidConfig naming a field that is out of its range."""
        HttpOptions.__post_init__(self)
        for name, least in (("processes", 1), ("restart_limit", 0), ("restart_window_s", 0)):
            if not getattr(self, name) >= least:
                raise InvalidConfig(f"{name} must be at least {least}", param=name)

    @property
    def restart_policy(self) -> RestartPolicy:
        """When a child process is started again."""
        return RestartPolicy(
            restart_limit=self.restart_limit, restart_window_s=self.restart_window_s
        )
