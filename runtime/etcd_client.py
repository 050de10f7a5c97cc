"""A client of etcd's v3 API, as much of it as discovery needs; knows nothing of records."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from runtime import etcd_pb2 as pb
from runtime.errors import (
    Cancelled,
    Code,
    DeadlineExceeded,
    InternalError,
    InvalidConfig,
    ModelNotFound,
    ServingError,
    Unauthenticated,
    WorkerLost,
)
from runtime.grpc_client import ClientStream, RpcChannel
from runtime.options_discovery import DiscoveryOptions
from runtime.reloading import Reloading

T = TypeVar("T")
_KV, _LEASE = "etcdserverpb.KV", "etcdserverpb.Lease"
_WATCH, _AUTH = "etcdserverpb.Watch", "etcdserverpb.Auth"
_RPCS: Mapping[str, Mapping[str, tuple[type, type]]] = {
    _KV: {"Range": (pb.RangeRequest, pb.RangeResponse), "Txn": (pb.TxnRequest, pb.TxnResponse)},
    _LEASE: {
        "LeaseGrant": (pb.LeaseGrantRequest, pb.LeaseGrantResponse),
        "LeaseRevoke": (pb.LeaseRevokeRequest, pb.LeaseRevokeResponse),
        "LeaseKeepAlive": (pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse),
    },
    _WATCH: {"Watch": (pb.WatchRequest, pb.WatchResponse)},
    _AUTH: {"Authenticate": (pb.AuthenticateRequest, pb.AuthenticateResponse)},
}
_PROGRESS = pb.WatchRequest(progress_request=pb.WatchProgressRequest())
# From etcd's api/v3rpc/rpctypes/error.go. A login that is out of date is told by these, apart from
# UNAUTHENTICATED "invalid auth token":
_OLD_LOGIN = ("user name is empty", "revision of auth store is old")
_NO_LOGINS = "authentication is not enabled"
_REFUSALS = ("authentication failed", "permission denied", "user name is empty")


class EtcdFailed(ServingError):
    """etcd did not do what it was asked for; another try may succeed."""

    code: ClassVar[Code] = Code.UNAVAILABLE
    http_status: ClassVar[int] = 503
    reason: ClassVar[str] = "discovery_failed"


class EtcdRefused(EtcdFailed):
    """etcd does not let this user in, or not do this."""


class EtcdClient:
    """Calls the first endpoint that answers, until it no longer does; logs in when it is due.

    A call is tried once, but for one with an outdated login: the caller knows what to repeat. Every
    call raises EtcdFailed. `beat_s` is how often a watched server must show that it is there;
    twice as long without a word and it is given up. The constructor raises InvalidConfig for files
    that are wrong.
    """

    def __init__(self, options: DiscoveryOptions, *, timeout_s: float, beat_s: float) -> None:
        self._timeout_s = timeout_s
        self._beat_s = beat_s
        self._user = options.etcd_user
        self._password = options.etcd_password or ""
        self._password_file: Reloading[str] | None = None
        file = options.etcd_password_file
        if file is not None:
            self._password_file = Reloading([file], lambda: _read_password(file))
        self._token: str | None = None
        tls = None if options.etcd_tls is None else options.etcd_tls.open()
        self._channels = [
            RpcChannel(address, rpc_types=_RPCS.__getitem__, tls=tls, call_metadata=self._metadata)
            for address in options.etcd_addresses
        ]
        self._at = 0

    async def range(self, key: bytes, range_end: bytes) -> pb.RangeResponse:
        """Return all from `key` up to before `range_end`, as of the latest revision."""
        request = pb.RangeRequest(key=key, range_end=range_end)
        answer: pb.RangeResponse = await self._call(_KV, "Range", request)
        return answer

    async def txn(self, request: pb.TxnRequest) -> pb.TxnResponse:
        """Do one transaction."""
        answer: pb.TxnResponse = await self._call(_KV, "Txn", request)
        return answer

    async def grant(self, ttl_s: int) -> int:
        """Return the id of a new lease."""
        answer = await self._call(_LEASE, "LeaseGrant", pb.LeaseGrantRequest(TTL=ttl_s))
        if answer.error:
            raise EtcdFailed(f"etcd grants no lease: {answer.error}")
        return int(answer.ID)

    async def revoke(self, lease: int) -> None:
        """End a lease, and the keys that go with it; one that has ended is fine."""
        try:
            await self._call(_LEASE, "LeaseRevoke", pb.LeaseRevokeRequest(ID=lease))
        except EtcdFailed as error:
            if not isinstance(error.__cause__, ModelNotFound):  # what NOT_FOUND is mapped to
                raise

    async def keep_alive(self, lease: int) -> bool:
        """Renew a lease; false when there is no such lease."""
        return await self._logged_in(lambda: self._keep_alive_once(lease))

    async def watch(
        self, key: bytes, range_end: bytes, start_revision: int
    ) -> AsyncGenerator[pb.WatchResponse, None]:
        """Yield what etcd tells of these keys from a revision on; use it under `aclosing`.

        Among it are answers that hold no event, every `beat_s` at least; one with a
        `compact_revision` is the last.
        """
        await self._log_in()
        create = pb.WatchCreateRequest(
            key=key, range_end=range_end, start_revision=start_revision, progress_notify=True
        )
        with self._explained(self._at):
            async with self._channels[self._at].stream(_WATCH, "Watch") as stream:
                stream.send(pb.WatchRequest(create_request=create))
                beat = _Beat(stream, self._beat_s)
                try:
                    while True:
                        response = await beat.next()
                        if response.canceled and not response.compact_revision:
                            raise InternalError(f"the watch was ended: {response.cancel_reason}")
                        yield response
                finally:
                    beat.stop()

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        for channel in self._channels:
            await channel.close()

    async def _call(self, service: str, method: str, request: Any) -> Any:
        return await self._logged_in(lambda: self._once(service, method, request))

    async def _logged_in(self, action: Callable[[], Awaitable[T]]) -> T:
        """Do what needs a login, once more when the present one turns out to be void."""
        await self._log_in()
        try:
            return await action()
        except EtcdFailed as error:
            if self._user is None or not _is_old_login(error.__cause__):
                raise
        await self._log_in()
        return await action()

    async def _once(self, service: str, method: str, request: Any) -> Any:
        with self._explained(self._at):
            channel = self._channels[self._at]
            return await channel.unary(service, method, request, timeout_s=self._timeout_s)

    async def _keep_alive_once(self, lease: int) -> bool:
        with self._explained(self._at):
            async with self._channels[self._at].stream(
                _LEASE, "LeaseKeepAlive", timeout_s=self._timeout_s
            ) as stream:
                stream.send(pb.LeaseKeepAliveRequest(ID=lease))
                stream.half_close()
                async for answer in stream:
                    return bool(answer.TTL > 0)
        raise EtcdFailed("etcd renews no lease")

    async def _log_in(self) -> None:
        if self._user is None or self._token is not None:
            return
        file = self._password_file
        password = self._password if file is None else file.current
        request = pb.AuthenticateRequest(name=self._user, password=password)
        try:
            answer = await self._once(_AUTH, "Authenticate", request)
        except EtcdFailed as error:
            if _NO_LOGINS not in error.message:
                raise
            self._token = ""
        else:
            self._token = answer.token

    def _metadata(self) -> Mapping[str, str]:
        # A member that has lost its cluster must say so, or a watch on it waits for ever.
        present = {"hasleader": "true"}
        return present | {"token": self._token} if self._token else present

    @contextmanager
    def _explained(self, at: int) -> Iterator[None]:
        """Turn what fails in the block into EtcdFailed; leave an endpoint that is gone."""
        try:
            yield
        except ServingError as error:
            # Tokens of a server that was started again are void.
            self._token = None
            if isinstance(error, WorkerLost | DeadlineExceeded | Cancelled) and at == self._at:
                self._at = (at + 1) % len(self._channels)
            refused = any(words in error.message for words in _REFUSALS)
            kind = EtcdRefused if refused and not isinstance(error, WorkerLost) else EtcdFailed
            raise kind(f"etcd {self._channels[at].address}: {error.message}") from error


class _Beat:
    """Reads a watch's responses, asking for one at intervals; a silent server is given up."""

    def __init__(self, stream: ClientStream, every_s: float) -> None:
        self._stream = stream
        self._every_s = every_s
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(every_s, self._ask)

    async def next(self) -> pb.WatchResponse:
        try:
            async with asyncio.timeout(2 * self._every_s):
                response: pb.WatchResponse = await anext(self._stream)
                return response
        except TimeoutError:
            raise DeadlineExceeded(f"no word for {2 * self._every_s:.1f} s") from None
        except StopAsyncIteration:
            raise WorkerLost("the watch was closed") from None

    def stop(self) -> None:
        self._timer.cancel()

    def _ask(self) -> None:
        self._stream.send(_PROGRESS)
        self._timer = self._loop.call_later(self._every_s, self._ask)


def _is_old_login(error: BaseException | None) -> bool:
    if isinstance(error, Unauthenticated):
        return True
    return isinstance(error, ServingError) and any(words in error.message for words in _OLD_LOGIN)


def _read_password(file: Path) -> str:
    try:
        password = file.read_text(encoding="utf-8").strip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        what = getattr(error, "strerror", None) or "is not text"
        raise InvalidConfig(
            f"--etcd-password-file {file}: {what}", param="etcd_password_file"
        ) from None
    if not password:
        raise InvalidConfig(
            f"--etcd-password-file {file}: holds no password", param="etcd_password_file"
        )
    return password
