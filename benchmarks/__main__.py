"""Time ours against a bare torchvision loop of the same model and data, and check low precision.

python -m benchmarks [--only training,evaluation] [--device cuda] [--small] ...
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.options import Options
from med_sslal.cli.args import add_options
from med_sslal.cli.errors import run_reported

TIMINGS = ("training", "evaluation", "scoring", "loader", "coco", "froc")
CHECKS = ("switches", "refined", "students", "precision", "drift")

_OURS = """\
the config of ours:
  -d --device DEVICE  cpu, cuda or GPU numbers such as 2,3; in place of n_gpu
  --set KEY=VALUE  any key of ours, such as trainer.grad_clip=10; repeatable
  --switch KEY=VALUE  what --only switches compares ours with, one after the other; repeatable
"""

# What stands where an option is not given: plainly, and with `--small`.
SIZES = {
    "pairs": (12, 1),
    "image_size": (192, 64),
    "batch_size": (8, 2),
    "steps": (4, 1),
    "patients": (8, 3),
    "train_steps": (100, 2),
    "eval_images": (10_000, 20),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write; returns the exit code."""
    args = parser().parse_args(argv)

    def run() -> int:
        # torch takes seconds to load, and `--help` must not wait.
        from benchmarks.report import benchmark

        return benchmark(options_of(args), args.only, args.out)

    return run_reported(run)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    text = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=text, allow_abbrev=False
    )
    _add_what_and_model(parser)
    _add_data(parser)
    return parser


def _add_what_and_model(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what to do")
    what.add_argument(
        "--only",
        type=_parts,
        default=TIMINGS,
        metavar="PART,...",
        help=f"some of {', '.join(TIMINGS)} (default all of these); and, when asked for: switches "
        "(ours against ours under each --switch), refined (scoring passes of a trained model with "
        "refined_boxes against without), students (a student's step, offline and with a mean "
        "teacher, against a supervised one of as many images), precision (the boxes and AP50 of "
        "one model in fp32 and low precision), drift (scores and selection at batch sizes 1, 3 "
        "and 8)",
    )
    what.add_argument("--pairs", type=_count, metavar="N", help="pairs of timings (12)")
    what.add_argument("--out", type=Path, metavar="FILE", help="write the results as JSON too")
    what.add_argument(
        "--small", action="store_true", help="tiny sizes where none are given: a trial"
    )
    model = parser.add_argument_group("the model")
    model.add_argument(
        "--backbone",
        choices=("resnet18", "resnet34", "resnet50", "resnet101"),
        default="resnet18",
        help="with a feature pyramid; random weights (default resnet18)",
    )
    model.add_argument(
        "--norm",
        choices=("frozen", "batch", "group"),
        default="batch",
        help="frozen as with pretrained weights, where 3 stages learn (default batch)",
    )
    model.add_argument(
        "--full",
        action="store_true",
        help="torchvision's own RPN and box head (2000 and 1000 proposals, 512 RoIs, width 1024) "
        "in place of those of config.json",
    )
    model.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16", "auto"),
        default="auto",
        help="of ours (default auto: bf16 where the hardware computes it)",
    )
    model.add_argument(
        "--bare-precision",
        choices=("fp32", "bf16", "fp16"),
        default="fp32",
        help="of the bare loop, by autocast around it (default fp32)",
    )
    add_options(parser, _OURS)


def _add_data(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("the data: the phantom, made anew")
    data.add_argument("--image-size", type=_count, metavar="S", help="side (192)")
    data.add_argument("--batch-size", type=_count, metavar="B", help="images (8)")
    data.add_argument("--steps", type=_count, metavar="N", help="batches in each timing (4)")
    data.add_argument("--patients", type=_count, metavar="N", help="about 6 images each (8)")
    data.add_argument(
        "--workers", type=int, default=0, metavar="N", help="loader processes of both sides (0)"
    )
    data.add_argument(
        "--in-memory",
        action="store_true",
        help="load the batches once, so that training, evaluation and scoring time the model",
    )
    data.add_argument(
        "--train-steps",
        type=_count,
        metavar="N",
        help="steps that refined, precision and drift train their model for (100)",
    )
    data.add_argument(
        "--eval-images",
        type=_count,
        metavar="N",
        help="images of 100 detections for froc, and a tenth of them for coco (10000)",
    )


def options_of(args: argparse.Namespace) -> Options:
    """What to measure with, by default or tiny sizes where none are given."""
    given = {name: value for name, value in vars(args).items() if value is not None}
    sizes = {name: pair[args.small] for name, pair in SIZES.items()}
    names = Options.__dataclass_fields__
    return Options(**{name: value for name, value in {**sizes, **given}.items() if name in names})


def _parts(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    known = (*TIMINGS, *CHECKS)
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"takes some of {', '.join(known)}; found '{name}'")
    return names


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"takes a whole number of 1 or more; found '{text}'")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
