"""ConfigArgParse with our names, our wording, and the place that each value came from."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import configargparse

from runtime.config_file import ConfigFile
from runtime.config_option import Option, nearest, plain
from runtime.errors import InvalidConfig

CONFIG = Option(
    name="config",
    kind=str,
    many=False,
    default=None,
    metavar="FILE",
    help="YAML file with any of these options as keys",
)
_PRECEDENCE = "A flag wins over a [VARIABLE], a variable over the file, the file over the default."
_SWITCH_WORDS = ("true", "yes", "on", "1", "false", "no", "off", "0")
_METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
_ARGPARSE_SAYS = {"expected one": "needs a value", "ignored explicit": "takes no value"}


class ConfigParser(configargparse.ArgumentParser):  # type: ignore[misc]
    """Reads the values that are given anywhere. Raises InvalidConfig instead of exiting.

    `rest_for` names what the arguments behind `--` are for, if there may be any.
    """

    def __init__(
        self,
        options: Sequence[Option],
        *,
        prog: str,
        description: str,
        examples: Sequence[str],
        rest_for: str,
    ) -> None:
        self._file = ConfigFile([option.key for option in options])
        shown = "".join(f"\n  {example}" for example in examples)
        super().__init__(
            prog=prog,
            usage=_usage(prog, options, rest_for),
            description=description,
            epilog=_PRECEDENCE + (f"\n\nexamples:{shown}" if examples else ""),
            config_file_open_func=Path,
            config_file_parser_class=self._file,
            add_config_file_help=False,
            add_env_var_help=False,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self._options = {option.name: option for option in options}
        self._by_argparse_name: dict[str, Option] = {}
        self._sources: dict[str, str] = {}
        self._rest_for = rest_for
        self._add(self, CONFIG, is_config_file_arg=True)
        self.add_argument(
            "--print-config",
            action="store_true",
            help="check everything, show each value and where it comes from, and exit",
        )
        groups: dict[str | None, Any] = {None: self}
        for option in options:
            if option.group not in groups:
                groups[option.group] = self.add_argument_group(option.group)
            self._add(groups[option.group], option)

    def read(
        self, argv: Sequence[str], environment: Mapping[str, str]
    ) -> tuple[dict[str, Any], bool]:
        """Return the values that are given, and whether they are only to be shown."""
        flags = {argument.partition("=")[0] for argument in argv}
        for option in self._options.values():
            if not option.has_flag and option.flag in flags:
                raise self.wrong(option, "a secret is not for the command line, which others see")
        namespace, extra = self.parse_known_args(argv, env_vars=environment)
        values = vars(namespace)
        if extra:
            raise self._unexpected(extra)
        if values["config"] == "":
            raise self.wrong(CONFIG, CONFIG.broken_by(""))
        given = {}
        for option in self._options.values():
            value = values[option.name]
            if option.positional and values[_argument(option)]:
                value = values[_argument(option)]
                self._sources[option.name] = "argument"
            if value is not None:
                given[option.name] = tuple(value) if option.many else value
                self._sources.setdefault(option.name, option.flag)
            elif option.positional:
                raise self.wrong(option, f"missing ({option.help})")
        return given, values["print_config"]

    def source_of(self, option: Option) -> str:
        """Return where a value came from."""
        return self._sources.get(option.name, "default")

    def wrong(self, option: Option, problem: str) -> InvalidConfig:
        """Return an error about a value: the option, the problem, and where the value came from."""
        source = self._sources.get(option.name)
        where = f" ({source})" if source not in (None, "argument", option.flag) else ""
        return InvalidConfig(f"{option.label}: {problem}{where}", param=option.name)

    def located(self, error: InvalidConfig) -> InvalidConfig:
        """Return the error of a configuration's own check with the option that it is about."""
        option = self._options.get(error.param or "")
        return self.wrong(option, error.message) if option else error

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found."""
        name, _, problem = message.removeprefix("argument ").partition(": ")
        option = self._by_argparse_name.get(name)
        if option is None:
            raise InvalidConfig(message)
        for start, meaning in _ARGPARSE_SAYS.items():
            if problem.startswith(start):
                problem = meaning
        raise self.wrong(option, problem)

    def get_possible_config_keys(self, action: argparse.Action) -> list[str]:
        """Return an option's key, also with underscores; nothing else can be set in a file."""
        option = self._options.get(action.dest)
        return [option.key, option.name] if option else []

    def convert_item_to_command_line_arg(
        self, action: argparse.Action, key: str, value: str | list[str]
    ) -> list[str]:
        """Turn a variable or a key into a flag, as ConfigArgParse does, after a look at it."""
        option = self._options.get(action.dest, CONFIG)
        from_variable = key == option.variable
        self._sources[option.name] = (
            f"environment variable {key}" if from_variable else f"key '{key}' in {self._file.path}"
        )
        if isinstance(value, list):
            if not option.many:
                raise self.wrong(option, "takes one value, not a list")
        elif option.kind is bool and value.lower() not in _SWITCH_WORDS:
            raise self.wrong(option, option.broken_by(value))
        args: list[str] = super().convert_item_to_command_line_arg(action, key, value)
        return args

    def _add(self, group: Any, option: Option, **extra: Any) -> None:
        shown = option.has_flag and not option.hidden
        text = _help(option) if shown else argparse.SUPPRESS
        if option.positional:
            nargs = "*" if option.many else "?"
            self._name(
                group.add_argument(
                    _argument(option),
                    metavar=option.metavar, nargs=nargs, type=option.read, help=text,
                ),
                option,
            )  # fmt: skip
            # Its flag is what makes ConfigArgParse look for a variable and a key.
            text = argparse.SUPPRESS
        if option.kind is bool:
            extra["action"] = argparse.BooleanOptionalAction if option.off_flag else "store_true"
        else:
            extra["action"] = "append" if option.many else "store"
            extra["metavar"] = option.metavar or _metavar(option)
            # ConfigArgParse itself reads the file's name, and copes with no error in that.
            extra["type"] = None if option is CONFIG else option.read
        # No default: what is not None has been given.
        action = group.add_argument(
            option.flag, default=None, env_var=option.variable, help=text, **extra
        )
        self._name(action, option)

    def _name(self, action: argparse.Action, option: Option) -> None:
        name = "/".join(action.option_strings) or str(action.metavar)
        self._by_argparse_name[name] = option

    def _unexpected(self, extra: Sequence[str]) -> InvalidConfig:
        hint = f" (what is meant for {self._rest_for} stands behind --)" if self._rest_for else ""
        flag = next((one.partition("=")[0] for one in extra if one.startswith("-")), None)
        if flag is None:
            several = [o.metavar for o in self._options.values() if o.positional and o.many]
            apart = f"; several {several[0]} stand side by side" if several else ""
            return InvalidConfig(f"unexpected argument {extra[0]!r}{apart}{hint}")
        keys = [o.key for o in self._options.values() if o.has_flag and not o.hidden]
        near = nearest(flag.strip("-").replace("_", "-"), keys)
        meant = f"; did you mean --{near}?" if near else ""
        return InvalidConfig(f"unknown flag {flag}{meant}{hint}")


def _argument(option: Option) -> str:
    """Return the name that argparse keeps a positional value by, beside that of the flag."""
    return f"{option.name} argument"


def _usage(prog: str, options: Sequence[Option], rest_for: str) -> str:
    words = [prog]
    words += [
        f"{o.metavar} [{o.metavar} ...]" if o.many else str(o.metavar)
        for o in options
        if o.positional
    ]
    words.append("[options]")
    words += [f"[-- {rest_for} arguments]"] if rest_for else []
    return " ".join(words)


def _metavar(option: Option) -> str:
    return f"{{{','.join(option.choices)}}}" if option.choices else _METAVARS[option.kind]


def _help(option: Option) -> str:
    facts = []
    if not option.positional and option.default not in (None, ()) and option.default is not False:
        facts.append(f"default {plain(option.default)} {option.unit}".rstrip())
    elif option.unit:
        facts.append(option.unit)
    if option.range:
        facts.append(option.range)
    text = f"{option.help} ({'; '.join(facts)})" if facts else option.help
    return f"{text} [{option.variable}]".replace("%", "%%")
