"""`med-sslal COMMAND`, which is `python -m med_sslal COMMAND`."""

import argparse
import sys
from collections.abc import Sequence
from types import ModuleType

from med_sslal.cli import criteria, download, phantom, report, select, study
from med_sslal.cli.errors import run_reported


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m med_sslal",
        description="Tools around training: data sets, criteria, selections.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    modules: dict[str, ModuleType] = {
        "criteria": criteria,
        "select": select,
        "study": study,
        "report": report,
        "phantom": phantom,
        "download": download,
    }
    for name, module in modules.items():
        text = (module.__doc__ or "").split("\n")[0]
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    return run_reported(lambda: args.run(args))


def console() -> int:
    """`med-sslal`: what `python -m` does, which finds a user's modules in the working folder."""
    sys.path.insert(0, "")
    return main()


if __name__ == "__main__":
    sys.exit(main())
