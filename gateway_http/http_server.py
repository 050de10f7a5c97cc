"""An HTTP/1.1 server for one ASGI application, inside an event loop that others use too.

uvicorn's protocol class does the work; its Server, with its signal handlers and polling loops, is
left out, since the process that embeds this owns signals and tasks.
"""

import asyncio
import logging
import socket
from email.utils import formatdate

import uvicorn
from starlette.types import ASGIApp
from uvicorn.server import ServerState

from gateway_http.http_protocol import BoundedProtocol
from runtime.errors import InvalidConfig
from runtime.tls import RotatingContext, ServerIdentity

log = logging.getLogger(__name__)

_BACKLOG = 4096
_CANCEL_S = 5.0


class HttpServer:
    """Serves `app` on host:port; port 0 takes a free one. Start and stop it once.

    `keep_alive_s`: how long an idle connection stays open. `reuse_port`: several processes may
    listen on the same port. With `tls` nothing else than TLS is spoken. A client may take
    `handshake_timeout_s` to begin TLS; for the others see BoundedProtocol.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        host: str,
        port: int,
        keep_alive_s: int = 75,
        access_log: bool = False,
        reuse_port: bool = False,
        tls: ServerIdentity | None = None,
        handshake_timeout_s: float = 10.0,
        head_timeout_s: float = 10.0,
        body_timeout_s: float = 60.0,
    ) -> None:
        self._host = host
        self._port = port
        self._reuse_port = reuse_port
        self._tls = tls
        self._handshake_timeout_s = handshake_timeout_s
        self._head_timeout_s, self._body_timeout_s = head_timeout_s, body_timeout_s
        self._state = ServerState()
        self._listener: asyncio.Server | None = None
        self._stopped = False
        self._clock: asyncio.TimerHandle | None = None
        self._config = uvicorn.Config(
            app,
            http=BoundedProtocol,
            loop="none",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=access_log,
            proxy_headers=False,
            timeout_keep_alive=keep_alive_s,
        )
        self._config.load()

    @property
    def in_flight(self) -> int:
        """Requests being answered."""
        return len(self._state.tasks)

    async def start(self) -> str:
        """Listen; the returned URL has the real port. Raises InvalidConfig if it cannot."""
        listening = self._bind()
        self._tick()
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(
            self._connection,
            sock=listening,
            backlog=_BACKLOG,
            ssl=None if self._tls is None else RotatingContext(self._tls),
            ssl_handshake_timeout=None if self._tls is None else self._handshake_timeout_s,
        )
        host = f"[{self._host}]" if ":" in self._host else self._host
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://{host}:{listening.getsockname()[1]}"

    def refuse_new(self) -> None:
        """Close the port and idle connections; running requests go on. Idempotent."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
            for connection in list(self._state.connections):
                connection.shutdown()

    async def stop(self, drain_s: float) -> None:
        """Refuse new connections, let requests finish for `drain_s` seconds, cancel the rest.

        Returns when every request's task has ended (a task that resists its cancellation is given
        5 s), so that what they use can be closed. Idempotent.
        """
        if self._stopped:
            return
        self._stopped = True
        self.refuse_new()
        await self._wait_idle(drain_s)
        if self._state.tasks:
            log.warning("%d requests ran past the drain limit: cancelled", len(self._state.tasks))
            for task in list(self._state.tasks):
                task.cancel()
            await self._wait_idle(_CANCEL_S)
        for connection in list(self._state.connections):
            if connection.transport is not None:
                connection.transport.close()
        if self._clock is not None:
            self._clock.cancel()

    def _connection(self) -> BoundedProtocol:
        return BoundedProtocol(
            self._config,
            self._state,
            head_timeout_s=self._head_timeout_s,
            body_timeout_s=self._body_timeout_s,
        )

    async def _wait_idle(self, limit_s: float) -> None:
        if self._state.tasks:
            await asyncio.wait(set(self._state.tasks), timeout=limit_s)

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
            listening.setblocking(False)
            listening.listen(_BACKLOG)
        except OSError as error:
            listening.close()
            raise InvalidConfig(
                f"cannot listen on {self._host}:{self._port}: {error.strerror or error}",
                param="http_port",
            ) from None
        return listening

    def _tick(self) -> None:
        date = formatdate(usegmt=True).encode()
        self._state.default_headers = [(b"date", date)]
        self._clock = asyncio.get_running_loop().call_later(1.0, self._tick)
