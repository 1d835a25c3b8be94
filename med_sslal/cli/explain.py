"""The work of `python -m med_sslal select --explain`: what criteria find on validation images."""

import json
import sys
from argparse import Namespace
from typing import Any

from med_sslal.al.finds import finds, record_mistakes
from med_sslal.al.record import PoolRecord
from med_sslal.al.schedule import in_use
from med_sslal.base.base_dataset import Labels
from med_sslal.base.types import Annotation, ImageInfo
from med_sslal.cli.args import HELPER_OPTIONS
from med_sslal.cli.origin import NoImagesError, Origin, check_model, find_dataset, find_val_record
from med_sslal.cli.strategy import OF_CRITERION, make_helper
from med_sslal.report.table import finds_table
from med_sslal.utils.errors import ConfigError, DataError
from med_sslal.utils.util import read_json

_BACK = "put the run's own data back"


def explain(args: Namespace) -> int:
    """Hold criteria against the mistakes on the validation images of a cycle; tell it on stdout."""
    given = [name for name in ("selector", "budget", "out") if getattr(args, name) is not None]
    given += [name for name in HELPER_OPTIONS if name in args and name not in OF_CRITERION]
    if given:
        option = given[0].replace("_", "-")
        raise ConfigError(f"--{option}: --explain chooses nothing, and rates alone: leave it out")
    origin = find_val_record(args.record)
    record = PoolRecord.open(origin.record)
    stages = args.criterion or [_own_criterion(origin)]
    helpers = [make_helper(args, origin.config, stage) for stage in stages]
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
    splits, labels = dataset.images.splits, dataset.labels
    bought = read_json(origin.cycle.pool)["labelled"]
    used = labels.of((*splits["val"], *splits["test"], *bought))
    if Labels(labels.class_names, used).fingerprint() != record.header.labels_fingerprint:
        raise DataError(
            f"record {record.path} was made with other labels than its run's config names now: "
            f"{_BACK}"
        )
    return labels.of(splits["val"]), dict(dataset.images.infos)
