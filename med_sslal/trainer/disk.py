"""How much disk a run will need."""

import math
import shutil
from pathlib import Path

from med_sslal.trainer.setup import RunSetup

# Float32 values per detection and per image of each view of a pool record, for an upper bound; and
# those per detection that are recorded on request.
DETECTIONS_PER_IMAGE, VALUES_PER_DETECTION, VALUES_PER_IMAGE = 30, 14, 700
VALUES_ON_REQUEST = {"roi_features": 1024, "refined_boxes": 4}


def disk_estimate(initial: Path, setup: RunSetup) -> str:
    """One line: what a run with these initial weights will take at most, and what is free."""
    weights = initial.stat().st_size
    # checkpoint_last has an optimiser that keeps up to two values a weight.
    last = (4 if setup.settings.ema else 3) * weights
    if setup.strategy.mean_teacher:
        last += weights
    per_cycle = weights + (last if setup.settings.keep_checkpoints != "best" else 0)
    # A student has a supervised model beside it.
    per_cycle *= 1 if setup.strategy.labeller is None else 2
    numbered = 0
    if setup.settings.keep_checkpoints == "all" and setup.settings.save_period:
        numbered = sum(epochs // setup.settings.save_period for epochs in _epochs(setup))
    values = DETECTIONS_PER_IMAGE * VALUES_PER_DETECTION + VALUES_PER_IMAGE
    values *= len(setup.strategy.helper.views)
    more = sum(VALUES_ON_REQUEST[name] for name in setup.strategy.helper.columns)
    values += DETECTIONS_PER_IMAGE * more
    record = 4 * values * sum(len(setup.images.splits[name]) for name in ("train", "val"))
    # The training that runs has a previous copy of both besides.
    total = weights + (setup.strategy.num_cycles + 1) * per_cycle + weights + (2 + numbered) * last
    total += min(setup.settings.keep_records, setup.strategy.num_cycles) * record
    free = shutil.disk_usage(initial.parent).free
    return (
        f"the run will take at most about {total / 2**30:.2f} GiB; {free / 2**30:.1f} GiB are free"
    )


def _epochs(setup: RunSetup) -> list[int]:
    settings, helper = setup.settings, setup.strategy.helper
    if settings.steps_per_cycle is None:
        return [settings.epochs] * (setup.strategy.num_cycles + 1)
    # How many images another unit pays for is not known.
    more = helper.budget_num if helper.costs.unit == "images" else 0
    pool, cycles = len(setup.images.splits["train"]), range(setup.strategy.num_cycles + 1)
    labelled = [min(setup.n_initial + cycle * more, pool) for cycle in cycles]
    batch_size = setup.compute.batch_size * settings.accumulate
    return [math.ceil(settings.steps_per_cycle / max(n // batch_size, 1)) for n in labelled]
