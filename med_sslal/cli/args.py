"""The command lines of train.py and test.py. No torch here: `--help` answers at once."""

import argparse
import re
from collections.abc import Callable
from typing import Any

from med_sslal.config.overrides import Override, json_or_text, parse_set
from med_sslal.config.schema import Name
from med_sslal.config.values import describe, fits
from med_sslal.utils.errors import ConfigError

_TRAIN_EXAMPLES = """\
examples:
  python train.py -c config.json                             start a run
  python train.py -c config.json --device cpu --lr 1e-3      ... with other values
  python train.py -c config.json --set trainer.epochs=3      ... of any key
  python train.py --resume latest                            go on with the newest run
  python train.py -c config.json --init-from best.pth        fine-tune from a checkpoint's weights
  python train.py -c config.json --print-config              show what the config means
"""
_TEST_EXAMPLES = """\
examples:
  python test.py -r latest                                   the newest run's last best model
  python test.py -r exp_results/name/20260101_120000_s0      a run folder
  python test.py -r .../cycle_02/model_best.pth -d cpu       one checkpoint, on the CPU
"""


TRAIN = "Train a detector with few labels, cycle by cycle."
TEST = "Evaluate a checkpoint with its run's own config; results go to <run>/<split>_<time>/."


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of train.py; `complete_train_args` checks what belongs together."""
    _add_examples(parser, _TRAIN_EXAMPLES)
    start = parser.add_argument_group("what to run (one of -c and -r)")
    start.add_argument("-c", "--config", metavar="FILE", help="config of a new run")
    start.add_argument(
        "-r",
        "--resume",
        metavar="PATH",
        help="go on with a run in its own folder: a checkpoint, a run folder or 'latest'",
    )
    start.add_argument(
        "--init-from",
        metavar="CHECKPOINT",
        help="start a new run from the weights of a checkpoint (fine-tuning)",
    )
    start.add_argument(
        "--cycle0-from",
        metavar="RUN",
        help="take over the training of cycle 0 from another run that differs in strategy only",
    )
    start.add_argument(
        "--run-id", type=_run_id, metavar="NAME", help="last part of the run folder's path"
    )
    values = parser.add_argument_group("values in place of the config's")
    add_device(values)
    add_overrides(
        values, "any key, such as trainer.epochs=3; the value is JSON, else text; repeatable"
    )
    _add_override(values, "--lr", "LR", "learning rate: optimizer.args.lr", _learning_rate)
    _add_override(values, "--bs", "N", "batch size: batch_size", _batch_size)
    instead = parser.add_argument_group("instead of a training").add_mutually_exclusive_group()
    instead.add_argument(
        "--print-config",
        action="store_true",
        help="print the config with all defaults and its differences to them",
    )
    instead.add_argument(
        "--help-config",
        action="store_true",
        help="print every key of a config with type, default and meaning",
    )
    instead.add_argument(
        "--dry-run",
        action="store_true",
        help="build everything, try one batch of each kind and one selection, leave nothing",
    )


def complete_train_args(
    args: argparse.Namespace, parser: argparse.ArgumentParser
) -> argparse.Namespace:
    """Check what belongs together; the parser ends the program where the words do not.

    Returns:
        config, resume, init_from, cycle0_from, run_id, device (str or None each); overrides (list
            of Override, those of --lr and --bs among them, `--device` left out); print_config,
            help_config, dry_run.
    """
    if args.help_config:
        return args
    if (args.config is None) == (args.resume is None):
        parser.error("give one of -c FILE (a new run) and -r PATH (go on with a run)")
    if args.resume is not None:
        for option in ("init_from", "cycle0_from", "run_id"):
            if getattr(args, option) is not None:
                name = f"--{option.replace('_', '-')}"
                parser.error(f"{name} starts a new run with -c; --resume goes on with one")
        if args.dry_run:
            parser.error("--dry-run tries a new run with -c; --resume goes on with one")
    if args.cycle0_from is not None and args.init_from is not None:
        parser.error("--cycle0-from takes over the initial weights too: leave --init-from out")
    return args


def add_test_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of test.py."""
    _add_examples(parser, _TEST_EXAMPLES)
    parser.add_argument(
        "-r",
        "--resume",
        metavar="PATH",
        required=True,
        help="a checkpoint, a run folder (its last finished cycle's best model) or 'latest'",
    )
    parser.add_argument(
        "--split", choices=("test", "val"), default="test", help="images to evaluate on"
    )
    add_device(parser)


def _add_examples(parser: argparse.ArgumentParser, examples: str) -> None:
    parser.epilog = examples
    parser.formatter_class = argparse.RawDescriptionHelpFormatter


def add_overrides(
    parser: argparse._ActionsContainer,
    meaning: str,
    *,
    option: str = "--set",
    dest: str = "overrides",
) -> None:
    """Add `--set KEY=VALUE` with its help text; `overrides` gets a list of Override."""
    _add_override(parser, option, "KEY=VALUE", meaning, _set, dest)


def _add_override(
    parser: argparse._ActionsContainer,
    option: str,
    metavar: str,
    meaning: str,
    read: Callable[[str], Override],
    dest: str = "overrides",
) -> None:
    parser.add_argument(
        option, dest=dest, action="append", type=read, default=[], metavar=metavar, help=meaning
    )


def add_device(parser: argparse._ActionsContainer) -> None:
    """Add `--device`."""
    parser.add_argument(
        "-d",
        "--device",
        type=_device,
        help="cpu, cuda or GPU numbers such as 2,3; in place of n_gpu",
    )


def _device(text: str) -> str:
    numbers = text.split(",")
    if text in ("cpu", "cuda"):
        return text
    if not all(re.fullmatch("[0-9]+", number) for number in numbers):
        raise argparse.ArgumentTypeError(
            f"takes cpu, cuda or GPU numbers such as 2,3; found '{text}'"
        )
    if len({int(number) for number in numbers}) < len(numbers):
        raise argparse.ArgumentTypeError(f"names a GPU twice: '{text}'")
    return text


def _set(text: str) -> Override:
    try:
        return parse_set(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("--set ")) from error


# What the two may be is the config's rule, and told with its other problems.
def _learning_rate(text: str) -> Override:
    try:
        rate: Any = float(text)
    except ValueError:
        rate = text
    return Override("--lr", ("optimizer", "args", "lr"), rate)


def _batch_size(text: str) -> Override:
    return Override("--bs", ("batch_size",), json_or_text(text))


def _run_id(text: str) -> str:
    if not fits(text, Name):
        raise argparse.ArgumentTypeError(f"found '{text}'; allowed: {describe(Name)}")
    return text
