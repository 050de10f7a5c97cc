"""`penstock bench`: a quick load on a server, and how fast it answers."""

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cli.client_options import ClientOptions
from runtime.config import option, parse_config
from runtime.errors import InvalidConfig, ModelNotFound, ServingError
from runtime.options import DAY_S

if TYPE_CHECKING:
    from cli.bench_load import Load
    from gateway_http.kserve_backend import KServeBackend

_DEFAULT_REQUESTS = 100
_DEFAULT_CONCURRENCY = 8
_INTERRUPTED = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchConfig(ClientOptions):
    """One measurement."""

    requests: int | None = option(
        None, help=f"requests to send (default {_DEFAULT_REQUESTS}, or no limit with --duration-s)",
        group="Request", least=1,
    )  # fmt: skip
    duration_s: float | None = option(
        None, help="time to go on sending requests", group="Request", unit="s", above=0, most=DAY_S
    )
    concurrency: int | None = option(
        None, help=f"requests at a time, each behind the last (default {_DEFAULT_CONCURRENCY})",
        group="Request", least=1,
    )  # fmt: skip
    rate: float | None = option(
        None,
        help="instead of --concurrency: requests per second at random times (a Poisson process), "
        "however long the answers take",
        group="Request",
        above=0,
    )
    prompt_tokens: int = option(
        128, help="length of a prompt, of random tokens", group="Request", unit="tokens", least=1
    )
    max_tokens: int = option(
        64, help="length of an answer", group="Request", unit="tokens", least=1
    )
    warmup_requests: int = option(
        1, help="requests sent before, one by one, and not counted", group="Request", least=0
    )
    seed: int | None = option(
        None, help="makes the same prompts again (default: new ones)", group="Request", least=0
    )
    json: bool = option(False, help="print JSON, for scripts", group="Output")
    request_timeout_s: float = option(
        300.0, help="limit of a whole request; 0 is none", group="Request", unit="s", least=0,
        most=DAY_S,
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Raise InvalidConfig naming the field that is wrong."""
        ClientOptions.__post_init__(self)
        if self.rate is not None and self.concurrency is not None:
            raise InvalidConfig("rate and concurrency: give one", param="rate")


def bench(argv: Sequence[str]) -> int:
    """Measure and print; returns 0, or 1 if any request failed."""
    config, _ = parse_config(
        BenchConfig,
        argv,
        prog="penstock bench",
        description="A quick load on a KServe server of language models over gRPC. Exits with 1 "
        "if a request failed; Ctrl-C ends it and prints what was measured until then.",
        examples=(
            "penstock bench --requests 200 --concurrency 16",
            "penstock bench --target 10.0.0.7:8001 --rate 4 --duration-s 60 --json",
        ),
    )
    import uvloop

    from cli.client import connected, sentence

    with connected(config, loop_factory=uvloop.new_event_loop) as (runner, server):
        try:
            load = runner.run(_prepare(config, server))
        except (InvalidConfig, ModelNotFound):
            raise
        except ServingError as error:
            print(f"penstock: error: {sentence(error, config.target)}", file=sys.stderr)
            return 1
        return _measure(config, runner, load)


async def _prepare(config: BenchConfig, server: "KServeBackend") -> "Load":
    from cli.bench_load import Load, Plan
    from cli.client import find_model

    model = await find_model(server, config.model)
    room = model.context_length
    if room and config.prompt_tokens + config.max_tokens > room:
        raise InvalidConfig(
            f"prompt_tokens and max_tokens are {config.prompt_tokens + config.max_tokens} "
            f"together; the context of {model.name} is {room}",
            param="prompt_tokens",
        )
    concurrency = None if config.rate else config.concurrency or _DEFAULT_CONCURRENCY
    endless = config.duration_s is not None
    plan = Plan(
        requests=config.requests or (None if endless else _DEFAULT_REQUESTS),
        duration_s=config.duration_s,
        concurrency=concurrency,
        rate=config.rate,
        prompt_tokens=config.prompt_tokens,
        max_tokens=config.max_tokens,
        timeout_s=config.request_timeout_s or None,
    )
    load = Load(server, model, plan, config.seed)
    await load.warm_up(config.warmup_requests)
    return load


def _measure(config: BenchConfig, runner: asyncio.Runner, load: "Load") -> int:
    from rich.console import Console

    from cli.bench_report import progress_of, report, report_table

    interrupted = False
    with progress_of(load):
        try:
            runner.run(load.run())
        except KeyboardInterrupt:
            interrupted = True
    found = report(load, target=config.target)
    if config.json:
        print(json.dumps(found))
    else:
        Console(highlight=False).print(report_table(found))
    if interrupted:
        return _INTERRUPTED
    return 0 if found["requests"]["ok"] and not found["requests"]["failed"] else 1
