"""`python -m benchmarks.routing`: the command on its own."""

import argparse
import sys

from benchmarks.routing import command


def main() -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.routing", description=command.__doc__
    )
    command.add_arguments(parser)
    return command.run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
