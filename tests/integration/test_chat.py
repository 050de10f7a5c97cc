"""`penstock chat` as people and scripts use it: a terminal, or pipes, and the simulated engine."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cli.main import main
from runtime.rpc import CallInfo, Service
from tests.integration.stack import Stack, grpc_server, running_stack
from tests.integration.terminal import (
    CTRL_C,
    CTRL_D,
    UP,
    Terminal,
    on_pipes,
    on_terminal,
    run_on_pipes,
)
from tests.waiting import eventually
from wire import inference_pb2 as pb
from wire.pool import KSERVE
from worker.sim_engine import SimConfig
from worker.sim_timing import SimTiming

NOBODY = "127.0.0.1:9"
PROMPT = r"\n> $"


@pytest.fixture
async def stack(model_folder: Path) -> AsyncIterator[Stack]:
    async with running_stack(model_folder, sim=SimConfig(timing=SimTiming(speedup=0))) as stack:
        yield stack


@pytest.fixture
async def slow_stack(model_folder: Path) -> AsyncIterator[Stack]:
    """Eight tokens a second: an answer of thousands lasts as long as any test."""
    async with running_stack(model_folder, sim=SimConfig(timing=SimTiming(step_ms=125))) as stack:
        yield stack


class Chat:
    """A chat in a terminal, for tests whose event loop serves it: no call blocks the loop."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal

    async def wait_for(self, pattern: str) -> str:
        return (await asyncio.to_thread(self.terminal.wait_for, pattern))[0]

    async def says(self, typed: str, pattern: str) -> str:
        """Type a line and wait until what is shown for it matches."""
        self.terminal.type(f"{typed}\r")
        return await self.wait_for(pattern)

    async def asks(self, question: str) -> str:
        """Ask, and wait for the line of figures behind the answer."""
        return await self.says(question, r"\d+ tokens?, first after .*\n")

    async def prompt_tokens(self) -> int:
        said = await self.says("/stats", r"last prompt +\d+ tokens")
        await self.wait_for(r"> $")
        return int(said.split()[-2])

    async def leaves(self, typed: str = CTRL_D) -> int:
        self.terminal.type(typed)
        return await asyncio.to_thread(self.terminal.wait)


@contextmanager
def chatting(state: Path, target: str, *args: str) -> Iterator[Chat]:
    flags = (f"--target={target}", "--temperature=0", *args)
    with on_terminal("chat", *flags, XDG_STATE_HOME=str(state)) as terminal:
        yield Chat(terminal)


def history_of(state: Path) -> Path:
    return state / "penstock" / "chat_history"


async def test_an_answer_is_shown_while_it_is_made_and_its_figures_behind_it(slow_stack, tmp_path):
    with chatting(tmp_path, slow_stack.grpc, "--max-tokens=12") as chat:
        await chat.wait_for(r"sim at 127.0.0.1:\d+, context of \d+ tokens; /help")
        await chat.says("hello", r"> hello\n\s*\w+")
        assert slow_stack.engine_load == 1
        chat.terminal.type("typed ahead")
        await chat.wait_for(r"12 tokens, first after \d+\.\d\d s, then \d+\.\d per second, cut at")
        await chat.wait_for("> typed ahead")
        assert chat.terminal.shown.count("typed ahead") == 1


async def test_ctrl_c_ends_an_answer_frees_the_engine_and_keeps_what_was_said(slow_stack, tmp_path):
    with chatting(tmp_path, slow_stack.grpc, "--max-tokens=5000") as chat:
        await chat.says("hello", r"> hello\n\s*\w+")
        chat.terminal.type(CTRL_C)
        await chat.wait_for(r"interrupted\n\d+ tokens?, first after")
        await eventually(lambda: slow_stack.engine_load == 0)
        await chat.says("/stats", "conversation  2 messages")
        await chat.says("and then?", r"> and then\?\n\s*\w+")
        assert slow_stack.engine_load == 1
        chat.terminal.type(CTRL_C)
        await chat.wait_for("interrupted")
        assert await chat.leaves("/quit\r") == 0


async def test_ctrl_c_before_the_first_token_takes_the_question_back(model_folder, tmp_path):
    async with running_stack(model_folder, sim=SimConfig(hang_after_steps=1)) as stack:
        with chatting(tmp_path, stack.grpc) as chat:
            await chat.wait_for(PROMPT)
            chat.terminal.type("hello\r")
            await eventually(lambda: stack.engine_load == 1)
            chat.terminal.type(CTRL_C)
            await chat.wait_for("interrupted")
            await chat.says("/stats", "conversation  0 messages")
            assert await chat.leaves() == 0


