"""An HTTP/2 client of the h2 library on a socket, for what gRPC clients never send."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import h2.config
import h2.connection
import h2.events

from transport.grpc_codec import pack_message

POST = (
    (":method", "POST"),
    (":scheme", "http"),
    (":authority", "x"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
)


class H2Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        config = h2.config.H2Configuration(header_encoding="utf-8")
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self.events: list[h2.events.Event] = []

    async def flush(self) -> None:
        """Write what the library has to say."""
        self._writer.write(self.h2.data_to_send())
        await self._writer.drain()

    async def ask(
        self,
        path: str,
        message: bytes | None = b"",
        *,
        headers: Sequence[tuple[str, str]] = (),
        base: Sequence[tuple[str, str]] = POST,
    ) -> tuple[dict[str, str], bytes]:
        """Send one request; returns the headers and trailers, and the body of its answer."""
        stream_id: int = self.h2.get_next_available_stream_id()
        given = _ordered(base, path, headers)
        self.h2.send_headers(stream_id, given, end_stream=message is None)
        if message is not None:
            packed, size = pack_message(message), self.h2.max_outbound_frame_size
            for at in range(0, len(packed), size):
                self.h2.send_data(stream_id, packed[at : at + size])
            self.h2.end_stream(stream_id)
        await self.flush()
        return await self.answer(stream_id)

    async def answer(self, stream_id: int) -> tuple[dict[str, str], bytes]:
        """Read the answer of a stream to its end."""
        found: dict[Any, Any] = {}
        body = b""
        while True:
            for event in await self.receive():
                if getattr(event, "stream_id", None) != stream_id:
                    continue
                match event:
                    case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                        found |= dict(event.headers or ())
                    case h2.events.DataReceived():
                        body += event.data or b""
                    case h2.events.StreamReset():
                        found["reset"] = str(int(event.error_code or 0))
                        return found, body
                    case h2.events.StreamEnded():
                        return found, body

    async def receive(self) -> list[h2.events.Event]:
        """What has come; raises EOFError at the end of the connection."""
        data = await self._reader.read(65_536)
        if not data:
            raise EOFError
        events = self.h2.receive_data(data)
        self.events += events
        await self.flush()
        return events


def _ordered(
    base: Sequence[tuple[str, str]], path: str, headers: Sequence[tuple[str, str]]
) -> list[tuple[str, str]]:
    pseudo = [it for it in base if it[0].startswith(":")]
    return [*pseudo, (":path", path), *[it for it in base if it not in pseudo], *headers]


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[H2Client]:
    """A client of host:port, its preface sent."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        client = H2Client(reader, writer)
        await client.flush()
        yield client
    finally:
        writer.close()
