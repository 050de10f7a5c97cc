"""The chat in a terminal: line editing, history, commands, answers that can be interrupted."""

import asyncio
import re
import shutil
import sys
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.input.typeahead import get_typeahead, store_typeahead
from prompt_toolkit.key_binding import KeyBindings, KeyPress, KeyPressEvent
from prompt_toolkit.keys import Keys
from rich.console import Console

from cli.chat_conversation import Answer, Conversation
from cli.chat_history import open_history
from cli.client import sentence
from cli.word_wrap import WordWrap
from runtime.errors import ContextLengthExceeded, ServingError

_COMMAND = re.compile(r"(/[a-z]*)(?:\s+(.*))?", re.DOTALL)
_PROMPT = FormattedText([("bold ansicyan", "> ")])
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Command:
    usage: str
    about: str
    run: Callable[[str], None]


class TerminalChat:
    """One user at one terminal; an error is a sentence, and the chat goes on."""

    def __init__(self, runner: asyncio.Runner, conversation: Conversation, *, target: str) -> None:
        self._runner = runner
        self._conversation = conversation
        self._target = target
        self._console = Console(highlight=False, markup=False, soft_wrap=True)
        commands = (
            _Command("/help", "show this list", self._help),
            _Command("/reset", "begin a new conversation", self._reset),
            _Command("/system TEXT", "set the system message; off removes it", self._system),
            _Command("/model NAME", "talk to another model", self._model),
            _Command("/models", "list the server's models", self._models),
            _Command("/stats", "tokens and times of the last answer", self._stats),
            _Command("/quit", "leave, as Ctrl-D does", self._quit),
        )
        self._commands = {command.usage.split()[0]: command for command in commands}
        self._session: PromptSession[str] = PromptSession(
            history=open_history(),
            multiline=True,
            key_bindings=_key_bindings(),
            prompt_continuation="  ",
            completer=WordCompleter([*self._commands], sentence=True),
            complete_while_typing=False,
            enable_suspend=True,
        )
        self._left = False

    def run(self) -> int:
        """Chat until the user leaves; returns the exit code."""
        # Throughout, so that no key is lost, echoed or made a signal between prompt and answer.
        with self._session.app.input.raw_mode():
            self._greet()
            while not self._left:
                try:
                    self._turn()
                except EOFError:
                    break
                except KeyboardInterrupt:
                    if not self._session.default_buffer.text:
                        self._note("Ctrl-D or /quit leaves")
        return 0

    def _turn(self) -> None:
        text = self._runner.run(self._session.prompt_async(_PROMPT)).strip()
        command = _COMMAND.fullmatch(text)
        if command is not None:
            self._obey(command[1], command[2] or "")
        elif text:
            self._answer(text)

    def _greet(self) -> None:
        model = self._await(self._conversation.model())
        if model is not None:
            room = f", context of {model.context_length} tokens" if model.context_length else ""
            self._console.print(f"{model.name}", style="bold", end="")
            self._note(f" at {self._target}{room}; /help lists the commands")

    def _answer(self, text: str) -> None:
        self._await(self._shown(text))
        last = self._conversation.last
        if last is not None and last.text:
            self._note(_figures(last))
        self._console.print()

    async def _shown(self, text: str) -> None:
        wrap = WordWrap(shutil.get_terminal_size().columns)

        def say(piece: str) -> None:
            sys.stdout.write(wrap.feed(piece))
            sys.stdout.flush()

        try:
            await self._conversation.ask(text, say)
        finally:
            if wrap.column:
                say("\n")

    def _obey(self, name: str, argument: str) -> None:
        command = self._commands.get(name)
        if command is None:
            self._complain(f"there is no {name}; /help lists the commands")
        else:
            command.run(argument.strip())

    def _help(self, _: str) -> None:
        for command in self._commands.values():
            self._console.print(f"  {command.usage:<14}", end="")
            self._note(command.about)
        self._note("  Alt-Enter begins a line; Ctrl-C ends an answer, and what was said stays")

    def _reset(self, _: str) -> None:
        self._conversation.forget()
        self._note("a new conversation")

    def _system(self, text: str) -> None:
        if text:
            self._conversation.system = None if text == "off" else text
        shown = self._conversation.system
        self._note(f"system message: {shown}" if shown else "no system message")

    def _model(self, name: str) -> None:
        asked = self._conversation.use_model(name) if name else self._conversation.model()
        model = self._await(asked)
        if model is not None:
            self._note(f"model: {model.name}")

    def _models(self, _: str) -> None:
        for card in self._await(self._conversation.server.models()) or ():
            room = f"context of {card.context_length} tokens" if card.context_length else ""
            self._console.print(f"  {card.name}  ", end="")
            self._note(room)

    def _stats(self, _: str) -> None:
        last = self._conversation.last
        self._note(f"conversation  {len(self._conversation.messages)} messages")
        if last is not None and last.text:
            self._note(f"last prompt   {last.prompt_tokens} tokens, {last.cached_tokens} cached")
            self._note(f"last answer   {_figures(last)}")

    def _quit(self, _: str) -> None:
        self._left = True

    def _await(self, asked: Coroutine[Any, Any, T]) -> T | None:
        """Run it; None if it failed or was interrupted, which is told."""
        try:
            return self._runner.run(self._interruptible(asked))
        except ServingError as error:
            self._complain(sentence(error, self._target))
            if isinstance(error, ContextLengthExceeded):
                self._note("/reset begins a new conversation")
        except (asyncio.CancelledError, KeyboardInterrupt):
            self._note("interrupted")
        return None

    async def _interruptible(self, asked: Coroutine[Any, Any, T]) -> T:
        """Let Ctrl-C cancel it; what else is typed meanwhile waits for the prompt."""
        keyboard, task = self._session.app.input, asyncio.current_task()

        def look(keys: Iterable[KeyPress]) -> None:
            keys = list(keys)
            store_typeahead(keyboard, [it for it in keys if it.key != Keys.ControlC])
            if task is not None and any(it.key == Keys.ControlC for it in keys):
                task.cancel()

        with keyboard.attach(lambda: look(keyboard.read_keys())):
            look(get_typeahead(keyboard))
            return await asked

    def _note(self, text: str) -> None:
        self._console.print(text, style="dim")

    def _complain(self, text: str) -> None:
        self._console.print(text, style="red")


def _figures(answer: Answer) -> str:
    parts = [f"{answer.output_tokens} token{'s' if answer.output_tokens != 1 else ''}"]
    if answer.first_token_s is not None:
        parts.append(f"first after {answer.first_token_s:.2f} s")
    if answer.tokens_per_s is not None:
        parts.append(f"then {answer.tokens_per_s:.1f} per second")
    if answer.finish_reason == "length":
        parts.append("cut at its limit")
    return ", ".join(parts)


def _key_bindings() -> KeyBindings:
    """Enter sends, also with several lines; Alt-Enter begins a line."""
    bindings = KeyBindings()

    @bindings.add("enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline()

    return bindings
