"""Choose again from a stored pool record, without model or GPU, and show why."""

import argparse
import json
from pathlib import Path
from typing import Any

from med_sslal.config.overrides import json_or_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to `parser`."""
    parser.add_argument(
        "--record",
        required=True,
        metavar="PATH",
        help="a record (<run>/cycle_NN/record), a cycle's folder, or a run folder or 'latest': its "
        "newest record",
    )
    parser.add_argument(
        "--criterion",
        action="append",
        type=_stage,
        metavar="NAME",
        help="see `python -m med_sslal criteria`; also JSON as the first place of al_criterion "
        'takes it, such as {"type": "entropy", "args": {"aggregate": "max"}}; with --explain it '
        "can be given several times, and left out it is the run's own",
    )
    parser.add_argument(
        "--selector", type=_stage, metavar="NAME", help="second stage, likewise (default top_k)"
    )
    parser.add_argument("--budget", type=int, metavar="B", help="images to take")
    parser.add_argument(
        "--explain",
        action="store_true",
        help="choose nothing: show what the criteria find on the validation images of the cycle, "
        "whose truth is known",
    )
    parser.add_argument(
        "--first", type=int, default=12, metavar="K", help="pictures of the first K (default 12)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where selection.json and images.png go (default a new folder in the run's)",
    )
    own = parser.add_argument_group(
        "values in place of the run's",
        "Left out, they are those of the run that the record lies in: the run's own criterion, "
        "second stage and budget then give its own selection. Another criterion takes its own "
        "defaults for --aggregate and --empty-images.",
    )
    own.add_argument("--seed", type=int, metavar="S", help="the run's seed (outside of a run 0)")
    own.add_argument("--cycle", type=int, metavar="C", help="part of the seed (outside of a run 0)")
    for name, metavar in (
        ("candidate_factor", "F"),
        ("max_per_group", "N"),
        ("suppress_adjacent", "N"),
        ("aggregate", "HOW"),
        ("empty_images", "WHERE"),
        ("budget_unit", "UNIT"),
    ):
        own.add_argument(
            f"--{name.replace('_', '-')}",
            type=json_or_text,
            default=argparse.SUPPRESS,
            metavar=metavar,
            help=f"al_settings.args.{name}; null is a value too",
        )


def run(args: argparse.Namespace) -> int:
    """Choose, write and explain, or explain alone; returns the exit code.

    Raises:
        UserError: Anything that the user can mend.
    """
    # torch takes seconds to load, and `--help` must not wait.
    if args.explain:
        from med_sslal.cli.explain import explain

        return explain(args)
    from med_sslal.cli.choose_again import choose_again

    return choose_again(args)


def _stage(text: str) -> Any:
    """A name, or the long form of a stage as JSON.

    Raises:
        argparse.ArgumentTypeError: It starts as JSON does, and is none.
    """
    if not text.lstrip().startswith(("{", "[")):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"is no JSON: {error}") from error
