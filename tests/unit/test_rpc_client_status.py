"""What a client's stream makes of a call's end when grpc.aio gives two accounts of it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import grpc
import pytest

from runtime.errors import InternalError, ServingError, Unauthenticated
from runtime.grpc_client import ClientStream

LOST = (grpc.StatusCode.INTERNAL, "Internal error from Core")
REFUSED = (grpc.StatusCode.UNAUTHENTICATED, "the API key is not known here")


class EndedCall:
    """A call that tells its end in each of `accounts` in turn, and the last to its reader."""

    def __init__(self, *accounts: tuple[grpc.StatusCode, str]) -> None:
        self._accounts = accounts
        self._now = accounts[0]

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        for account in self._accounts:
            self._now = account
            callback(self)

    def time_remaining(self) -> float | None:
        return None

    async def code(self) -> grpc.StatusCode:
        return self._now[0]

    async def details(self) -> str:
        return self._now[1]

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        return grpc.aio.Metadata()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        code, details = self._now
        yield b"one"
        raise grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


async def read(*accounts: tuple[grpc.StatusCode, str]) -> ServingError | None:
    call: Any = EndedCall(*accounts)
    stream = ClientStream(call, bytes)
    try:
        assert [message async for message in stream] == [b"one"]
    except ServingError as error:
        return error
    return None


@pytest.mark.parametrize("accounts", [(REFUSED,), (REFUSED, LOST), (LOST, REFUSED)])
async def test_the_peers_status_counts_and_not_that_of_a_write_that_failed_with_it(
    accounts: tuple[tuple[grpc.StatusCode, str], ...],
) -> None:
    error = await read(*accounts)
    assert isinstance(error, Unauthenticated)
    assert error.message == REFUSED[1]


async def test_a_good_end_stays_one_when_a_write_comes_too_late() -> None:
    assert await read((grpc.StatusCode.OK, ""), LOST) is None


async def test_a_write_that_failed_without_a_status_is_an_error() -> None:
    assert isinstance(await read(LOST), InternalError)


class SwallowingCall(EndedCall):
    """A call that fails while its reader is being cancelled, and tells the failure alone."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        ended = super().__aiter__()
        await anext(ended)
        yield await anext(ended)


async def test_a_reader_that_is_cancelled_as_the_call_fails_is_cancelled() -> None:
    lost: Any = SwallowingCall((grpc.StatusCode.UNAVAILABLE, "connection refused"))
    stream = ClientStream(lost, bytes)
    begun = asyncio.Event()

    async def wait_for_messages() -> None:
        begun.set()
        with suppress(ServingError):
            async for _ in stream:
                pass

    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(wait_for_messages())
        await begun.wait()
        await asyncio.sleep(0)  # its first read waits
        waiting.cancel()
    assert waiting.cancelled()
