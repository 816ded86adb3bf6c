"""The command line, `carseg` or `python -m carseg`: what is done with a pipeline as a whole."""

from __future__ import annotations

import argparse
from pathlib import Path

from carseg import __version__
from carseg.errors import run


def main() -> None:
    """Run the command that the arguments name; what the user can mend ends in one line."""
    parser = argparse.ArgumentParser(prog="carseg", description=__doc__)
    parser.add_argument("--version", action="version", version=f"carseg {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser(
        "crossval", help="train once a fold, so that every photo is judged by a net new to it"
    )
    command.add_argument(
        *("--set-param", "-S"),
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a parameter for this run, as in dvc exp run",
    )
    command.add_argument(
        "--out", type=Path, default=Path("crossval"), metavar="DIR", help="results [crossval]"
    )
    command.set_defaults(start=_crossval)

    arguments = parser.parse_args()
    run(lambda: arguments.start(arguments))


def _crossval(arguments: argparse.Namespace) -> None:
    from carseg.crossval import crossval

    crossval(arguments.set_param, arguments.out)


if __name__ == "__main__":
    main()
