"""Evaluate a trained detector: `python test.py -r PATH`.

PATH is a checkpoint, a run folder (its last finished cycle's best model) or `latest`.
"""

import sys

from med_sslal.cli.args import test_parser
from med_sslal.cli.errors import run_reported


def main() -> int:
    """Read the command line first: torch takes seconds to load, and `--help` must not wait."""
    args = test_parser().parse_args()

    def run() -> int:
        from med_sslal.cli.test import test

        return test(args)

    return run_reported(run)


if __name__ == "__main__":
    sys.exit(main())
