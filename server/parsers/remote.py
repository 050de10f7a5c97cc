"""vLLM's own parsers, by the name `vllm:NAME`: one process for all, started on first use."""

import asyncio
import itertools
import logging
import os
import sys
from collections import deque
from collections.abc import Sequence

from runtime.errors import EngineFailed
from server.parsers.parser import Deliver, Fail
from wire.generate import ChoiceDelta, GenerateRequest
from wire.parser_messages import (
    LENGTH_BYTES,
    Asked,
    Close,
    Feed,
    Open,
    Parsed,
    decode_parsed,
    framed,
)

PREFIX = "vllm:"
ANSWER_LIMIT_S = 120.0
"""For one piece, the start of the process included: importing vLLM takes up to a minute."""

_LOG = logging.getLogger(__name__)


class ParserHost:
    """The process, and the choices whose answers it owes. Used by one event loop."""

    def __init__(self, command: Sequence[str] = (), *, limit_s: float = ANSWER_LIMIT_S) -> None:
        own = (sys.executable, "-m", "worker.vllm_parsers", str(os.getpid()))
        self._command = command or own
        self.limit_s = limit_s
        self._numbers = itertools.count()
        self._open: dict[int, RemoteParser] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._running: asyncio.Task[None] | None = None
        self._unsent: list[bytes] = []

    def open(
        self,
        request: GenerateRequest,
        model: str,
        parsers: tuple[str, str],
        prompt_ids: Sequence[int],
    ) -> "RemoteParser":
        """Begin one choice with these parsers, of calls and of thoughts; "" is none."""
        number = next(self._numbers)
        calls, thoughts = (name.removeprefix(PREFIX) for name in parsers)
        parser = self._open[number] = RemoteParser(
            self, number, " and ".join(filter(None, parsers))
        )
        self.send(
            Open(
                number=number,
                model=model,
                tool_call_parser=calls,
                reasoning_parser=thoughts,
                tools=request.tools if calls else None,
                variables=request.chat_template_kwargs,
                prompt_ids=list(prompt_ids),
            )
        )
        return parser

    def send(self, message: Asked) -> None:
        """Send now, or once the process is there."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(framed(message))
            return
        self._unsent.append(framed(message))
        if self._running is None:
            self._running = asyncio.get_running_loop().create_task(self._run(), name="parsers")

    def forget(self, number: int) -> None:
        """Expect nothing of this choice any more."""
        if self._open.pop(number, None) is not None:
            self.send(Close(number=number))

    async def close(self) -> None:
        """End the process."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])

    async def _run(self) -> None:
        reason = "it ended"
        process = None
        try:
            _LOG.info("starting the process of vLLM's parsers; this takes a while")
            process = await asyncio.create_subprocess_exec(
                *self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
            )
            assert process.stdin is not None
            self._process = process
            unsent, self._unsent = self._unsent, []
            process.stdin.writelines(unsent)
            await self._read(process)
        except OSError as error:
            reason = str(error)
        finally:
            self._process = self._running = None
            self._unsent = []
            if process is not None and process.returncode is None:
                process.kill()
                await process.wait()
            waiting, self._open = self._open, {}
            for parser in waiting.values():
                parser.lost(reason)

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while True:
            try:
                head = await process.stdout.readexactly(LENGTH_BYTES)
                body = await process.stdout.readexactly(int.from_bytes(head, "little"))
            except asyncio.IncompleteReadError:
                return
            answer = decode_parsed(body)
            parser = self._open.get(answer.number)
            if parser is not None:
                parser.answered(answer)


class RemoteParser:
    """One choice (a ChoiceParser): its pieces are on their way until they are answered."""

    def __init__(self, host: ParserHost, number: int, name: str) -> None:
        self.reasoning_tokens = 0
        self._host = host
        self._number = number
        self._name = name
        self._owed: deque[tuple[ChoiceDelta, Deliver]] = deque()
        self._fail: Fail | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._called = False

    def feed(self, fresh: ChoiceDelta, deliver: Deliver, fail: Fail) -> None:
        """Send the next delta."""
        self._fail = fail
        self._owed.append((fresh, deliver))
        if self._timer is None:
            self._watch()
        finished = fresh.finish_reason is not None
        self._host.send(
            Feed(
                number=self._number,
                text=fresh.text,
                token_ids=list(fresh.token_ids),
                finished=finished,
            )
        )

    def answered(self, answer: Parsed) -> None:
        """Take the answer to the piece that is owed the longest."""
        if answer.error is not None:
            self.lost(answer.error)
            return
        fresh, deliver = self._owed.popleft()
        fresh.reasoning, fresh.text = answer.reasoning, answer.content
        fresh.tool_calls = answer.tool_calls
        self._called = self._called or bool(answer.tool_calls)
        if answer.reasons:
            self.reasoning_tokens += len(fresh.token_ids)
        last = fresh.finish_reason is not None
        if self._called and fresh.finish_reason == "stop":
            fresh.finish_reason = "tool_calls"
        if last:
            self.close()
        elif self._timer is not None:
            self._timer.cancel()
            self._timer = None
            if self._owed:
                self._watch()
        deliver(fresh)

    def lost(self, reason: str) -> None:
        """Fail: nothing more will be answered."""
        fail = self._fail
        self.close()
        if fail is not None:
            fail(EngineFailed(f"the parser {self._name} failed: {reason}"))

    def close(self) -> None:
        """Expect nothing more."""
        self._fail = None
        self._owed.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._host.forget(self._number)

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._host.limit_s, self.lost, "it does not answer")
