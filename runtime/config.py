"""Turns a frozen dataclass into flags, environment variables and a YAML file, and back.

The only reader of the environment. A field `grpc_port` is the flag `--grpc-port`, the variable
`PENSTOCK_GRPC_PORT` and the key `grpc-port` of the file that `--config` names; a flag wins over a
variable, a variable over the file, the file over the default.
"""

import argparse
import dataclasses
import os
import re
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import configargparse
import yaml

from runtime.errors import InvalidConfig

ENV_PREFIX = "PENSTOCK_"
T = TypeVar("T")


def option(
    default: Any,
    *,
    help: str,  # noqa: A002 - argparse's word
    unit: str = "",
    choices: Sequence[str] | None = None,
    metavar: str | None = None,
    hidden: bool = False,
    secret: bool = False,
) -> Any:
    """A field that is set by a flag, a variable or a key. Without a default value: `None`.

    Its type is one of bool (default False), int, float, str, Path, each also `| None`, or
    tuple[str, ...], for which the flag may be repeated. A secret has no flag, since others on the
    machine see a command line, and is never shown.
    """
    metadata = {
        "help": help, "unit": unit, "choices": choices, "metavar": metavar, "hidden": hidden,
        "secret": secret,
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=metadata, repr=not secret)


def argument(*, help: str, metavar: str) -> Any:  # noqa: A002 - argparse's word
    """A positional argument: a str field takes one, a tuple[str, ...] field one or more."""
    metadata = {"help": help, "metavar": metavar, "positional": True}
    return dataclasses.field(metadata=metadata)


def like(config_class: type, name: str) -> Any:
    """A field with the default and the flag of another configuration's field of this name."""
    (field,) = (f for f in dataclasses.fields(config_class) if f.name == name)
    return dataclasses.field(default=field.default, metadata=field.metadata, repr=field.repr)


def child_environment(*, without: Sequence[str] = ()) -> dict[str, str]:
    """Return the environment for a child process of ours: this one's, without its own file.

    Neither has it the variables of the fields `without`, which are not meant for the child.
    """
    dropped = {f"{ENV_PREFIX}CONFIG", *map(_variable, without)}
    return {k: v for k, v in os.environ.items() if k not in dropped}


def secret_variables(config: object, *, without: Sequence[str] = ()) -> dict[str, str]:
    """Return the environment that hands a configuration's secrets to a child process."""
    names = [name for name in _secrets(type(config)) if name not in without]
    values = {name: getattr(config, name) for name in names}
    return {_variable(name): value for name, value in values.items() if value is not None}


def parse_config(
    config_class: type[T],
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    environment: Mapping[str, str] | None = None,
) -> tuple[T, list[str]]:
    """Build `config_class` from flags, environment and file.

    Returns it and what stood behind `--`, untouched. Raises InvalidConfig naming the flag,
    variable or key that is wrong, and SystemExit(0) after `--help` and `--print-config`.
    """
    own, rest = _split(argv)
    for name in _secrets(config_class):
        if any(argument.partition("=")[0] == _flag(name) for argument in own):
            raise InvalidConfig(
                f"a secret is not for the command line, which others see: set {_variable(name)}",
                param=name,
            )
    parser = _parser(config_class, prog, description)
    environ = os.environ if environment is None else environment
    values = vars(parser.parse_args(own, env_vars=environ))
    show = values.pop("print_config")
    values.pop("config")
    given = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in values.items()
        if value is not None
    }
    try:
        config = config_class(**given)
    except InvalidConfig as error:
        if not error.param:
            raise
        raise InvalidConfig(
            f"{error.message} ({parser.source_of(error.param)})", param=error.param
        ) from error
    if show:
        sys.stdout.write(_shown(config, parser))
        raise SystemExit(0)
    return config, rest


def as_flags(config: object, names: Sequence[str]) -> list[str]:
    """Return the command line that sets the named fields of another process's configuration."""
    flags: list[str] = []
    for name in names:
        value = getattr(config, name)
        if value is True:
            flags.append(_flag(name))
        elif isinstance(value, tuple):
            flags += [f"{_flag(name)}={one}" for one in value]
        elif value is not None and value is not False:
            flags.append(f"{_flag(name)}={value}")
    return flags


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    args = list(argv)
    if "--" not in args:
        return args, []
    at = args.index("--")
    return args[:at], args[at + 1 :]