async def test_the_conversation_is_sent_in_full_until_reset_forgets_it(stack, tmp_path):
    with chatting(tmp_path, stack.grpc, "--max-tokens=8") as chat:
        await chat.asks("one two three")
        first = await chat.prompt_tokens()
        await chat.asks("one two three")
        assert await chat.prompt_tokens() > first + 8
        await chat.says("/reset", "a new conversation")
        await chat.asks("one two three")
        assert await chat.prompt_tokens() == first
        await chat.says("/system answer briefly, in French", "system message: answer briefly")
        await chat.says("/reset", "a new conversation")
        await chat.asks("one two three")
        assert await chat.prompt_tokens() != first


async def test_lines_come_back_in_this_chat_and_the_next_from_a_file_of_the_users_own(
    stack, tmp_path
):
    with chatting(tmp_path, stack.grpc, "--max-tokens=2") as chat:
        await chat.asks("a rare question")
        await chat.says(UP, "> a rare question")
        await chat.wait_for(r"2 tokens")
        assert await chat.leaves() == 0
    assert history_of(tmp_path).stat().st_mode & 0o777 == 0o600
    assert history_of(tmp_path).parent.stat().st_mode & 0o777 == 0o700
    with chatting(tmp_path, stack.grpc, "--max-tokens=2") as chat:
        await chat.wait_for(PROMPT)
        await chat.asks(UP)
        assert "> a rare question" in chat.terminal.shown


async def test_a_paste_of_several_lines_is_one_question(stack, tmp_path):
    with chatting(tmp_path, stack.grpc, "--max-tokens=2") as chat:
        await chat.wait_for(PROMPT)
        chat.terminal.type("\x1b[200~first line\nsecond line\x1b[201~")
        await chat.wait_for("second line")
        await chat.asks("")
        await chat.says("/stats", "conversation  2 messages")
    assert "+first line\n+second line\n" in history_of(tmp_path).read_text()


async def test_ctrl_c_at_the_prompt_drops_the_line_and_says_how_to_leave(stack, tmp_path):
    with chatting(tmp_path, stack.grpc, "--max-tokens=2") as chat:
        await chat.wait_for(PROMPT)
        chat.terminal.type(CTRL_C)
        await chat.wait_for("Ctrl-D or /quit leaves")
        await chat.wait_for(PROMPT)
        chat.terminal.type("never sent")
        await chat.wait_for("never sent")
        chat.terminal.type(CTRL_C)
        await chat.wait_for(PROMPT)
        assert await chat.leaves() == 0
        assert "first after" not in chat.terminal.shown


async def test_commands_explain_themselves_and_mistakes_are_told(stack, tmp_path):
    with chatting(tmp_path, stack.grpc, "--system=be kind") as chat:
        await chat.wait_for(PROMPT)
        for command in ("help", "reset", "system", "model", "models", "stats", "quit"):
            assert f"/{command}" in await chat.says("/help", r"/help(.|\n)*and what was said stays")
        await chat.says("/dance", "there is no /dance; /help lists the commands")
        await chat.says("/models", r"sim  context of \d+ tokens")
        await chat.says("/model nope", "the server has no model 'nope'; it has sim")
        await chat.says("/model sim", "model: sim")
        await chat.says("/system", "system message: be kind")
        await chat.says("/system off", "no system message")


async def test_a_server_that_is_not_there_or_goes_away_is_a_sentence_and_the_chat_lives_on(
    model_folder, tmp_path
):
    with chatting(tmp_path, NOBODY) as chat:
        await chat.wait_for(f"cannot connect to {NOBODY}: ")
        await chat.says("hello", f"cannot connect to {NOBODY}: ")
        assert await chat.leaves() == 0
    slow = SimConfig(timing=SimTiming(step_ms=125))
    async with running_stack(model_folder, sim=slow) as stack:
        with chatting(tmp_path, stack.grpc) as chat:
            await chat.says("hello", r"> hello\n\s*\w+")
            await stack.workers[0].stop()
            await chat.wait_for(r"broke off: .*\n\d+ tokens?, first after")
            await chat.says("hello", "no ready worker|broke off")
            assert await chat.leaves() == 0
            assert "Traceback" not in chat.terminal.shown


