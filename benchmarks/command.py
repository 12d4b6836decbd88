"""The frame of a command that measures: its parser, the state of its process, and how its report is printed."""

import argparse
import sys
from collections.abc import Iterable, Sequence

from seqpyramid.errors import UserError
from seqpyramid.train.launch import tune_process


def command_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Make a parser whose help begins with the module's own text as it stands.

    Args:
        name: of the module.
        description: its docstring.
    """
    return argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_recipe_and_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--recipe`` and ``--device``."""
    parser.add_argument("--recipe", default="pmnist", help="whose models (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or auto (default: %(default)s)")


def add_models(parser: argparse.ArgumentParser, default: Sequence[str], what: str) -> None:
    """Add ``--models``, names of rows."""
    parser.add_argument(
        "--models",
        nargs="+",
        default=list(default),
        metavar="ROW[:OPTION=VALUE]",
        help=f"{what} (default: {' '.join(default)})",
    )


def add_numbers(parser: argparse.ArgumentParser, **numbers: tuple[int, str]) -> None:
    """Add an option for each positive number: name = (default, what it is)."""
    for name, (default, what) in numbers.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=positive,
            default=default,
            metavar="N",
            help=f"{what} (default: %(default)s)",
        )


def positive(text: str) -> int:
    """Read a number of the command line that is at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


def print_report(parts: Iterable[str], *, tuned: bool = True) -> int:
    """Print a report part by part as it is measured; return the exit code.

    Args:
        parts: of the report; nothing of them is measured before the process is set up.
        tuned: whether the process gets the state in which ``seqpyramid train`` runs, for good.
    """
    if tuned:
        tune_process()
    try:
        for part in parts:
            print(part, flush=True)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.code
    return 0
