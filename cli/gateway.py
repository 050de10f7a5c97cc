"""`penstock gateway`: the OpenAI front alone, as a client of any KServe v2 text server."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from cli.credentials import key_to_send, open_api_keys
from cli.options import FrontOptions, HttpOptions
from runtime.config import like, option, parse_config
from runtime.config_option import HOST_PORT
from runtime.errors import InvalidConfig
from runtime.lifecycle import Stage, StopRequest, run_stages, stop_on_signals, waiting_stage
from runtime.logs import configure_logging
from runtime.metrics import metrics_text, set_build_info
from runtime.options import DAY_S, TargetOptions
from runtime.ready_file import remove_ready_file, write_ready_file

if TYPE_CHECKING:
    from gateway_http.http_server import HttpServer

_LOG = logging.getLogger(__name__)
_CLOSE_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayProcessConfig(TargetOptions, HttpOptions):
    """One gateway process."""

    target: str | None = option(
        None, help="the KServe server", group="Server", form=HOST_PORT, metavar="HOST:PORT"
    )
    request_timeout_s: float = like(FrontOptions, "request_timeout_s")
    keepalive_s: float = option(
        0.0, help="time between pings to the target; 0 is none: other servers may refuse them",
        group="Server", unit="s", least=0, most=DAY_S,
    )  # fmt: skip
    target_api_key_file: Path | None = option(
        None,
        help="file whose first line is the API key to send to the target (default: a gateway "
        "without API keys of its own passes its clients' on)",
        group="Security",
    )

    def __post_init__(self) -> None:
        """Raise InvalidConfig naming the field that is wrong."""
        HttpOptions.__post_init__(self)
        if not self.target:
            raise InvalidConfig("a gateway needs a server, HOST:PORT", param="target")
        _ = self.target_client_tls


def gateway(argv: Sequence[str]) -> int:
    """Run a gateway until it is stopped; returns the exit code."""
    config, _ = parse_config(
        GatewayProcessConfig,
        argv,
        prog="penstock gateway",
        description="The OpenAI front alone, in front of any KServe v2 server of language models.",
        examples=(
            "penstock gateway --target 127.0.0.1:8001 --http-port 8080 --metrics-port 0",
            "penstock gateway --target inference.example:8001 --host 0.0.0.0 --keepalive-s 20",
        ),
    )
    configure_logging(level=config.log_level, log_format=config.log_format)
    config.require_free_ports()
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(config))
    return 0


async def _run(config: GatewayProcessConfig) -> None:
    from gateway_http.app import create_app
    from gateway_http.config import GatewayConfig
    from gateway_http.entrance import passed_on_key
    from gateway_http.http_server import HttpServer
    from gateway_http.kserve_backend import KServeBackend
    from gateway_http.metered import MeteredBackend
    from runtime.grpc_client import RpcChannel
    from runtime.process import settle_memory
    from runtime.status_server import StatusServer
    from runtime.tracing import start_tracing
    from wire.pool import rpc_types

    set_build_info("gateway")
    stop = StopRequest()
    wait_s, drain_s = config.withdraw_wait_s, config.drain_timeout_s
    with stop_on_signals(stop, hard_limit_s=wait_s + drain_s + 30):
        async with AsyncExitStack() as resources:
            tracing = start_tracing(config.otlp_endpoint, "gateway")
            resources.push_async_callback(asyncio.to_thread, tracing.close)
            keys, tls = open_api_keys(config), config.open_server_tls()
            own_key = key_to_send(config.target_api_key_file, "--target-api-key-file")
            passes_keys_on = keys is None and own_key is None
            keepalive_s = config.keepalive_s or None
            channel = RpcChannel(
                config.target or "",
                rpc_types=rpc_types,
                keepalive_s=keepalive_s,
                tls=config.target_client_tls,
                call_metadata=passed_on_key if passes_keys_on else own_key or dict,
            )
            resources.push_async_callback(channel.close)
            settings = GatewayConfig(
                request_timeout_s=config.request_timeout_s or None, **config.http_front()
            )
            backend = KServeBackend(channel, limits=keys, passes_keys_on=passes_keys_on)
            http = HttpServer(
                create_app(
                    MeteredBackend(backend, tracing, lambda: stop.requested),
                    settings,
                    lambda: metrics_text(config.metrics_prefix),
                    access=keys,
                ),
                host=config.host,
                port=config.http_port,
                tls=tls,
                head_timeout_s=config.http_head_timeout_s,
                body_timeout_s=config.http_body_timeout_s,
            )
            # The gateway holds no state, so that it is ready while it listens; the target's
            # readiness is at /ready of the HTTP front.
            status = StatusServer(
                host=config.status_host,
                port=config.metrics_port,
                is_ready=lambda: not stop.requested,
                describe=lambda: {
                    "process": "gateway",
                    "version": version("penstock"),
                    "in_flight": http.in_flight,
                    "target": config.target,
                    "draining": stop.requested,
                },
                prefix=config.metrics_prefix,
            )
            resources.callback(status.stop)
            bound: dict[str, object] = {"http": await http.start()}
            resources.push_async_callback(http.stop, 0)
            bound["metrics"] = status.start()
            settle_memory()
            if config.ready_file is not None:
                write_ready_file(config.ready_file, bound)
                resources.callback(remove_ready_file, config.ready_file)
            _LOG.info("ready: %s for %s", bound["http"], config.target)
            _LOG.info("stopping: %s", await stop.wait())
            await run_stages(_stop_stages(config, http))


def _stop_stages(config: GatewayProcessConfig, http: "HttpServer") -> list[Stage]:
    wait_s, drain_s = config.withdraw_wait_s, config.drain_timeout_s

    async def withdraw() -> None:
        if config.ready_file is not None:
            remove_ready_file(config.ready_file)

    async def refuse_new() -> None:
        http.refuse_new()

    return [
        Stage(name="readiness", action=withdraw),
        waiting_stage("load balancers", wait_s),
        Stage(name="new requests", action=refuse_new),
        Stage(name="requests", action=lambda: http.stop(drain_s), limit_s=drain_s + _CLOSE_S),
    ]
