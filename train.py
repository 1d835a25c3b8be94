"""Train a detector with few labels: `python train.py -c config.json`, or `--resume PATH`.

config.json -> data set split by patient -> pool
  each cycle: train -> evaluate -> score the pool once -> select -> label -> pseudo-label
  end:        a table, pictures and everything on disk in the run folder
"""

import sys

from med_sslal.cli.args import parse_train_args
from med_sslal.cli.errors import run_reported


def main() -> int:
    """Read the command line first: torch takes seconds to load, and `--help` must not wait."""
    args = parse_train_args()

    def run() -> int:
        from med_sslal.cli.train import train

        return train(args)

    return run_reported(run)


if __name__ == "__main__":
    sys.exit(main())
