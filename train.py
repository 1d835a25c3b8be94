"""Train a detector with few labels: `python train.py -c config.json`, or `--resume PATH`.

config.json -> data set split by patient -> pool
  each cycle: train -> evaluate -> score the pool once -> select -> label -> pseudo-label
  end:        a table, pictures and everything on disk in the run folder

It is a door: med_sslal/cli/train.py builds config, data, detector, strategy and run in one view.
"""

import sys

from med_sslal.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
