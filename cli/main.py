"""The console command: finds the subcommand and imports nothing that another one needs."""

import sys
from collections.abc import Callable, Sequence

_COMMANDS = {
    "serve": "front door and workers on this machine, in one command",
    "frontend": "the front door: KServe over gRPC, OpenAI over HTTP",
    "worker": "one model's engine behind KServe",
    "gateway": "the OpenAI front alone, in front of any KServe server",
}
_USAGE_EXIT = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run `penstock ARGUMENTS`; returns the exit code: 2 for wrong usage, 1 for other failures."""
    args = list(sys.argv[1:] if argv is None else argv)
    is_child = args[:1] == ["--parent-pid"]
    if is_child:
        from runtime.process import die_with_parent

        die_with_parent(int(args[1]))
        args = args[2:]
    if not args or args[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if args else _USAGE_EXIT
    if args[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(f"penstock {version('penstock')}")
        return 0
    if args[0] not in _COMMANDS:
        return _complain(_no_command(args[0]), _USAGE_EXIT)
    if not is_child:
        _warn_of_unknown_variables(args[0])
    return _run(_command(args[0]), args[1:])


def _run(command: Callable[[Sequence[str]], int], args: Sequence[str]) -> int:
    from runtime.errors import InvalidConfig, ModelNotFound, ServingError

    try:
        return command(args)
    except (InvalidConfig, ModelNotFound) as error:
        return _complain(error.message, _USAGE_EXIT)
    except ServingError as error:
        return _complain(error.message, 1)
    except BaseExceptionGroup as group:
        ours = group.subgroup(ServingError)
        if ours is None:
            raise
        first: BaseException = ours
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        wrong_usage = isinstance(first, InvalidConfig | ModelNotFound)
        return _complain(str(first), _USAGE_EXIT if wrong_usage else 1)
    except KeyboardInterrupt:
        return 130


def _command(name: str) -> Callable[[Sequence[str]], int]:
    if name == "serve":
        from cli.serve import serve as command
    elif name == "frontend":
        from cli.frontend import frontend as command
    elif name == "worker":
        from cli.worker import worker as command
    else:
        from cli.gateway import gateway as command
    return command


def _warn_of_unknown_variables(command: str) -> None:
    from cli.config_classes import SETUP_VARIABLES, config_classes
    from runtime.config import unknown_variables

    for line in unknown_variables(config_classes(command), others=SETUP_VARIABLES):
        print(f"penstock: warning: {line}", file=sys.stderr)


def _no_command(name: str) -> str:
    from runtime.config_option import nearest

    near = nearest(name, _COMMANDS)
    hint = f"did you mean {near!r}?" if near else "see penstock --help"
    return f"there is no command {name!r}; {hint}"


def _overview() -> str:
    lines = [f"  {name:<10} {text}" for name, text in _COMMANDS.items()]
    return (
        "usage: penstock COMMAND [options]\n\n"
        "KServe v2 inference server for language models.\n\n"
        "commands:\n" + "\n".join(lines) + "\n\npenstock COMMAND --help lists a command's options"
    )


def _complain(message: str, code: int) -> int:
    print(f"penstock: error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
