"""Writes docs/configuration.md from the options themselves: `make docs`."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from pkgutil import resolve_name

from cli.config_classes import CONFIG_CLASSES
from runtime.config_option import Option, options_of, plain

_INTRODUCTION = """\
# Configuration

Written by `make docs` from the code; do not edit.

Each option of a command is a flag, an environment variable, and a key of the YAML file that
`--config FILE` or `PENSTOCK_CONFIG` names. A flag wins over a variable, a variable over the file,
the file over the default. `penstock COMMAND --print-config` checks everything, starts nothing, and
prints each value with the place it comes from; what it prints is a file for `--config`.

- **The file** holds keys with one value or a list, and no others: `grpc-port: 8001`,
  `model-alias: [a, b]`. Keys may have underscores. An unknown or repeated key is an error. Values
  are taken as they are written; `null` stands for the default.
- **A variable** holds a list as `[a, b]`. An empty one is an error: a name that a script failed to
  fill in must not silently mean the default. One that no command knows has no effect but a warning.
  What Kubernetes sets for Services (`PENSTOCK_…_SERVICE_HOST`, `…_PORT=tcp://…`) is not looked at.
- **A switch** is on with its flag alone; a variable or key is `true`, `yes`, `on`, `1`, or `false`,
  `no`, `off`, `0`.
- **Secrets** are shown nowhere, and servers take them by variable or file alone: everybody on the
  machine can read a command line.
- What stands behind `--` goes to vLLM as it is, and is no part of the configuration.

A wrong value ends the start with exit code 2 and one line that names the option, the place of the
value, and what is allowed.
"""
_HEADER = f"""\
| Flag | Variable | Key | Type | Default | Allowed | Meaning |
{"|---" * 7}|
"""
_TYPES = {int: "integer", float: "number", bool: "switch", str: "text", Path: "path"}


def reference() -> str:
    """Return the page."""
    return _INTRODUCTION + "".join(
        f"\n## penstock {command}\n\n{_HEADER}" + "".join(_rows(options_of(resolve_name(where))))
        for command, where in CONFIG_CLASSES.items()
    )


def main(argv: Sequence[str]) -> None:
    """Write the page to the file that is named, or to stdout."""
    if argv:
        Path(argv[0]).write_text(reference(), encoding="utf-8")
    else:
        sys.stdout.write(reference())


def _rows(options: Sequence[Option]) -> Iterator[str]:
    group = None
    for option in options:
        if option.hidden:
            continue
        if option.group != group:
            group = option.group
            yield f"| **{group}** | | | | | | |\n"
        cells = [cell.replace("|", "\\|") for cell in _cells(option)]
        yield f"| {' | '.join(cells)} |\n"


def _cells(option: Option) -> list[str]:
    flag = f"`{option.metavar if option.positional else option.flag}`"
    if option.off_flag:
        flag += f", `{option.off_flag}`"
    if not option.has_flag:
        flag = "none"
    kind = ("list of " if option.many else "") + _TYPES[option.kind]
    return [
        flag,
        f"`{option.variable}`",
        f"`{option.key}`",
        f"{kind}, {option.unit}" if option.unit else kind,
        _default(option),
        _allowed(option),
        f"{option.help} (secret)" if option.secret else option.help,
    ]


def _allowed(option: Option) -> str:
    if option.form:
        return option.form.words
    return ", ".join(f"`{choice}`" for choice in option.choices) or option.range


def _default(option: Option) -> str:
    if option.positional:
        return "required"
    text = "" if option.default is None else plain(option.default)
    return f"`{text}`" if text else ""


if __name__ == "__main__":
    main(sys.argv[1:])
