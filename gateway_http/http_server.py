"""An HTTP/1.1 server for one ASGI application, inside an event loop that others use too.

uvicorn does the protocol; its signal handlers and its main loop are left out, since the process
that embeds it owns signals and tasks.
"""

import asyncio
import socket
from email.utils import formatdate

import uvicorn
from starlette.types import ASGIApp

from runtime.errors import InvalidConfig

_BACKLOG = 4096
_CANCEL_S = 5.0


class HttpServer:
    """Serves `app` on host:port; port 0 takes a free one. Start and stop it once."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        host: str,
        port: int,
        keep_alive_s: int = 75,
        access_log: bool = False,
        reuse_port: bool = False,
    ) -> None:
        self._host = host
        self._port = port
        self._reuse_port = reuse_port
        self._socket: socket.socket | None = None
        self._clock: asyncio.TimerHandle | None = None
        config = uvicorn.Config(
            app,
            loop="none",
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=access_log,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=keep_alive_s,
            backlog=_BACKLOG,
        )
        config.load()
        self._config = config
        self._server = uvicorn.Server(config)
        self._server.lifespan = config.lifespan_class(config)

    @property
    def in_flight(self) -> int:
        """Requests being answered."""
        return len(self._server.server_state.tasks)

    async def start(self) -> str:
        """Listen; the returned URL has the real port. Raises InvalidConfig if it cannot."""
        listening = self._bind()
        self._socket = listening
        self._tick()
        await self._server.startup(sockets=[listening])
        port = listening.getsockname()[1]
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{port}"

    async def stop(self, drain_s: float) -> None:
        """Refuse new connections, let requests finish for `drain_s` seconds, cancel the rest.

        Returns when every request's task has ended, so that what they use can be closed.
        """
        if self._socket is None:
            return
        # uvicorn takes whole seconds by its types and any number in fact; 0 would mean no wait
        # at all before the first look.
        self._config.timeout_graceful_shutdown = max(drain_s, 0.001)  # type: ignore[assignment]
        await self._server.shutdown(sockets=[self._socket])
        if self._clock is not None:
            self._clock.cancel()
        self._socket = None
        tasks = set(self._server.server_state.tasks)
        if tasks:
            await asyncio.wait(tasks, timeout=_CANCEL_S)
        for connection in list(self._server.server_state.connections):
            transport = connection.transport
            if transport is not None:
                transport.close()

    def _bind(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Accepted sockets inherit it: a chunk must not wait for the one before to be acked.
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._reuse_port:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listening.bind((self._host, self._port))
            listening.listen(_BACKLOG)
            listening.setblocking(False)
        except OSError as error:
            listening.close()
            raise InvalidConfig(
                f"cannot listen on {self._host}:{self._port}: {error.strerror or error}",
                param="http_port",
            ) from None
        return listening

    def _tick(self) -> None:
        date = formatdate(usegmt=True).encode()
        self._server.server_state.default_headers = [(b"date", date)]
        self._clock = asyncio.get_running_loop().call_later(1.0, self._tick)