async def test_an_unknown_model_is_told_at_the_start_and_another_can_be_taken(stack, tmp_path):
    with chatting(tmp_path, stack.grpc, "--model=nope", "--max-tokens=2") as chat:
        await chat.wait_for("the server has no model 'nope'; it has sim")
        await chat.says("hello", "the server has no model 'nope'; it has sim")
        await chat.says("/model sim", "model: sim")
        await chat.asks("hello")


async def piped(text: str, *args: str) -> tuple[int, str, str]:
    return await run_on_pipes("chat", "--temperature=0", *args, text=text)


async def test_on_pipes_every_line_is_a_conversation_and_only_answers_are_printed(stack):
    flags = (f"--target={stack.grpc}", "--max-tokens=6")
    code, twice, said = await piped("one two\n\n  \none two\n", *flags)
    alone = twice[: len(twice) // 2]
    assert (code, said) == (0, "")
    assert alone.strip()
    assert alone.endswith("\n")
    assert twice == alone * 2
    code, kept, said = await piped("one two\none two\n", *flags, "--keep")
    assert (code, said) == (0, "")
    assert kept.startswith(alone)
    assert kept != twice


async def test_on_pipes_a_question_that_fails_is_told_on_stderr_and_the_next_one_is_asked(stack):
    flags = (f"--target={stack.grpc}", "--max-tokens=6")
    _, alone, _ = await piped("one two\n", *flags)
    code, out, said = await piped(f"{'word ' * 9000}\none two\n", *flags)
    assert (code, out) == (1, alone)
    (complaint,) = said.splitlines()
    assert complaint.startswith("penstock: error: ")
    assert "context" in complaint


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        ((f"--target={NOBODY}",), f"cannot connect to {NOBODY}: "),
        (("--model=nope",), "the server has no model 'nope'; it has sim"),
        (("--request-timeout-s=0.000001",), "the time for the answer was over before its end"),
    ],
)
async def test_on_pipes_what_cannot_be_asked_exits_with_1_and_one_line(stack, args, complaint):
    code, out, said = await piped("hello\n", f"--target={stack.grpc}", *args)
    assert (code, out) == (1, "")
    assert said.startswith(f"penstock: error: {complaint}")
    assert len(said.splitlines()) == 1


async def test_a_reader_that_goes_away_ends_the_chat_quietly_and_frees_the_engine(slow_stack):
    process = await on_pipes("chat", f"--target={slow_stack.grpc}", "--max-tokens=5000")
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdin.write(b"hello\nagain\n")
    process.stdin.close()
    async with asyncio.timeout(30):
        assert await process.stdout.read(1)
        assert slow_stack.engine_load == 1
        process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
        assert await process.stderr.read() == b""
        assert await process.wait() == 1
    await eventually(lambda: slow_stack.engine_load == 0)


async def test_the_api_key_goes_with_the_calls(monkeypatch):
    seen: list[str | None] = []

    async def index(message: Any, info: CallInfo) -> Any:
        seen.append(info.metadata.get("authorization"))
        return pb.RepositoryIndexResponse()

    server = grpc_server(Service(name=KSERVE, unary={"RepositoryIndex": index}, streams={}))
    target = await server.start()
    monkeypatch.setenv("PENSTOCK_API_KEY", "sesame")
    try:
        code, _, said = await piped("hello\n", f"--target={target}")
    finally:
        await server.stop(0.0)
    assert (code, said) == (1, "penstock: error: the server has no model yet\n")
    assert seen == ["Bearer sesame"]


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("--target=host",), "--target"),
        (("--target=http://host:1",), "--target"),
        (("--max-tokens=0",), "--max-tokens"),
        (("--temperature=9",), "--temperature"),
        (("--api-key=a b",), "api_key"),
        (("--api-key=a", "--api-key-file=b"), "--api-key-file"),
        (("--api-key-file=/nowhere",), "api_key_file"),
        (("--request-timeout-s=-1",), "--request-timeout-s"),
        (("--", "more"), "behind --"),
    ],
)
def test_wrong_usage_exits_with_2_and_names_what_is_wrong(args, named, capsys):
    assert main(["chat", *args]) == 2
    out, said = capsys.readouterr()
    assert out == ""
    assert named in said
    assert len(said.splitlines()) == 1
