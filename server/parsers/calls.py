"""The tool calls of one choice, as deltas."""

import secrets
import string
from collections.abc import Callable

from wire.generate import ToolCallDelta

_ALPHANUMERIC = string.ascii_letters + string.digits


def long_id() -> str:
    """An id as vLLM makes it: chatcmpl-tool- and 16 hexadecimal digits."""
    return f"chatcmpl-tool-{secrets.token_hex(8)}"


def short_id() -> str:
    """An id as Mistral's templates want it: 9 letters and digits."""
    return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(9))


class Calls:
    """Numbers the calls and collects what is new of them until `take`."""

    def __init__(self, make_id: Callable[[], str] = long_id) -> None:
        self.count = 0
        self._make_id = make_id
        self._fresh: list[ToolCallDelta] = []

    def begin(self, name: str) -> None:
        """The next call has begun: of this function."""
        self._fresh.append(ToolCallDelta(index=self.count, id=self._make_id(), name=name))
        self.count += 1

    def add(self, arguments: str) -> None:
        """More of the arguments of the call that has begun last."""
        if not arguments:
            return
        index = self.count - 1
        if self._fresh and self._fresh[-1].index == index:
            self._fresh[-1].arguments += arguments
        else:
            self._fresh.append(ToolCallDelta(index=index, arguments=arguments))

    def take(self) -> list[ToolCallDelta]:
        """What is new since the last time."""
        fresh, self._fresh = self._fresh, []
        return fresh
