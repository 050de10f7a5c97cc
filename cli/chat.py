"""`penstock chat`: talk to a model over gRPC, in a terminal or through pipes."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from cli.client_options import ClientOptions
from runtime.config import option, parse_config
from runtime.errors import InvalidConfig, InvalidRequest
from wire.sampling import Sampling, make_sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatConfig(ClientOptions):
    """One chat."""

    system: str | None = option(None, help="system message", group="Request", metavar="TEXT")
    max_tokens: int = option(1024, help="longest answer", group="Request", unit="tokens", least=1)
    temperature: float | None = option(
        None, help="0 always takes the likeliest token", group="Request", least=0, most=2
    )
    keep: bool = option(
        False,
        help="on pipes: all lines are one conversation, instead of each its own",
        group="Request",
    )

    def __post_init__(self) -> None:
        """Raise InvalidConfig naming the field that is wrong."""
        ClientOptions.__post_init__(self)
        try:
            self.sampling()
        except InvalidRequest as error:
            raise InvalidConfig(error.message, param=error.param) from error

    def sampling(self) -> Sampling:
        """How answers are sampled."""
        values = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        return make_sampling({name: it for name, it in values.items() if it is not None})


def chat(argv: Sequence[str]) -> int:
    """Chat until the user leaves, or the input ends; returns the exit code."""
    config, _ = parse_config(
        ChatConfig,
        argv,
        prog="penstock chat",
        description="Talk to a model over gRPC. On pipes every line of the input is a prompt.",
        examples=(
            "penstock chat",
            "penstock chat --target 10.0.0.7:8001 --model smollm2 --max-tokens 200",
        ),
    )
    if sys.stdin is None or sys.stdout is None:
        raise InvalidConfig("a chat needs a standard input and a standard output")
    from cli.chat_conversation import Conversation
    from cli.client import connected

    with connected(config) as (runner, server):
        conversation = Conversation(
            server,
            model=config.model,
            system=config.system,
            sampling=config.sampling(),
            timeout_s=config.request_timeout_s or None,
        )
        if sys.stdin.isatty() and sys.stdout.isatty():
            from cli.chat_terminal import TerminalChat

            return TerminalChat(runner, conversation, target=config.target).run()
        from cli.chat_pipe import chat_on_pipes

        return chat_on_pipes(runner, conversation, target=config.target, keep=config.keep)
