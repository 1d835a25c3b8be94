"""Choose again from a stored pool record, without model or GPU, and show why.

With `--explain` nothing is chosen: what criteria find on validation images, whose truth is known.
"""

import json
import re
import sys
from argparse import Namespace
from collections.abc import Sequence
from datetime import datetime
from shlex import quote
from typing import Any

from med_sslal.al.al_helpers import ActiveLearningHelper
from med_sslal.al.finds import finds, record_mistakes
from med_sslal.al.record import PoolRecord
from med_sslal.al.schedule import in_use
from med_sslal.al.select import query_record
from med_sslal.al.selection_io import read_selection, write_selection
from med_sslal.al.stages import unused_defaults
from med_sslal.base.base_dataset import Labels
from med_sslal.base.types import Annotation, ImageInfo
from med_sslal.cli.args import HELPER_OPTIONS
from med_sslal.cli.build import with_answers
from med_sslal.cli.origin import (
    NoImagesError,
    Origin,
    check_model,
    find_dataset,
    find_record,
    find_val_record,
)
from med_sslal.config.parse_config import ConfigParser
from med_sslal.config.signature import convert_arguments, wrong_arguments
from med_sslal.report.selection import draw_selection, selection_table
from med_sslal.report.table import finds_table
from med_sslal.trainer.new_folder import new_results
from med_sslal.utils.errors import ConfigError, DataError
from med_sslal.utils.util import read_json

# What a criterion cannot take over from another one.
_OF_CRITERION = ("aggregate", "empty_images")
_OPTIONS = {"al_criterion": "--criterion", "budget_num": "--budget"}
_BACK = "put the run's own data back"


def run(args: Namespace) -> int:
    """Choose, write and explain, or explain alone; returns the exit code."""
    if args.explain:
        return explain(args)
    if len(args.criterion or []) != 1 or args.budget is None:
        raise ConfigError(
            "give one --criterion (a JSON list combines several) and --budget, or --explain"
        )
    criterion = args.criterion[0]
    origin = find_record(args.record)
    record = origin.open()
    notes = [check_model(record, origin)]
    helper = _make_helper(args, origin.config, criterion)
    images = None
    off = {"suppress_adjacent": "null", "spread_groups": "false"}
    needing = [name for name in off if getattr(helper, name)]
    if args.first or needing:
        try:
            instead = "--first 0 chooses without pictures"
            images = find_dataset(record, origin, instead).images
        except NoImagesError as reason:
            notes.append(f"no pictures: {reason}")
            if needing:
                name = needing[0]
                raise ConfigError(
                    f"{name} needs the data, which says where each image belongs, but {reason}; "
                    f"--{name.replace('_', '-')} {off[name]} chooses without"
                ) from reason
    cycle = origin.number if args.cycle is None else args.cycle
    num_cycles = 1 if origin.config is None else origin.config.get("al_settings.num_cycles")
    helper = helper.at(cycle, num_cycles)
    selection = query_record(helper, record, cycle, None if images is None else images.infos)
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


def explain(args: Namespace) -> int:
    """Hold criteria against the mistakes on the validation images of a cycle; tell it on stdout."""
    given = [name for name in ("selector", "budget", "out") if getattr(args, name) is not None]
    given += [name for name in HELPER_OPTIONS if name in args and name not in _OF_CRITERION]
    if given:
        option = given[0].replace("_", "-")
        raise ConfigError(f"--{option}: --explain chooses nothing, and rates alone: leave it out")
    origin = find_val_record(args.record)
    record = origin.open()
    stages = args.criterion or [_own_criterion(origin)]
    helpers = [_make_helper(args, origin.config, stage) for stage in stages]
    note = check_model(record, origin)
    truth = record_mistakes(record, *_truth(record, origin))
    cycle = origin.number if args.cycle is None else args.cycle
    names = [stage if isinstance(stage, str) else json.dumps(stage) for stage in stages]
    found = [finds(helper.rate(record, cycle), truth) for helper in helpers]
    table = finds_table(dict(zip(names, found, strict=True)), origin.number)
    sys.stdout.write("\n".join([table, *filter(None, [note]), ""]))
    return 0


def _own_criterion(origin: Origin) -> Any:
    """The first stage that the run chose by in the cycle; ConfigError where a class hides it."""
    assert origin.config is not None and origin.cycle is not None
    own = origin.config["al_settings"]["args"]
    entries = own.get("schedule") or [own]
    if not entries[0].get("al_criterion"):
        raise ConfigError("the run's own strategy names no criterion: give --criterion")
    cycles = [cycle for cycle in origin.cycle.run.cycles() if cycle.number <= origin.number]
    rows = [read_json(cycle.metrics)["row"] for cycle in cycles]
    place, _ = in_use([entry.get("until") or {} for entry in entries], rows)
    return entries[place]["al_criterion"][0]


def _truth(
    record: PoolRecord, origin: Origin
) -> tuple[dict[str, Annotation], dict[str, ImageInfo]]:
    """Labels and infos of the validation images; DataError unless they are those of the record."""
    try:
        dataset = find_dataset(record, origin, _BACK)
    except NoImagesError as reason:
        raise DataError(f"--explain needs the run's labels, but {reason}") from reason
    assert origin.cycle is not None
    splits, labels = dataset.images.splits, with_answers(dataset, origin.cycle).labels
    bought = read_json(origin.cycle.pool)["labelled"]
    used = labels.of((*splits["val"], *splits["test"], *bought))
    if Labels(labels.class_names, used).fingerprint() != record.header.labels_fingerprint:
        raise DataError(
            f"record {record.path} was made with other labels than its run's config names now: "
            f"{_BACK}"
        )
    return labels.of(splits["val"]), dict(dataset.images.infos)


def _make_helper(
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
    others: Sequence[str] = _OF_CRITERION
    if any((entry.get("al_criterion") or [])[:1] == [criterion] for entry in used):
        others = unused_defaults([criterion], {name: own.get(name) for name in _OF_CRITERION})
    own = {name: value for name, value in own.items() if name not in others}
    stages = [criterion] if args.selector is None else [criterion, args.selector]
    own["al_criterion"] = stages
    if args.budget is not None:
        own["budget_num"] = args.budget
    if own.get("schedule"):
        own["schedule"] = None
    own |= {name: given[name] for name in HELPER_OPTIONS if name in given}

    def wrong(stages: Any) -> Any:
        args = own | {"al_criterion": stages}
        return wrong_arguments(cls, args, provided=("seed",)) or cls.check_args(args)

    if isinstance(criterion, list) and wrong(stages) and not wrong(criterion):
        names = [each if isinstance(each, str) else json.dumps(each) for each in criterion]
        stages_of = ("--criterion", "--selector")[: 1 if args.explain else 2]
        words = zip(stages_of, names, strict=False)
        text = " ".join(f"{option} {quote(name)}" for option, name in words)
        raise ConfigError(f"--criterion: that is a whole al_criterion: give {text} in its place")
    if problems := wrong_arguments(cls, own, provided=("seed",)):
        options = [_OPTIONS.get(name, f"--{name.replace('_', '-')}") for name, *_ in problems]
        told = zip(options, problems, strict=True)
        raise ConfigError("; ".join(f"{option}: {wrong.message}" for option, wrong in told))
    seed = args.seed
    if seed is None:
        seed = 0 if config is None else config["seed"]
    return cls(**convert_arguments(cls, own), seed=seed)
