"""What one setting is: its names, its type, and which values it takes."""

import argparse
import dataclasses
import difflib
import math
import os
import re
import types
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

ENV_PREFIX = "PENSTOCK_"
# The sections of `--help`, in their order.
Group = Literal[
    "Server",
    "Models",
    "Answers",
    "Load",
    "Output",
    "Listening",
    "Discovery",
    "Routing",
    "Limits",
    "Security",
    "Life cycle",
    "Logging",
    "Telemetry",
    "Simulator",
]
_NOUNS = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a non-empty text",
    Path: "a non-empty path",
}


@dataclass(frozen=True, slots=True)
class Form:
    """What a text must look like: in words, and as a regular expression for all of it."""

    words: str
    pattern: str


HOST_PORT = Form("HOST:PORT", r"(\[[0-9a-fA-F:.%]+\]|[^\s:/\[\]]+):[0-9]{1,5}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One field of a configuration. `kind` is the type of one value; there are several if `many`.

    `least` and `most` are allowed values themselves, `above` is not.
    """

    name: str
    kind: type
    many: bool
    default: Any
    help: str
    metavar: str | None = None
    positional: bool = False
    unit: str = ""
    group: Group | None = None
    choices: tuple[str, ...] = ()
    form: Form | None = None
    least: float | None = None
    above: float | None = None
    most: float | None = None
    hidden: bool = False
    secret: bool = False
    secret_flag: bool = False

    @property
    def key(self) -> str:
        """Its name in a YAML file."""
        return self.name.replace("_", "-")

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return flag_of(self.name)

    @property
    def has_flag(self) -> bool:
        """Whether it is for the command line, which others on the machine see."""
        return not self.secret or self.secret_flag

    @property
    def off_flag(self) -> str | None:
        """The flag that switches it off, of a switch that is not itself a `--no-…`."""
        off = self.kind is bool and not self.name.startswith("no_")
        return f"--no-{self.key}" if off else None

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return variable_of(self.name)

    @property
    def label(self) -> str:
        """How messages name it."""
        if not self.has_flag:
            return self.variable
        return f"{self.metavar if self.positional else self.flag} / {self.variable}"

    @property
    def range(self) -> str:
        """Which numbers are allowed; empty when all are, or when it is no number."""
        if self.least is not None and self.most is not None:
            return f"from {plain(self.least)} to {plain(self.most)}"
        bounds = {"no less than": self.least, "above": self.above, "no more than": self.most}
        return " and ".join(f"{word} {plain(x)}" for word, x in bounds.items() if x is not None)

    @property
    def rule(self) -> str:
        """What a value must be."""
        if self.choices:
            return f"must be one of {', '.join(self.choices)}"
        if self.form:
            return f"must be {self.form.words}"
        return f"must be {_NOUNS[self.kind]} {self.range}".rstrip()

    def read(self, text: str) -> Any:
        """Return the value that `text` stands for; raises ArgumentTypeError with the rule."""
        try:
            value = self.kind(os.path.expanduser(text) if self.kind is Path else text)
        except ValueError:
            value = None
        if not _is_text(text) or value is None or not self._allows(value):
            raise argparse.ArgumentTypeError(self.broken_by(text))
        return value

    def broken_by(self, text: str) -> str:
        """Say what a value must be, and what was given instead unless that is a secret."""
        return self.rule if self.secret else f"{self.rule}, not {text!r}"

    def _allows(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        if self.form and not re.fullmatch(self.form.pattern, value):
            return False
        if self.kind is float and not math.isfinite(value):
            return False
        return (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
        )


def options_of(config_class: type) -> list[Option]:
    """Return what can be set of a configuration: arguments first, then group by group."""
    hints = get_type_hints(config_class)
    options = [
        _option(field, hints[field.name])
        for field in dataclasses.fields(config_class)
        if "help" in field.metadata
    ]
    order: tuple[Group, ...] = get_args(Group)
    return sorted(options, key=lambda one: order.index(one.group) if one.group else -1)


def flag_of(name: str) -> str:
    """Return a field's flag."""
    return f"--{name.replace('_', '-')}"


def variable_of(name: str) -> str:
    """Return a field's variable."""
    return ENV_PREFIX + name.upper()


def plain(value: object) -> str:
    """Return a value as people write it: 30, not 30.0; a list's values with commas."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def nearest(key: str, keys: Iterable[str]) -> str | None:
    """Return the key that was probably meant."""
    return next(iter(difflib.get_close_matches(key, list(keys), n=1)), None)


def _is_text(text: str) -> bool:
    """Tell whether there is something, and all of it can be passed on to any library."""
    return bool(text.strip()) and "\0" not in text and not re.search("[\ud800-\udfff]", text)


def _option(field: "dataclasses.Field[Any]", hint: Any) -> Option:
    kind, many = _kind(hint)
    return Option(name=field.name, kind=kind, many=many, default=field.default, **field.metadata)


def _kind(hint: Any) -> tuple[type, bool]:
    """Return (type of one value, whether there may be many) of a field's annotation."""
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(arg for arg in get_args(hint) if arg is not type(None))
    if get_origin(hint) in (tuple, list):
        return get_args(hint)[0], True
    if hint not in (bool, int, float, str, Path):
        raise TypeError(f"a configuration field cannot be {hint}")
    return hint, False
