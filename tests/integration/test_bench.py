"""`penstock bench` as people and scripts use it, on a front door with the simulated engine."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cli.main import main
from tests.integration.stack import Stack, running_stack
from tests.integration.terminal import CTRL_C, on_pipes, on_terminal, run_on_pipes
from tests.waiting import eventually
from worker.sim_engine import SimConfig
from worker.sim_timing import SimTiming

FAST = SimTiming(speedup=0)
SLOW = SimTiming(step_ms=125)


@pytest.fixture
async def stack(model_folder: Path) -> AsyncIterator[Stack]:
    async with running_stack(model_folder, sim=SimConfig(timing=FAST)) as stack:
        yield stack


async def test_the_table_tells_counts_throughput_and_percentiles(stack):
    flags = (f"--target={stack.grpc}", "--requests=12", "--concurrency=3", "--max-tokens=5")
    code, out, said = await run_on_pipes("bench", *flags, "--prompt-tokens=20")
    assert (code, said) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines() if line]
    assert lines[0].startswith(f"sim at {stack.grpc}: 3 at a time, prompts of 20 and answers of 5")
    assert "requests 12 ok, 0 failed in " in out.replace("    ", " ")
    (throughput,) = (line for line in lines if line.startswith("throughput "))
    assert throughput.count("/s") == 3
    assert "milliseconds mean p50 p90 p99 max" in lines
    for row in ("first token", "between tokens", "whole request"):
        (found,) = (line for line in lines if line.startswith(row))
        assert len([float(number) for number in found.removeprefix(row).split()]) == 5
    assert max(map(len, out.splitlines())) <= 80


async def test_json_tells_the_same_with_exact_lengths(stack):
    flags = (f"--target={stack.grpc}", "--requests=12", "--rate=500", "--max-tokens=5")
    code, out, said = await run_on_pipes("bench", *flags, "--prompt-tokens=20", "--json")
    assert (code, said) == (0, "")
    found = json.loads(out)
    assert found["requests"] == {"ok": 12, "failed": 0, "unfinished": 0}
    assert (found["prompt_tokens"], found["output_tokens"]) == (12 * 20, 12 * 5)
    assert (found["model"], found["target"], found["failures"]) == ("sim", stack.grpc, {})
    for name in ("time_to_first_token_s", "inter_token_latency_s", "request_duration_s"):
        times = found[name]
        assert 0 < times["p50"] <= times["p90"] <= times["p99"] <= times["max"]


async def test_failures_are_told_by_reason_and_exit_with_1(model_folder):
    dies = SimConfig(timing=FAST, die_after_steps=40)
    async with running_stack(model_folder, sim=dies) as stack:
        flags = (f"--target={stack.grpc}", "--requests=20", "--max-tokens=10", "--concurrency=1")
        code, out, said = await run_on_pipes("bench", *flags, "--json")
        assert (code, said) == (1, "")
        found = json.loads(out)
        assert found["requests"]["ok"] + found["requests"]["failed"] == 20
        assert found["requests"]["ok"] <= 3
        assert sum(it["count"] for it in found["failures"].values()) == found["requests"]["failed"]
        assert all(it["example"] for it in found["failures"].values())


async def test_ctrl_c_prints_what_was_measured_so_far_and_frees_the_engine(model_folder):
    async with running_stack(model_folder, sim=SimConfig(timing=SLOW)) as stack:
        flags = (f"--target={stack.grpc}", "--warmup-requests=0", "--requests=50")
        process = await on_pipes("bench", *flags, "--json")
        await eventually(lambda: stack.engine_load == 8, limit_s=30)
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(30):
            out, said = await process.communicate()
        assert (process.returncode, said) == (130, b"")
        assert json.loads(out)["requests"] == {"ok": 0, "failed": 0, "unfinished": 8}
        await eventually(lambda: stack.engine_load == 0)


async def test_a_bar_shows_on_a_terminal_how_far_it_is(model_folder):
    async with running_stack(model_folder, sim=SimConfig(timing=SLOW)) as stack:
        flags = (f"--target={stack.grpc}", "--warmup-requests=0", "--max-tokens=3")
        with on_terminal("bench", *flags, "--requests=1000") as terminal:
            await asyncio.to_thread(terminal.wait_for, r"[1-9]\d* done, \d+ in flight .* +\d+%")
            terminal.type(CTRL_C)
            await asyncio.to_thread(terminal.wait_for, r"[1-9]\d* ok, 0 failed, 8 not finished")
            assert await asyncio.to_thread(terminal.wait) == 130


async def test_what_cannot_be_measured_is_one_line(stack):
    for args, code, complaint in (
        (["--target=127.0.0.1:9"], 1, "cannot connect to 127.0.0.1:9: "),
        (["--model=nope"], 2, "the server has no model 'nope'; it has sim"),
        (["--prompt-tokens=9000"], 2, "prompt_tokens and max_tokens are 9064 together"),
    ):
        ended, out, said = await run_on_pipes("bench", f"--target={stack.grpc}", *args)
        assert (ended, out) == (code, "")
        assert said.startswith(f"penstock: error: {complaint}")
        assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("--requests=0",), "--requests"),
        (("--rate=0",), "--rate"),
        (("--duration-s=-1",), "--duration-s"),
        (("--warmup-requests=-1",), "--warmup-requests"),
        (("--rate=1", "--concurrency=1"), "--rate"),
        (("--target=host",), "--target"),
        (("--", "more"), "behind --"),
    ],
)
def test_wrong_usage_exits_with_2_and_names_what_is_wrong(args, named, capsys):
    assert main(["bench", *args]) == 2
    assert named in capsys.readouterr().err
