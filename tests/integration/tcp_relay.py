"""A TCP relay between a client and a server: counts what passes, and can stop passing it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Relay:
    """`sent` and `received` are bytes, as the client sees them; `frozen` swallows both."""

    def __init__(self, target: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self.address = ""
        self.connections = self.sent = self.received = 0
        self.frozen = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        server_reader, server_writer = await asyncio.open_connection(self._host, self._port)
        try:
            with suppress(OSError, asyncio.CancelledError):
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._pass(reader, server_writer, "sent"))
                    tasks.create_task(self._pass(server_reader, writer, "received"))
        finally:
            writer.close()
            server_writer.close()
            self._tasks.discard(task)

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counter: str
    ) -> None:
        while data := await reader.read(65536):
            setattr(self, counter, getattr(self, counter) + len(data))
            if not self.frozen:
                writer.write(data)
                await writer.drain()
        writer.close()

    async def close(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def relaying(target: str) -> AsyncIterator[Relay]:
    relay = Relay(target)
    server = await asyncio.start_server(relay.serve, "127.0.0.1", 0)
    relay.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield relay
    finally:
        server.close()
        await relay.close()
