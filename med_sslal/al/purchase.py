"""A query in research mode: what a plan asks for, and what its budget pays for."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from itertools import count

from med_sslal.al.al_helpers import ActiveLearningHelper
from med_sslal.al.oracle import SimulatedOracle
from med_sslal.al.pool import Pool
from med_sslal.al.record import PoolRecord
from med_sslal.base.types import ImageInfo, Selection

logger = logging.getLogger(__name__)


def purchase(
    helper: ActiveLearningHelper,
    oracle: SimulatedOracle,
    record: PoolRecord,
    pool: Pool,
    cycle: int,
    infos: Mapping[str, ImageInfo],
) -> Selection:
    """Query the pool, and keep of the plan the images that the budget pays for.

    A plan knows predicted boxes alone. Where each of its images turns out to cost more than the
    whole budget, the next plan leaves them out; it may be twice as long, so that few are needed.
    The arguments are those of `ActiveLearningHelper.query`. There are no images that were paid for
    only where no unlabelled image can be.
    """
    budget, costs = helper.budget_num, helper.costs
    planned: set[str] = set()
    for longer in count():
        plan = helper.query(record, pool, budget * 2**longer, cycle, infos, without=planned)
        paid = oracle.label_within(plan.image_ids, costs, budget)
        planned |= set(plan.image_ids)
        if paid or not plan.items or len(planned) >= len(pool.unlabelled):
            break
    if costs.unit != "images":
        cost = costs.cost(len(paid), sum(label.n_objects for label in paid.values()))
        text = "cycle %d: %d of %d planned images labelled, for %g of %d %s"
        logger.info(text, cycle, len(paid), len(planned), cost, budget, costs.unit)
    bought = [item for item in plan.items if item.image_id in paid]
    items = tuple(replace(item, rank=rank) for rank, item in enumerate(bought, start=1))
    return replace(plan, items=items)
