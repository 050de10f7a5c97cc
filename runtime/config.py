"""Turns a frozen dataclass into flags, environment variables and a YAML file, and back.

The only reader of the environment. A field `grpc_port` is the flag `--grpc-port`, the variable
`PENSTOCK_GRPC_PORT` and the key `grpc-port` of the file that `--config` names; a flag wins over a
variable, a variable over the file, the file over the default.
"""

import dataclasses
import math
import os
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from runtime.config_option import ENV_PREFIX, Form, Group, Option, nearest, options_of, variable_of
from runtime.config_parser import CONFIG, ConfigParser
from runtime.errors import InvalidConfig

# What Kubernetes puts into each container for each Service: one called penstock-grpc becomes
# PENSTOCK_GRPC_PORT=tcp://…, which is no port number of ours.
_SERVICE_LINK = re.compile(r"\w+_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")
_SERVICE_URL = re.compile(r"(tcp|udp|sctp)://")
T = TypeVar("T")


def option(
    default: Any,
    *,
    help: str,  # noqa: A002 - argparse's word
    group: Group | None = None,
    unit: str = "",
    choices: Sequence[str] = (),
    form: Form | None = None,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    metavar: str | None = None,
    hidden: bool = False,
    secret: bool = False,
    secret_flag: bool = False,
) -> Any:
    """A field that is set by a flag, a variable or a key. Without a default value: `None`.

    Its type is one of bool, int, float, str, Path, each also `| None`, or tuple[str, ...], for
    which the flag may be repeated. A number lies in [`least`, `most`], or above `above`; a text is
    one of `choices`, has a `form`, or is not empty. A `secret` is shown nowhere, and has a flag
    only if `secret_flag`, since others on the machine see a command line.
    """
    metadata = {
        "help": help, "group": group, "unit": unit, "choices": tuple(choices), "form": form,
        "least": least, "above": above, "most": most, "metavar": metavar, "hidden": hidden,
        "secret": secret, "secret_flag": secret_flag,
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=metadata, repr=not secret)


def argument(*, help: str, metavar: str) -> Any:  # noqa: A002 - argparse's word
    """A positional argument: a str field takes one, a tuple[str, ...] field one or more.

    It can be given by a variable or a key of the field's name as well.
    """
    metadata = {"help": help, "metavar": metavar, "positional": True}
    return dataclasses.field(metadata=metadata)


def like(config_class: type, name: str) -> Any:
    """A field with the default and the flag of another configuration's field of this name."""
    (field,) = (f for f in dataclasses.fields(config_class) if f.name == name)
    return dataclasses.field(default=field.default, metadata=field.metadata, repr=field.repr)


def parse_config(
    config_class: type[T],
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    examples: Sequence[str] = (),
    rest_for: str = "",
    environment: Mapping[str, str] | None = None,
) -> tuple[T, list[str]]:
    """Build `config_class` from flags, environment and file.

    Returns it and what stood behind `--`, untouched; there may be something only if `rest_for`
    says whose arguments these are. `examples` are command lines for `--help`. Raises InvalidConfig
    naming the flag, variable or key that is wrong, and SystemExit(0) after `--help` and
    `--print-config`.
    """
    own, rest = _split(argv)
    options = options_of(config_class)
    parser = ConfigParser(
        options, prog=prog, description=description, examples=examples, rest_for=rest_for
    )
    given, only_shown = parser.read(own, _variables(environment))
    if rest and not rest_for:
        raise InvalidConfig(f"{prog} takes no arguments behind --")
    try:
        config = config_class(**given)
    except InvalidConfig as error:
        raise parser.located(error) from error
    if only_shown:
        sys.stdout.write("".join(_shown(one, config, parser.source_of(one)) for one in options))
        raise SystemExit(0)
    return config, rest


def as_flags(config: object, names: Sequence[str]) -> list[str]:
    """Return the command line that sets the named fields of another process's configuration.

    Secrets are left out: see `secret_variables`.
    """
    flags: list[str] = []
    options = {option.name: option for option in options_of(type(config))}
    for name in names:
        option, value = options[name], getattr(config, name)
        if option.kind is bool:
            flag = option.flag if value else option.off_flag
            flags += [flag] if flag else []
        elif value is not None and not option.secret:
            flags += [f"{option.flag}={one}" for one in (value if option.many else (value,))]
    return flags


def child_environment(*, without: Sequence[str] = ()) -> dict[str, str]:
    """Return the environment for a child process of ours: this one's, without its own file.

    Neither has it the variables of the fields `without`, which are not meant for the child.
    """
    dropped = {CONFIG.variable, *map(variable_of, without)}
    return {name: value for name, value in os.environ.items() if name not in dropped}


def secret_variables(config: object, *, without: Sequence[str] = ()) -> dict[str, str]:
    """Return the environment that hands a configuration's secrets to a child process."""
    secrets = [one for one in options_of(type(config)) if one.secret and one.name not in without]
    values = {option.variable: getattr(config, option.name) for option in secrets}
    return {name: str(value) for name, value in values.items() if value is not None}


def unknown_variables(
    config_classes: Iterable[type],
    *,
    others: Collection[str] = (),
    environment: Mapping[str, str] | None = None,
) -> list[str]:
    """Return a line about each of our variables that neither a class nor `others` know.

    The classes are taken one by one, and only while there is a variable to explain.
    """
    known = {CONFIG.variable, *others}
    given = set(_variables(environment))
    for config_class in config_classes:
        if given <= known:
            break
        known |= {option.variable for option in options_of(config_class)}
    keys = {name.removeprefix(ENV_PREFIX): name for name in known}
    lines = []
    for name in sorted(given - known):
        near = nearest(name.removeprefix(ENV_PREFIX), keys)
        hint = f"; did you mean {keys[near]}?" if near else ""
        lines.append(f"environment variable {name} is unknown and has no effect{hint}")
    return lines


def _variables(environment: Mapping[str, str] | None) -> dict[str, str]:
    environ = os.environ if environment is None else environment
    return {
        name: value
        for name, value in environ.items()
        if name.startswith(ENV_PREFIX)
        and not _SERVICE_LINK.fullmatch(name)
        and not (name.endswith("_PORT") and _SERVICE_URL.match(value))
    }


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    args = list(argv)
    if "--" not in args:
        return args, []
    at = args.index("--")
    return args[:at], args[at + 1 :]


def _shown(option: Option, config: object, source: str) -> str:
    """Return one line of YAML that sets the option to its value; a secret's is a comment."""
    value = getattr(config, option.name)
    if option.hidden and source == "default":
        return ""
    if option.secret and value not in (None, ()):
        return f"# {option.key}: '***'  # {source}\n"
    if isinstance(value, tuple):
        value = list(value)
    value = str(value) if isinstance(value, Path) else value
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=math.inf)
    text = text.removesuffix("...\n").removesuffix("\n")
    return f"{option.key}: {text}  # {source}\n"
