"""`med-sslal COMMAND`, which is `python -m med_sslal COMMAND`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from med_sslal.cli import args as arguments
from med_sslal.cli import criteria, download, phantom, report, select, study
from med_sslal.cli.errors import run_reported


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    started, program = Path(sys.argv[0]).name, "python -m med_sslal"
    if started == "med-sslal":
        program = started
    parser = argparse.ArgumentParser(
        prog=program,
        description="Train and evaluate detectors; data sets, criteria, selections, reports.",
        allow_abbrev=False,
    )
    # train.py and test.py are doors to one command each.
    door = f"python {started}" if started in ("train.py", "test.py") else None
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser(
        "train", prog=door, help=arguments.TRAIN, description=arguments.TRAIN, allow_abbrev=False
    )
    arguments.add_train_arguments(train)
    train.set_defaults(run=lambda args: _train(arguments.complete_train_args(args, train)))
    test = commands.add_parser(
        "test", prog=door, help=arguments.TEST, description=arguments.TEST, allow_abbrev=False
    )
    arguments.add_test_arguments(test)
    test.set_defaults(run=_test)
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


def _train(args: argparse.Namespace) -> int:
    # Here, as in all commands: torch takes seconds to load, and `--help` must not wait.
    from med_sslal.cli.train import train

    return train(args)


def _test(args: argparse.Namespace) -> int:
    from med_sslal.cli.test import test

    return test(args)


def console() -> int:
    """`med-sslal`: what `python -m` does, which finds a user's modules in the working folder."""
    sys.path.insert(0, "")
    return main()


if __name__ == "__main__":
    sys.exit(main())
