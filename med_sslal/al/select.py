"""Choose from a record alone: no run, no data set, no model."""

from collections.abc import Mapping
from typing import Any

from med_sslal.al.al_helpers import ActiveLearningHelper
from med_sslal.al.pool import Pool
from med_sslal.al.record import PLAIN, PoolRecord
from med_sslal.al.restrict import check_groups
from med_sslal.al.stages import Stage
from med_sslal.base.types import ImageInfo, Selection
from med_sslal.utils.errors import ConfigError, DataError


def select(
    record: PoolRecord,
    criterion: Stage | list[Stage],
    second: Stage | None = None,
    *,
    budget: int,
    seed: int = 0,
    **options: Any,
) -> Selection:
    """Choose images of a record: in order, with all values and reasons.

    Args:
        record: What a pass over the pool saw; its images are the candidates.
        criterion: A name, `{"type": ..., "args": ...}`, or a list of these to combine.
        second: A second stage in the same form; None takes the best.
        budget: Images to take, or boxes or seconds with `budget_unit`.
        seed: Decides ties and what is random.
        **options: Further arguments of `ActiveLearningHelper`: `candidate_factor`, ...

    Raises:
        ConfigError: An argument is wrong, or fewer images can be had.
        DataError: The record lacks something that the strategy reads, or is damaged.
    """
    stages = [criterion] if second is None else [criterion, second]
    return query_record(ActiveLearningHelper(1, budget, stages, seed=seed, **options), record)


def query_record(
    helper: ActiveLearningHelper,
    record: PoolRecord,
    cycle: int = 0,
    infos: Mapping[str, ImageInfo] | None = None,
) -> Selection:
    """Query a record, whose images are the whole pool, as `ActiveLearningHelper.query` does.

    Raises:
        ConfigError: Fewer images can be had than the budget.
        DataError: The record lacks something that the strategy reads, or is damaged.
    """
    budget = helper.budget_num
    try:
        pool = Pool(record.labelled_ids, tuple(record.image_ids.tolist()))
    except ValueError as error:
        raise DataError(f"record {record.path} is damaged: {error}") from error
    for view in helper.views:
        record.section(view)
    if helper.costs.unit == "images":
        if budget > len(pool.unlabelled):
            raise ConfigError(
                f"budget: found {budget}; allowed: up to the {len(pool.unlabelled)} unlabelled "
                f"images of record {record.path}"
            )
        check_groups(record.section(PLAIN).group_ids.tolist(), budget, helper.max_per_group)
    return helper.query(record, pool, budget, cycle, infos)
