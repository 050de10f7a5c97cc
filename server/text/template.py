"""A model's chat template: an OpenAI messages list rendered to the prompt the model was trained on.

The environment is that of Hugging Face chat templates (transformers,
`utils/chat_template_utils.py`): sandboxed Jinja with trimmed blocks, loop controls, a
`generation` block, `tojson`, `raise_exception` and `strftime_now`.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from runtime.errors import InvalidConfig, InvalidRequest
from server.text.messages import prepare_messages
from server.text.tokenizer import read_json

_RESERVED = ("messages", "tools")
_CUT = "\N{END OF MEDIUM}final message continues here\N{END OF MEDIUM}"

# What running a template on a client's messages can raise: its own objections, and Python's about
# values of an unexpected shape.
_TEMPLATE_ERRORS = (
    jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError,
    RecursionError,
)  # fmt: skip


class ChatTemplate:
    """The chat templates of one model, by name; usually only `default`. May be shared by threads.

    `special_tokens` (such as `bos_token`) are variables of the template; `source` is the text of
    all of them. Raises InvalidConfig when
    a template has a syntax error.
    """

    def __init__(
        self, sources: Mapping[str, str], special_tokens: Mapping[str, str] | None = None
    ) -> None:
        self.source = "\n".join(sources.values())
        environment = _environment()
        self._special_tokens = dict(special_tokens or {})
        self._templates: dict[str, tuple[jinja2.Template, _Traits]] = {}
        for name, source in sources.items():
            try:
                traits = _Traits(environment.parse(source))
                self._templates[name] = (environment.from_string(source), traits)
            except jinja2.TemplateSyntaxError as error:
                raise InvalidConfig(
                    f"the chat template {name!r} is wrong in line {error.lineno}: {error.message}"
                ) from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the prompt, with the special tokens in it.

        `continue_final_message` leaves the last message open for the model to go on with;
        `variables` are the template's own. Raises InvalidRequest, with `param` "messages" when the
        model has no template or it refuses the messages, and Unsupported for parts of a message
        that are not text.
        """
        if continue_final_message and add_generation_prompt:
            raise InvalidRequest(
                "continue_final_message excludes add_generation_prompt",
                param="chat_template_kwargs",
            )
        variables = variables or {}
        for name in _RESERVED:
            if name in variables:
                raise InvalidRequest(f"{name!r} is not free to set", param="chat_template_kwargs")
        template, traits = self._choose(with_tools=bool(tools))
        prepared = prepare_messages(messages, as_parts=traits.reads_parts, wrap=traits.only_parts)
        final = _open_end(prepared) if continue_final_message else None
        values = {
            "documents": None,
            **self._special_tokens,
            **variables,
            "messages": prepared,
            "tools": list(tools) if tools else None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            text = template.render(values)
        except _TEMPLATE_ERRORS as error:
            raise InvalidRequest(
                f"the model's chat template does not take these messages: {error}",
                param="messages",
            ) from None
        return text if final is None else _cut_end(text, final)

    def _choose(self, *, with_tools: bool) -> "tuple[jinja2.Template, _Traits]":
        if not self._templates:
            raise InvalidRequest(
                "this model has no chat template: send a prompt instead of messages",
                param="messages",
            )
        for name in ("tool_use", "default") if with_tools else ("default",):
            if name in self._templates:
                return self._templates[name]
        if len(self._templates) == 1:
            return next(iter(self._templates.values()))
        names = ", ".join(sorted(self._templates))
        raise InvalidRequest(
            f"this model has no default chat template, only {names}", param="messages"
        )


def load_template(folder: Path, special_tokens: Mapping[str, str]) -> ChatTemplate:
    """Load a model folder's chat templates, none if it has none. Raises InvalidConfig."""
    return ChatTemplate(_template_files(folder) or _template_entries(folder), special_tokens)


def _template_files(folder: Path) -> dict[str, str]:
    paths = {path.stem: path for path in folder.glob("additional_chat_templates/*.jinja")}
    paths["default"] = folder / "chat_template.jinja"
    try:
        return {n: path.read_text(encoding="utf-8") for n, path in paths.items() if path.is_file()}
    except (OSError, UnicodeError) as error:
        raise InvalidConfig(f"the chat template in {folder} cannot be read: {error}") from None


def _template_entries(folder: Path) -> dict[str, str]:
    path = folder / "tokenizer_config.json"
    entry = read_json(path).get("chat_template")
    if entry is None:
        return {}
    if isinstance(entry, str):
        return {"default": entry}
    try:
        named = {item["name"]: item["template"] for item in entry}
    except (TypeError, KeyError):
        named = {}
    if not named or not all(isinstance(source, str) for source in named.values()):
        raise InvalidConfig(f"{path}: chat_template is neither a text nor a list of named texts")
    return named


def _open_end(messages: list[dict[str, Any]]) -> str:
    """Mark the end of the last message's text; returns that text."""
    last = messages[-1]
    parts = last.get("content")
    holder: dict[str, Any] = last
    key = "content"
    if isinstance(parts, list) and parts:
        holder, key = dict(parts[-1]), "text"
        last["content"] = [*parts[:-1], holder]
    text = holder.get(key)
    if not isinstance(text, str):
        raise InvalidRequest("the final message has no text to continue", param="messages")
    holder[key] = text + _CUT
    return text


def _cut_end(text: str, final: str) -> str:
    head, mark, _ = text.rpartition(_CUT)
    if not mark:
        raise InvalidRequest(
            "the model's chat template drops the final message that should be continued",
            param="messages",
        )
    # A template that trims its messages would have trimmed the end of this one, too.
    return head if head.endswith(final) else head.rstrip()


class _Traits:
    """How a template reads a message's content, by its syntax tree."""

    def __init__(self, tree: nodes.Template) -> None:
        self.reads_parts = any(_iterates_content(tree))
        tests_string = any(test.name == "string" for test in tree.find_all(nodes.Test))
        self.only_parts = self.reads_parts and not tests_string


def _iterates_content(tree: nodes.Template) -> list[nodes.For]:
    aliases = {
        assign.target.name
        for assign in tree.find_all(nodes.Assign)
        if isinstance(assign.target, nodes.Name) and _is_content(assign.node, frozenset())
    }
    loops = tree.find_all(nodes.For)
    return [loop for loop in loops if _is_content(loop.iter, frozenset(aliases))]


def _is_content(node: nodes.Node, aliases: frozenset[str]) -> bool:
    while isinstance(node, nodes.Filter) and node.node is not None:
        node = node.node
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    if isinstance(node, nodes.Getitem):
        return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
    return isinstance(node, nodes.Name) and node.name in aliases


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's words for training."""

    tags = {"generation"}  # noqa: RUF012 - declared so by Jinja

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the body alone."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter would escape HTML characters.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
