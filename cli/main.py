"""The console command: finds the subcommand and imports nothing that another one needs."""

import os
import sys
from collections.abc import Callable, Sequence

_COMMANDS = {
    "serve": "front door and workers on this machine, in one command",
    "frontend": "the front door: KServe over gRPC, OpenAI over HTTP",
    "worker": "one model's engine behind KServe",
    "router": "the router alone, behind a worker's interface",
    "gateway": "the OpenAI front alone, in front of any KServe server",
    "chat": "talk to a model, in a terminal or through pipes",
    "status": "what a front door serves, with which workers and under which load",
    "bench": "a quick load on a server, and how fast it answers",
}
_FAILED_EXIT = 1
_USAGE_EXIT = 2
_INSTALL = (
    "`penstock serve` and `penstock worker` need `pip install 'penstock[worker-cpu]'`, or "
    "'penstock[worker]' for a GPU; without an engine, try --engine=sim"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `penstock ARGUMENTS`; returns the exit code (docs/operations.md has the table)."""
    args = list(sys.argv[1:] if argv is None else argv)
    is_child = args[:1] == ["--parent-pid"]
    if is_child:
        from runtime.process import die_with_parent

        die_with_parent(int(args[1]))
        args = args[2:]
    if os.getpid() == 1:
        from runtime.process import end_on_sigterm

        end_on_sigterm()
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
    return _run(args[0], args[1:])


def _run(name: str, args: Sequence[str]) -> int:
    try:
        return _command(name)(args)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Nobody reads the output any more. What is left of it would fail once more at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Exception, BaseExceptionGroup) as error:
        explained = _explained(error)
        if explained is None:
            raise
        import logging

        logging.getLogger(__name__).debug("what led to the error", exc_info=error)
        return _complain(*explained)


def _explained(error: BaseException) -> tuple[str, int] | None:
    """Return (what to tell, exit code) of a failure that a person can act on."""
    from runtime.errors import InvalidConfig, ModelNotFound, ServingError
    from runtime.supervisor import ChildFailed

    if isinstance(error, BaseExceptionGroup):
        known = error.subgroup((ServingError, ModuleNotFoundError, MemoryError, OSError))
        return None if known is None else _explained(known.exceptions[0])
    match error:
        case ChildFailed():
            return error.message, error.exit_code
        case InvalidConfig() | ModelNotFound():
            return error.message, _USAGE_EXIT
        case ServingError():
            return error.message, _FAILED_EXIT
        case ModuleNotFoundError(name=str(name)):
            return f"{name} is not installed: {_INSTALL}", _USAGE_EXIT
        case MemoryError():
            return "out of memory: free some, or take a smaller model", _FAILED_EXIT
        case OSError(strerror=str(cause)):
            return f"{error.filename}: {cause}" if error.filename else cause, _FAILED_EXIT
    return None


def _command(name: str) -> Callable[[Sequence[str]], int]:
    """Import `cli/NAME.py` and return its function of that name."""
    from importlib import import_module

    command: Callable[[Sequence[str]], int] = getattr(import_module(f"cli.{name}"), name)
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
    from runtime.logs import error_line

    print(error_line(message), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
