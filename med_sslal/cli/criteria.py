"""List the criteria and second stages, or explain one of them."""

import argparse
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to `parser`."""
    parser.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help="explain this one: formula, source and arguments; also your own package.module.Class",
    )


def run(args: argparse.Namespace) -> int:
    """Print the list, or all about one name; returns the exit code."""
    # SciPy and scikit-learn take a second to load, and `--help` must not wait.
    from med_sslal.cli.criteria_help import explain, overview

    sys.stdout.write(overview() if args.name is None else explain(args.name))
    return 0
