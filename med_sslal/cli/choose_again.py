"""The work of `python -m med_sslal select`: from a record on disk to an explained selection."""

import re
import shutil
import sys
from argparse import Namespace
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from med_sslal.al.al_helpers import ActiveLearningHelper
from med_sslal.al.record import PoolRecord
from med_sslal.al.restrict import slice_positions
from med_sslal.al.select import query_record
from med_sslal.al.selection_io import read_selection, write_selection
from med_sslal.al.stages import unused_defaults
from med_sslal.base.types import Selection
from med_sslal.cli.origin import NoImagesError, Origin, check_model, find_dataset, find_record
from med_sslal.config.parse_config import ConfigParser
from med_sslal.config.signature import convert_arguments, wrong_arguments
from med_sslal.report.selection import draw_selection, selection_table
from med_sslal.trainer.run_folder import ResultFolder
from med_sslal.utils.errors import ConfigError, UserError

# Arguments of the helper that an option of the same name replaces.
OVERRIDES = (
    "candidate_factor",
    "max_per_group",
    "suppress_adjacent",
    "aggregate",
    "empty_images",
    "budget_unit",
)
# What a criterion cannot take over from another one.
OF_CRITERION = ("aggregate", "empty_images")
_OPTIONS = {"al_criterion": "--criterion", "budget_num": "--budget"}


def choose_again(args: Namespace) -> int:
    """Choose from a record, write the selection and pictures of it, and explain it on stdout.

    Args:
        args: What `cli.select.add_arguments` describes.

    Returns:
        The exit code.

    Raises:
        UserError: Anything that the user can mend; nothing is left behind then.
    """
    if args.first < 0:
        raise ConfigError(f"--first: found {args.first}; allowed: 0 (no pictures) or more")
    if len(args.criterion or []) != 1 or args.budget is None:
        raise ConfigError(
            "give one --criterion (a JSON list combines several) and --budget, or --explain"
        )
    criterion = args.criterion[0]
    origin = find_record(args.record)
    record = PoolRecord.open(origin.record)
    notes = [check_model(record, origin)]
    helper = make_helper(args, origin.config, criterion)
    images = None
    if args.first or helper.suppress_adjacent is not None:
        try:
            instead = "--first 0 chooses without pictures"
            images = find_dataset(record, origin, instead).images
        except NoImagesError as reason:
            notes.append(f"no pictures: {reason}")
            if helper.suppress_adjacent is not None:
                raise ConfigError(
                    f"suppress_adjacent needs the data, which says where slices lie, but {reason}; "
                    "--suppress-adjacent null chooses without"
                ) from reason
    cycle = origin.number if args.cycle is None else args.cycle
    num_cycles = 1 if origin.config is None else origin.config.get("al_settings.num_cycles")
    helper = helper.at(cycle, num_cycles)
    positions = None if images is None else slice_positions(images.infos)
    selection = query_record(helper, record, cycle, positions)
    own = _own_selection(origin)
    out = ResultFolder(make_folder(args.out, origin, selection))
    try:
        write_selection(out.selection, selection, cycle, record.header)
        if images is not None and args.first:
            draw_selection(selection, record, images, out.pictures, first=args.first)
    except UserError:
        shutil.rmtree(out.path)
        raise
    table = selection_table(selection, record, cycle, own)
    sys.stdout.write("\n".join([table, *filter(None, notes), f"results: {out.path}", ""]))
    return 0


def make_helper(
    args: Namespace, config: ConfigParser | None, criterion: Any
) -> ActiveLearningHelper:
    """The strategy: the run's, with what the command line puts in its place.

    Args:
        args: The command line.
        config: The run's config, None outside of a run.
        criterion: The first stage, as `al_criterion` has it.

    Raises:
        ConfigError: A value is wrong.
    """
    given = vars(args)
    cls: type[ActiveLearningHelper] = ActiveLearningHelper
    own: dict[str, Any] = {"init_num": 1, "al_criterion": []}
    if config is not None:
        cls, own = config.init_class("al_settings"), config["al_settings"]["args"]
    # What was said for all criteria holds for those that the run used, where they take it.
    used = [own, *(own.get("schedule") or [])]
    others: Sequence[str] = OF_CRITERION
    if any((entry.get("al_criterion") or [])[:1] == [criterion] for entry in used):
        others = unused_defaults([criterion], {name: own.get(name) for name in OF_CRITERION})
    own = {name: value for name, value in own.items() if name not in others}
    stages = [criterion] if args.selector is None else [criterion, args.selector]
    changes: dict[str, Any] = {"al_criterion": stages}
    if args.budget is not None:
        changes["budget_num"] = args.budget
    if own.get("schedule"):
        changes["schedule"] = None
    changes |= {name: given[name] for name in OVERRIDES if name in given}
    problems = wrong_arguments(cls, {**own, **changes}, provided=("seed",))
    if problems:
        raise ConfigError(
            "; ".join(
                f"{_OPTIONS.get(name, '--' + name.replace('_', '-'))}: {message}"
                for name, message, _ in problems
            )
        )
    seed = args.seed
    if seed is None:
        seed = 0 if config is None else config["seed"]
    return cls(**convert_arguments(cls, {**own, **changes}), seed=seed)


def make_folder(out: Path | None, origin: Origin, selection: Selection) -> Path:
    """Make the folder of the outcome.

    Raises:
        UserError: It cannot be made, or is there and not empty.
    """
    if out is None:
        names = "_".join(re.sub(r"[^\w.-]+", "_", name) for name in selection.criteria)
        out = origin.home / f"select_{names}_{datetime.now():%Y%m%d_%H%M%S}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        taken = any(out.iterdir())
    except OSError as error:
        raise UserError(f"cannot make the folder {out}: {error.strerror or error}") from error
    if taken:
        raise UserError(f"the folder {out} is not empty: name another one with --out")
    return out


def _own_selection(origin: Origin) -> Selection | None:
    """What the run itself chose from the record, None outside of a run or before it did."""
    if origin.cycle is None or not origin.cycle.queried:
        return None
    return read_selection(origin.cycle.selection)
