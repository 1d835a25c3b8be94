"""Make a phantom: synthetic CT in DeepLesion's own files, for tests and trials without the data."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to `parser`."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    parser.add_argument(
        "--patients", type=int, default=120, metavar="N", help="about 6 images each (default 120)"
    )
    parser.add_argument(
        "--size", type=int, default=160, metavar="S", help="pixels of 0.8 mm a side (default 160)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="K", help="same seed, same bytes (default 0)"
    )
    parser.add_argument(
        "--hidden-fraction",
        type=float,
        default=0.0,
        metavar="F",
        help="share of lesions left unmarked, as in the real data (default 0)",
    )


def run(args: argparse.Namespace) -> int:
    """Make the phantom that `args` describes; returns the exit code."""
    # Here: `--help` of any command must not wait for OpenCV.
    from med_sslal.logger.logger import setup_logging
    from med_sslal.phantom.dataset import make

    setup_logging(1)
    make(
        args.out,
        patients=args.patients,
        size=args.size,
        seed=args.seed,
        hidden_fraction=args.hidden_fraction,
    )
    print(f"{args.out}: a phantom of {args.patients} patients (synthetic, see PHANTOM.txt)")
    print("Use it with dataset type DeepLesion and this folder as dataset.args.root.")
    return 0
