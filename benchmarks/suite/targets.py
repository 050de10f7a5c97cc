"""The servers that the load is put on: Penstock, and bare ones that send the same."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
from tokenizers import Tokenizer

from benchmarks.http_yardstick import MODEL as BARE_MODEL
from benchmarks.processes import MODEL, ROOT, Process, fleet
from worker.models import resolve_model

WORD = " word"


class Target(msgspec.Struct, kw_only=True, frozen=True):
    """Where one kind of server listens, and the processes whose CPU counts.

    `asks` are the fields of a Job that its requests need.
    """

    name: str
    grpc: str | None = None
    http: str | None = None
    grpc_pids: dict[str, int] = {}
    http_pids: dict[str, int] = {}
    asks: dict[str, Any] = {}


@contextmanager
def penstock(
    flags: Sequence[str] = (), *, speedup: float = 1.0, vllm: Sequence[str] | None = None
) -> Iterator[tuple[Target, Process]]:
    """Run a front door and one worker; yields the front door's process, too."""
    paced = ["--sim-speedup", f"{speedup:.4f}"] if vllm is None else []
    with fleet(front=list(flags), worker=[*paced, *flags], vllm=vllm) as (front, worker):
        pids = {"front": front.pid, "worker": worker.pid}
        yield (
            Target(
                name="penstock",
                grpc=front.ready["grpc"],
                http=front.ready["http"],
                grpc_pids=pids,
                http_pids=pids,
                asks={"model": MODEL, "word": WORD, "word_id": word_id()},
            ),
            front,
        )


@contextmanager
def bare(interval_s: float) -> Iterator[Target]:
    """Run the bare grpc.aio server and the bare ASGI application on uvicorn."""
    with (
        bare_process("benchmarks.yardstick", str(interval_s)) as (grpc_pid, grpc),
        bare_process("benchmarks.http_yardstick", "raw", str(interval_s)) as (http_pid, http),
    ):
        yield Target(
            name="bare",
            grpc=grpc,
            http=http,
            grpc_pids={"front": grpc_pid},
            http_pids={"front": http_pid},
            asks={"model": BARE_MODEL, "word": WORD},
        )


def word_id() -> int:
    """Return the token whose text is WORD."""
    folder = resolve_model("smollm2", cache_dir=None, progress=lambda _: None).path
    (found,) = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(WORD).ids
    return int(found)


@contextmanager
def bare_process(module: str, *arguments: str) -> Iterator[tuple[int, str]]:
    """Run a bare server; yields its pid and the address that it prints."""
    command = [sys.executable, "-m", module, *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.pid, process.stdout.readline().strip()
        finally:
            process.kill()
