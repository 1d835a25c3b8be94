"""One query: from a record of the pool to the images to label, in order, with the reasons."""

import logging
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from med_sslal.al.arrays import rank_correlation
from med_sslal.al.budget import PREDICTED_COST, CostModel, n_affordable
from med_sslal.al.criteria.base import Criterion, Reader
from med_sslal.al.criteria.combination import Combination
from med_sslal.al.pool import Pool
from med_sslal.al.record import PLAIN, PoolRecord
from med_sslal.al.restrict import (
    cap_groups,
    check_positions,
    groups_of,
    part_adjacent,
    places_in_groups,
    slice_positions,
)
from med_sslal.al.selectors.base import Choice, Selector
from med_sslal.base.types import ImageInfo, Selected, Selection
from med_sslal.utils.errors import DataError
from med_sslal.utils.util import stable_hash

logger = logging.getLogger(__name__)

# Why a slice was taken in spite of `suppress_adjacent`.
CLOSE = "next to a better or labelled slice, as no others are left"


class _Allowed(NamedTuple):
    """Rows of a record that the rules allow a query to take, best first."""

    free: np.ndarray
    close: np.ndarray  # To take only when these are used up.
    turns: np.ndarray  # Of every row of the record: those with a lower one come first.


@dataclass(frozen=True)
class Query:
    """A strategy with the rules around it; see `ActiveLearningHelper`."""

    criterion: Criterion  # Rates the images.
    selector: Selector  # Chooses among the best.
    candidate_factor: float | None  # These are so many times the budget; None: the whole pool.
    run_seed: int  # Noted in the selection.
    costs: CostModel = field(default_factory=CostModel)
    max_per_group: int | None = None
    suppress_adjacent: int | None = None
    spread_groups: bool = False

    @property
    def readers(self) -> list[Reader | type[Reader]]:
        """Everything that reads the record."""
        first = self.criterion
        parts = [p.criterion for p in first.parts] if isinstance(first, Combination) else [first]
        return [*parts, self.selector, *self.selector.criteria]

    def select(
        self,
        record: PoolRecord,
        pool: Pool,
        budget: int,
        seed: int,
        infos: Mapping[str, ImageInfo] = MappingProxyType({}),
        without: Collection[str] = (),
    ) -> Selection:
        """Choose images, as `ActiveLearningHelper.query` does; `seed` decides what is random."""
        ids = tuple(record.image_ids.tolist())
        if ids != pool.unlabelled:
            raise DataError(
                f"record {record.path} holds {len(ids)} images, which are not the "
                f"{len(pool.unlabelled)} unlabelled ones of the pool: score the pool again"
            )
        values = self.criterion.columns(record, seed)
        first = values[self.criterion.name]
        ranking = rank(first, ids, seed)
        for cls in self.selector.criteria:
            values.setdefault(cls.name, cls()(record, seed))
        costs = self.costs.predicted(record)
        if self.costs.unit != "images":
            values[PREDICTED_COST] = costs
        open_to = ranking
        if without:
            open_to = ranking[~np.isin(record.image_ids[ranking], list(without))]
        labelled = groups_of(pool.labelled, infos) if self.spread_groups else []
        allowed = self._allowed(record, pool, open_to, infos, labelled)
        self._tell_shortage(len(ids), len(allowed.free) + len(allowed.close), budget)
        allowed = _payable(allowed, costs, budget)
        choices = self._choose(record, allowed, values, costs, budget, seed)
        for section in record.sections.values():
            section.release()
        return Selection(
            items=self._items(choices, record, values, ranking, labelled),
            scores={name: dict(zip(ids, v.tolist(), strict=True)) for name, v in values.items()},
            criteria=(self.criterion.name, self.selector.name),
            seed=self.run_seed,
            box_count_bias=rank_correlation(first, record.section(PLAIN).counts),
        )

    def _allowed(
        self,
        record: PoolRecord,
        pool: Pool,
        ranking: np.ndarray,
        infos: Mapping[str, ImageInfo],
        labelled: Iterable[str],
    ) -> _Allowed:
        """What the rules leave of a ranking."""
        groups = record.section(PLAIN).group_ids
        turns = np.zeros(len(groups), dtype=np.int64)
        if self.spread_groups:
            turns[ranking] = places_in_groups(ranking, groups, labelled)
            ranking = ranking[np.argsort(turns[ranking], kind="stable")]
        free, close = ranking, ranking[:0]
        if self.suppress_adjacent is not None:
            positions = slice_positions(infos)
            check_positions((*pool.labelled, *pool.unlabelled), positions, self.suppress_adjacent)
            free, close = part_adjacent(
                ranking, pool.unlabelled, positions, pool.labelled, self.suppress_adjacent
            )
        allowed = cap_groups(np.concatenate([free, close]), groups, self.max_per_group)
        is_close = np.isin(allowed, close)
        return _Allowed(allowed[~is_close], allowed[is_close], turns)

    def _tell_shortage(self, n_left: int, n_allowed: int, budget: int) -> None:
        """Warn where a query cannot take its budget of images."""
        if self.costs.unit != "images" or n_allowed >= budget:
            return
        text = (
            f"max_per_group {self.max_per_group} allows only {n_allowed} of the {n_left} "
            f"unlabelled images, fewer than budget_num {budget}: taking these"
        )
        if n_allowed == n_left:
            text = (
                f"only {n_left} unlabelled images are left, fewer than budget_num {budget}: "
                "taking them all; the next training is the last"
            )
        logger.warning("%s", text)

    def _choose(
        self,
        record: PoolRecord,
        allowed: _Allowed,
        values: Mapping[str, np.ndarray],
        costs: np.ndarray,
        budget: int,
        seed: int,
    ) -> list[Choice]:
        """Let the selector choose from the best that are free; fill up from the close ones."""
        free, close, turns = allowed
        candidates, factor, n_first = free, self.candidate_factor, n_affordable(costs[free], budget)
        if factor is not None:
            candidates = free[: math.ceil(factor * n_first)]
        # No image comes before its turn, however many a selector may choose from.
        candidates = candidates[turns[candidates] <= turns[free[:n_first]].max(initial=0)]
        # No more than so many images fit, whichever are chosen.
        n_images = n_affordable(np.sort(costs[candidates]), budget)
        choices = self.selector.select(record, candidates, values, n_images, seed)
        rows = [choice.row for choice in choices]
        n_valid = len(set(rows) & set(candidates.tolist()))
        if len(rows) != n_images or n_valid != n_images:
            raise ValueError(
                f"selector {self.selector.name} must return {n_images} distinct candidates, found "
                f"{len(rows)} rows, {n_valid} of them valid"
            )
        if n_images == len(free):
            choices = [*choices, *(Choice(row, CLOSE) for row in close.tolist())]
        order = np.array([choice.row for choice in choices], dtype=np.int64)
        return choices[: n_affordable(costs[order], budget)]

    def _items(
        self,
        choices: Sequence[Choice],
        record: PoolRecord,
        values: Mapping[str, np.ndarray],
        ranking: np.ndarray,
        labelled: Iterable[str],
    ) -> tuple[Selected, ...]:
        """The chosen images; `labelled` is the patient of each labelled image, for the reasons."""
        section = record.section(PLAIN)
        places = np.empty_like(ranking)
        places[ranking] = np.arange(1, len(ranking) + 1)
        items = []
        n_labelled = Counter(labelled)
        for number, (row, reason) in enumerate(choices, start=1):
            image_id, group = str(section.image_ids[row]), str(section.group_ids[row])
            n_labelled[group] += 1
            own = {name: float(column[row]) for name, column in values.items()}
            first = f"{self.criterion.name} {own[self.criterion.name]:.4f}"
            if isinstance(self.criterion, Combination):
                parts = (f"{part.name} {own[part.name]:.4f}" for part in self.criterion.parts)
                first += f" ({', '.join(parts)})"
            words = [f"{first}, place {places[row]} of {len(ranking)}", reason]
            if self.spread_groups:
                words.append(f"image {n_labelled[group]} of its patient")
            if PREDICTED_COST in own:
                words.append(f"about {own[PREDICTED_COST]:.1f} {self.costs.unit}")
            items.append(Selected(image_id, number, group, own, "; ".join(filter(None, words))))
        return tuple(items)


def rank(values: np.ndarray, image_ids: tuple[str, ...], seed: int) -> np.ndarray:
    """Rows from best to worst by rounded values [N]; ties by a hash of the seed and the id."""
    ties = np.array([stable_hash("tie", seed, name) for name in image_ids], dtype=np.int64)
    return np.lexsort((ties, -values))


def _payable(allowed: _Allowed, costs: np.ndarray, budget: int) -> _Allowed:
    """Without the images that cost more than the whole budget; the cheapest where all do."""
    paid = costs <= budget
    free, close = allowed.free, allowed.close
    if not paid[free].any() and not paid[close].any() and len(free) + len(close):
        rows = np.concatenate([free, close])
        return allowed._replace(free=rows[[costs[rows].argmin()]], close=rows[:0])
    return allowed._replace(free=free[paid[free]], close=close[paid[close]])
