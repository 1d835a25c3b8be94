"""Choose again from a stored pool record, without model or GPU, and show why."""

import re
import sys
from argparse import Namespace
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from med_sslal.al.al_helpers import ActiveLearningHelper
from med_sslal.al.record import PoolRecord
from med_sslal.al.restrict import slice_positions
from med_sslal.al.select import query_record
from med_sslal.al.selection_io import read_selection, write_selection
from med_sslal.al.stages import unused_defaults
from med_sslal.cli.args import HELPER_OPTIONS
from med_sslal.cli.origin import NoImagesError, check_model, find_dataset, find_record
from med_sslal.config.parse_config import ConfigParser
from med_sslal.config.signature import convert_arguments, wrong_arguments
from med_sslal.report.selection import draw_selection, selection_table
from med_sslal.trainer.run_folder import new_results
from med_sslal.utils.errors import ConfigError

# What a criterion cannot take over from another one.
OF_CRITERION = ("aggregate", "empty_images")
_OPTIONS = {"al_criterion": "--criterion", "budget_num": "--budget"}


def run(args: Namespace) -> int:
    """Choose, write and explain, or explain alone; returns the exit code."""
    if args.explain:
        # Here, because it needs this module.
        from med_sslal.cli.explain import explain

        return explain(args)
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
    own = None
    if origin.cycle is not None and origin.cycle.queried:
        own = read_selection(origin.cycle.selection)
    folder = args.out
    if folder is None:
        names = "_".join(re.sub(r"[^\w.-]+", "_", name) for name in selection.criteria)
        home = origin.record.parent if origin.cycle is None else origin.cycle.run.path
        folder = home / f"select_{names}_{datetime.now():%Y%m%d_%H%M%S}"
    with new_results(folder) as out:
        write_selection(out.selection, selection, cycle, record.header)
        if images is not None and args.first:
            draw_selection(selection, record, images, out.pictures, first=args.first)
    table = selection_table(selection, record, cycle, own)
    sys.stdout.write("\n".join([table, *filter(None, notes), f"results: {out.path}", ""]))
    return 0


def make_helper(
    args: Namespace, config: ConfigParser | None, criterion: Any
) -> ActiveLearningHelper:
    """The strategy: the run's (`config`, None outside of one), changed by the command line.

    `criterion` is the first stage, as `al_criterion` has it.
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
    changes |= {name: given[name] for name in HELPER_OPTIONS if name in given}
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
