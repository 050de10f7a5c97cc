"""The chat on pipes: a prompt per line of the input, the answers on the output, nothing else."""

import asyncio
import sys

from cli.chat_conversation import Conversation
from cli.client import sentence
from cli.terminal_text import printable
from runtime.errors import ServingError


def chat_on_pipes(
    runner: asyncio.Runner, conversation: Conversation, *, target: str, keep: bool
) -> int:
    """Answer every line that is not blank; returns 0 if all were answered, else 1.

    A question that fails leaves a sentence on stderr, and the next one is asked.
    """
    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    answered = []
    for line in sys.stdin:
        if question := line.strip():
            answered.append(_is_answered(runner, conversation, question, target))
        if not keep:
            conversation.forget()
    return 0 if all(answered) else 1


def _is_answered(
    runner: asyncio.Runner, conversation: Conversation, question: str, target: str
) -> bool:
    try:
        runner.run(conversation.ask(question, _say))
    except ServingError as error:
        if conversation.last is not None and conversation.last.text:
            _say("\n")
        print(f"penstock: error: {sentence(error, target)}", file=sys.stderr)
        return False
    _say("\n")
    return True


def _say(text: str) -> None:
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()
