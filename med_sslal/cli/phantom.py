"""Make a phantom: synthetic CT in DeepLesion's own files, for tests and trials without the data."""

from argparse import Namespace

from med_sslal.logger.logger import setup_logging
from med_sslal.phantom.dataset import make


def run(args: Namespace) -> int:
    """Make the phantom that `args` describes; returns the exit code."""
    setup_logging(1)
    how = {name: vars(args)[name] for name in ("patients", "size", "seed", "hidden_fraction")}
    make(args.out, **how)
    print(f"{args.out}: a phantom of {args.patients} patients (synthetic, see PHANTOM.txt)")
    print("Use it with dataset type DeepLesion and this folder as dataset.args.root.")
    return 0
