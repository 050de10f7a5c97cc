"""The operator's port: Prometheus metrics and health over plain HTTP, in a thread of its own.

A thread, so that /live can say that the event loop hangs instead of hanging with it.
"""

import asyncio
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import REGISTRY, CollectorRegistry, make_wsgi_app

from runtime.errors import InvalidConfig

StartResponse = Callable[..., Any]
_TEXT = (("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store"))


class StatusServer:
    """Serves /metrics, /live, /ready and /health (the same as /ready) on host:port.

    Each check answers 200 or 503. `is_ready` is called from other threads and must only read.
    The process is live while the event loop that `start` is called on takes less than `hung_s`
    seconds for a turn.
    """

    def __init__(
        self,
        *,
        host: str,
        port: int,
        is_ready: Callable[[], bool],
        hung_s: float = 60.0,
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self._host, self._port = host, port
        self._pulse = LoopPulse(hung_s)
        self._checks = {"/live": self._pulse.is_live, "/ready": is_ready, "/health": is_ready}
        self._metrics = make_wsgi_app(registry)
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
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            body: Iterable[bytes] = self._metrics(environ, start)
            return body
        check = self._checks.get(path)
        if check is None:
            start("404 Not Found", list(_TEXT))
            return [b"not here: try /metrics, /live, /ready, /health\n"]
        good = check()
        start("200 OK" if good else "503 Service Unavailable", list(_TEXT))
        return [b"ok\n" if good else b"not ready\n"]


class LoopPulse:
    """Notes once a second that the event loop turns; `is_live` may be asked by any thread."""

    def __init__(self, hung_s: float) -> None:
        self._hung_s = hung_s
        self._beaten_at = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin, on the running event loop."""
        self._beaten_at = time.monotonic()
        period_s = min(1.0, self._hung_s / 4)
        self._timer = asyncio.get_running_loop().call_later(period_s, self.start)

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
