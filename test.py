"""Evaluate a trained detector: `python test.py -r PATH`.

PATH is a checkpoint, a run folder (its last finished cycle's best model) or `latest`.
"""

import sys

from med_sslal.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["test", *sys.argv[1:]]))
