"""The operator's port: Prometheus metrics and health over plain HTTP, in a thread of its own.

A thread, so that /live can say that the event loop hangs instead of hanging with it.
"""

import asyncio
import ipaddress
import logging
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import msgspec
from prometheus_client import REGISTRY, make_wsgi_app

from runtime.errors import InvalidConfig
from runtime.logs import LEVELS, log_level, set_log_level
from runtime.metrics import (
    EVENT_LOOP_LAG,
    EVENT_LOOP_TASKS,
    PREFIX,
    Collecting,
    PrefixedRegistry,
)

_LOG = logging.getLogger(__name__)
StartResponse = Callable[..., Any]
_TEXT = (("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store"))
_JSON = (("Content-Type", "application/json"), ("Cache-Control", "no-store"))


class StatusServer:
    """Serves /metrics, /live, /ready, /health and /log-level on host:port.

    /live and /ready answer 200 or 503 in plain text; /health has the status of /ready and says as
    JSON what `describe` returns. `is_ready` and `describe` are called from other threads and must
    only read. The process is live while the event loop that `start` is called on takes less than
    `hung_s` seconds for a turn. /log-level answers the level; PUT has `set_level` set it, from
    this machine only.
    """

    def __init__(
        self,
        *,
        host: str,
        port: int,
        is_ready: Callable[[], bool],
        describe: Callable[[], Mapping[str, Any]] = dict,
        hung_s: float = 60.0,
        registry: Collecting = REGISTRY,
        prefix: str = PREFIX,
        set_level: Callable[[str], object] = set_log_level,
    ) -> None:
        self._host, self._port = host, port
        self._pulse = LoopPulse(hung_s)
        self._is_ready, self._describe = is_ready, describe
        # prometheus_client asks for its own class and uses nothing but `collect`.
        shown: Any = PrefixedRegistry(registry, prefix)
        self._pages: dict[str, Callable[..., Iterable[bytes]]] = {
            "/metrics": make_wsgi_app(shown),
            "/live": self._live,
            "/ready": self._ready,
            "/health": self._health,
            "/log-level": partial(_log_level, set_level),
        }
        self._server: _Server | None = None

    def start(self) -> str:
        """Listen; returns the URL with the real port. Raises InvalidConfig if it is taken."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        kind = type("_Server", (_Server,), {"address_family": family})
        try:
            server: _Server = kind((self._host, self._port), _QuietHandler)
        except OSError as error:
            raise InvalidConfig(
                f"cannot listen on {self._host}:{self._port} for metrics: {error.strerror}",
                param="metrics_port",
            ) from error
        server.set_app(self._answer)
        self._pulse.start()
        self._server = server
        threading.Thread(target=server.serve_forever, name="status", daemon=True).start()
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{server.server_port}"

    def stop(self) -> None:
        """Stop listening; waits at most half a second. Idempotent."""
        server, self._server = self._server, None
        self._pulse.stop()
        if server is not None:
            server.shutdown()
            server.server_close()

    def _answer(self, environ: dict[str, Any], start: StartResponse) -> Iterable[bytes]:
        page = self._pages.get(environ.get("PATH_INFO", ""))
        if page is None:
            start("404 Not Found", list(_TEXT))
            return [f"not here: try {', '.join(self._pages)}\n".encode()]
        return page(environ, start)

    def _live(self, environ: dict[str, Any], start: StartResponse) -> list[bytes]:
        return _check(self._pulse.is_live(), start)

    def _ready(self, environ: dict[str, Any], start: StartResponse) -> list[bytes]:
        return _check(self._is_ready(), start)

    def _health(self, environ: dict[str, Any], start: StartResponse) -> list[bytes]:
        ready = self._is_ready()
        start(_status(ready), list(_JSON))
        status = "ready" if ready else "not_ready"
        about = {"status": status, "live": self._pulse.is_live(), **self._describe()}
        return [msgspec.json.encode(about), b"\n"]


def _check(good: bool, start: StartResponse) -> list[bytes]:
    start(_status(good), list(_TEXT))
    return [b"ok\n" if good else b"not ready\n"]


def _status(good: bool) -> str:
    return "200 OK" if good else "503 Service Unavailable"


def _log_level(
    set_level: Callable[[str], object], environ: dict[str, Any], start: StartResponse
) -> list[bytes]:
    if environ["REQUEST_METHOD"] in ("PUT", "POST"):
        peer = ipaddress.ip_address(environ["REMOTE_ADDR"].partition("%")[0])
        if not (getattr(peer, "ipv4_mapped", None) or peer).is_loopback:
            start("403 Forbidden", list(_TEXT))
            return [b"the level can be set from this machine only\n"]
        length = min(int(environ.get("CONTENT_LENGTH") or 0), 64)
        wanted = environ["wsgi.input"].read(length).decode("ascii", "replace").strip().lower()
        if wanted not in LEVELS:
            start("400 Bad Request", list(_TEXT))
            return [f"level {wanted!r} is not one of: {', '.join(LEVELS)}\n".encode()]
        set_level(wanted)
        _LOG.warning("log level is now %s", wanted)
    start("200 OK", list(_TEXT))
    return [f"{log_level()}\n".encode()]


class LoopPulse:
    """Looks once a second whether the event loop turns, and how late; any thread may ask.

    From `start` on the metric of the loop's tasks counts those of this loop.
    """

    def __init__(self, hung_s: float) -> None:
        self._hung_s = hung_s
        self._beaten_at = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin, on the running event loop."""
        loop = asyncio.get_running_loop()
        EVENT_LOOP_TASKS.set_function(lambda: len(asyncio.all_tasks(loop)))
        self._beat(None)

    def _beat(self, due_s: float | None) -> None:
        self._beaten_at = time.monotonic()
        loop = asyncio.get_running_loop()
        if due_s is not None:
            EVENT_LOOP_LAG.observe(max(0.0, loop.time() - due_s))
        due_s = loop.time() + min(1.0, self._hung_s / 4)
        self._timer = loop.call_at(due_s, self._beat, due_s)

    def stop(self) -> None:
        """End. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()

    def is_live(self) -> bool:
        """Whether the loop has turned lately."""
        return time.monotonic() - self._beaten_at < self._hung_s


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False

    def server_bind(self) -> None:
        # HTTPServer's own looks up the host's name, which can take seconds without DNS.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()


class _QuietHandler(WSGIRequestHandler):
    timeout = 10

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        pass
