"""Following workers that end their streams or say nothing of use."""

import asyncio
import time
from typing import Any

from router.policies import RoundRobin
from router.settings import RouterSettings
from runtime.rpc import Call, Service
from server.fleet import plain_channel
from server.follower import WorkerFollower
from tests.integration.stack import grpc_server
from wire.cards import ModelCard, WorkerInstance
from wire.penstock_pb2 import LoadReport
from wire.pool import FLEET

INSTANCE = WorkerInstance(
    instance_id="w",
    address="",
    card=ModelCard(name="m", path="", context_length=8, vocab_size=8, block_size=8),
    engine="sim",
)


class OneReport:
    """A WatchLoad call (a CallHandler) that ends after its first report."""

    calls = 0

    def __init__(self, call: Call, enough: asyncio.Event) -> None:
        self._call = call
        self._enough = enough

    def on_message(self, message: Any) -> None:
        OneReport.calls += 1
        self._call.send(LoadReport(steps=OneReport.calls))
        self._call.finish()
        if OneReport.calls == 6:
            self._enough.set()

    def on_half_close(self) -> None: ...

    def on_writable(self) -> None: ...

    def on_cancel(self) -> None: ...


async def test_a_worker_that_ends_each_stream_after_a_message_is_asked_again_in_peace() -> None:
    enough = asyncio.Event()
    service = Service(name=FLEET, unary={}, streams={"WatchLoad": lambda c: OneReport(c, enough)})
    server = grpc_server(service)
    channel = plain_channel(await server.start())
    follower = WorkerFollower(
        INSTANCE,
        RoundRobin(RouterSettings(block_size=8)),
        kv_events=False,
        retry_max_s=1.0,
        now=time.monotonic,
    )
    try:
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            began_s = time.monotonic()
            following = tasks.create_task(follower.run(channel))
            await enough.wait()
            took_s = time.monotonic() - began_s
            following.cancel()
    finally:
        await channel.close()
        await server.stop(0.0)
    assert took_s >= 5 * 0.05
    assert follower.steps is not None