class _Parser(configargparse.ArgumentParser):  # type: ignore[misc]
    """Raises InvalidConfig instead of printing usage and exiting."""

    def error(self, message: str) -> NoReturn:
        named = re.match(r"argument (--[\w-]+)", message)
        if named:
            field = named[1].removeprefix("--").replace("-", "_")
            source = self.source_of(field)
            if source != named[1]:
                message = f"{source}: {message.partition(': ')[2]}"
            raise InvalidConfig(message, param=field)
        for place, key in self._unknown_keys(message):
            raise InvalidConfig(f"unknown key '{key}' in {place}", param=key)
        if message.startswith("unrecognized arguments"):
            message += " (what is meant for vLLM stands behind --)"
        raise InvalidConfig(message)

    def source_of(self, field: str) -> str:
        """Return where a field's value came from: a variable, a key, or else its flag."""
        settings = self.get_source_to_settings_dict()
        for source, values in settings.items():
            for key, (action, _) in values.items():
                if action is not None and action.dest == field and source != "defaults":
                    place = source.partition("|")[2]
                    return f"key '{key}' in {place}" if place else f"environment variable {key}"
        return _flag(field)

    def _unknown_keys(self, message: str) -> list[tuple[str, str]]:
        if not message.startswith("unrecognized arguments"):
            return []
        return [
            (source.partition("|")[2], key)
            for source, values in self.get_source_to_settings_dict().items()
            if source.startswith("config_file|")
            for key, (action, _) in values.items()
            if action is None
        ]


def _parser(config_class: type, prog: str, description: str) -> _Parser:
    parser = _Parser(
        prog=prog,
        description=description,
        auto_env_var_prefix=ENV_PREFIX,
        config_file_parser_class=configargparse.YAMLConfigFileParser,
        add_config_file_help=False,
        allow_abbrev=False,
        formatter_class=argparse.HelpFormatter,
    )
    parser.add_argument(
        "--config",
        is_config_file_arg=True,
        env_var=f"{ENV_PREFIX}CONFIG",
        metavar="FILE",
        help="YAML file with any of these options as keys",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="show the resulting settings and exit"
    )
    hints = get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        if "help" in field.metadata:
            _add(parser, field, hints[field.name])
    return parser


def _add(parser: _Parser, field: "dataclasses.Field[Any]", hint: Any) -> None:
    about = field.metadata
    kind, many = _kind(hint)
    if about.get("positional"):
        nargs = "+" if many else None
        parser.add_argument(
            field.name, metavar=about["metavar"], nargs=nargs, help=about["help"], type=kind
        )
        return
    text = argparse.SUPPRESS if about["hidden"] or about["secret"] else _help(field)
    if kind is bool:
        parser.add_argument(_flag(field.name), action="store_true", help=text)
        return
    parser.add_argument(
        _flag(field.name),
        type=kind,
        default=None if many else field.default,  # argparse would append to the default itself
        action="append" if many else "store",
        choices=about["choices"],
        metavar=about["metavar"] or (None if about["choices"] else kind.__name__.upper()),
        help=text,
    )


def _help(field: "dataclasses.Field[Any]") -> str:
    text = str(field.metadata["help"]).replace("%", "%%")
    unit = f" {field.metadata['unit']}" if field.metadata["unit"] else ""
    if field.default in (None, False, ()):
        return text + (f" ({unit.strip()})" if unit else "")
    return f"{text} (default {field.default}{unit})"


def _kind(hint: Any) -> tuple[type, bool]:
    """Return (type of one value, whether there may be many) of a field's annotation."""
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(arg for arg in get_args(hint) if arg is not type(None))
    if get_origin(hint) in (tuple, list):
        return get_args(hint)[0], True
    if hint not in (bool, int, float, str, Path):
        raise TypeError(f"a configuration field cannot be {hint}")
    return hint, False


def _flag(field: str) -> str:
    return f"--{field.replace('_', '-')}"


def _variable(field: str) -> str:
    return ENV_PREFIX + field.upper()


def _secrets(config_class: type) -> list[str]:
    fields = dataclasses.fields(cast("Any", config_class))
    return [field.name for field in fields if field.metadata.get("secret")]


def _shown(config: object, parser: _Parser) -> str:
    lines = []
    for field in dataclasses.fields(cast("Any", config)):
        value = getattr(config, field.name)
        if field.metadata.get("hidden"):
            continue
        plain = list(value) if isinstance(value, tuple) else value
        if field.metadata.get("secret") and value is not None:
            plain = "***"
        plain = str(plain) if isinstance(plain, Path) else plain
        text = yaml.safe_dump(plain, default_flow_style=True).removesuffix("...\n").strip()
        default = not field.metadata.get("positional") and value == field.default
        source = "default" if default else parser.source_of(field.name)
        if field.metadata.get("positional"):
            source = "argument"
        lines.append(f"{field.name.replace('_', '-')}: {text}  # {source}\n")
    return "".join(lines)
