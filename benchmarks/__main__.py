"""`python -m benchmarks [COMMAND]`; without a command it is `suite`."""

import argparse
import sys
from collections.abc import Sequence

from benchmarks import (
    gateway_speed,
    router_follow,
    router_speed,
    token_path,
    turns,
    turns_bodies,
    turns_tensors,
)
from benchmarks.overload import command as overload
from benchmarks.routing import command as routing
from benchmarks.soak import command as soak
from benchmarks.suite import command as suite

COMMANDS = {
    "suite": suite,
    "gateway": gateway_speed,
    "token-path": token_path,
    "soak": soak,
    "overload": overload,
    "routing": routing,
    "router-speed": router_speed,
    "router-follow": router_follow,
    "turns": turns,
    "turns-bodies": turns_bodies,
    "turns-tensors": turns_tensors,
}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the command's options; `run` among them is what to call with them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        about = (module.__doc__ or "").partition("\n")[0]
        command = commands.add_parser(name, help=about, description=module.__doc__)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    named = bool(argv) and (argv[0] in COMMANDS or argv[0] in ("-h", "--help"))
    return parser.parse_args(argv if named else ["suite", *argv])


def main() -> int:
    """Run one benchmark; returns its exit code."""
    options = parse(sys.argv[1:])
    code: int = options.run(options)
    return code


if __name__ == "__main__":
    sys.exit(main())
