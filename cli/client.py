"""A KServe server as the terminal tools see it: the connection, the model, what is told of errors.

Imports gRPC: for use inside the subcommands.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cli.client_options import ClientOptions
from cli.terminal_text import printable
from gateway_http.kserve_backend import KServeBackend
from runtime.errors import DeadlineExceeded, ModelNotFound, ModelNotReady, ServingError, WorkerLost
from runtime.grpc_client import RpcChannel
from wire.cards import ModelCard
from wire.pool import rpc_types

# C-core's words, and all that tells a server that cannot be reached from one that went away.
_UNREACHED = ("failed to connect to all addresses", "errors resolving", "DNS resolution failed")


@contextmanager
def connected(
    options: ClientOptions, *, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
) -> Iterator[tuple[asyncio.Runner, KServeBackend]]:
    """Give the server, and the runner in whose loop it is to be used. Connects when first used.

    A tool runs one coroutine after another and waits for its user between them, outside the loop:
    so Ctrl-C cancels the coroutine that runs, and raises KeyboardInterrupt where it was run.
    """
    metadata = options.metadata()

    async def open_channel() -> RpcChannel:
        return RpcChannel(
            options.target,
            rpc_types=rpc_types,
            tls=options.target_client_tls,
            call_metadata=lambda: metadata,
        )

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        channel = runner.run(open_channel())
        try:
            yield runner, KServeBackend(channel)
        finally:
            runner.run(channel.close())


async def find_model(server: KServeBackend, name: str | None) -> ModelCard:
    """Return the model of this name or alias, without a name the server's first one.

    Raises ModelNotFound naming those there are, or ModelNotReady when there is none.
    """
    if name is not None:
        try:
            return await server.card(name)
        except ModelNotFound as error:
            names = ", ".join(card.name for card in await server.models())
            raise ModelNotFound(
                f"the server has no model {name!r}; it has {names or 'none'}"
            ) from error
    cards = await server.models()
    if not cards:
        raise ModelNotReady("the server has no model yet")
    return cards[0]


def sentence(error: ServingError, target: str) -> str:
    """Return what a person is told about an error."""
    if isinstance(error, DeadlineExceeded):
        return "the time for the answer was over before its end"
    if not isinstance(error, WorkerLost):
        return printable(error.message)
    if error.message.startswith(_UNREACHED):
        reason = error.message.removesuffix(": OK").rstrip("]").rpartition(": ")[2]
        return printable(f"cannot connect to {target}: {reason}")
    return printable(f"the answer of {target} broke off: {error.message}")
