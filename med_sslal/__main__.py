"""`med-sslal COMMAND`, which is `python -m med_sslal COMMAND`."""

import sys
from collections.abc import Sequence
from importlib import import_module

from med_sslal.cli.args import parse
from med_sslal.cli.errors import run_reported


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    args = parse(argv)
    # A word of Python is no name of a module.
    name = {"import": "import_answers"}.get(args.command, args.command)
    # A command's module is imported here: torch takes seconds, and `--help` must not wait.
    return run_reported(lambda: import_module(f"med_sslal.cli.{name}").run(args))


def console() -> int:
    """`med-sslal`: what `python -m` does, which finds a user's modules in the working folder."""
    sys.path.insert(0, "")
    return main()


if __name__ == "__main__":
    sys.exit(main())
