"""Which images get their labels next."""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np

from med_sslal.al.al_criteria import find_criterion, find_selector
from med_sslal.al.arrays import rank_correlation
from med_sslal.al.criteria.aggregate import Aggregate, EmptyImages
from med_sslal.al.criteria.base import BoxCriterion, Criterion
from med_sslal.al.pool import Pool
from med_sslal.al.record import PLAIN, PoolRecord
from med_sslal.al.selectors.base import Selector
from med_sslal.base.types import Selected, Selection
from med_sslal.utils.errors import ConfigError, DataError
from med_sslal.utils.util import stable_hash

logger = logging.getLogger(__name__)


class ActiveLearningHelper:
    """Chooses the first labelled images, and after each training the next ones.

    It trains nothing, opens no file and knows no model: a query is a pure function of the pool
    record, the budget and the seed.
    """

    def __init__(
        self,
        init_num: int | Literal["all"],
        budget_num: int,
        al_criterion: list[str],
        *,
        restart: Literal["initial", "continue"] = "initial",
        candidate_factor: float | Literal["auto"] | None = "auto",
        aggregate: Aggregate | None = None,
        empty_images: EmptyImages = "median",
        max_per_group: int | None = None,
        seed: int,
    ) -> None:
        """Set the strategy.

        Args:
            init_num: Images that are labelled at the start, drawn at random; all = the whole pool,
                which leaves nothing to query (full supervision).
            budget_num: Images that each cycle labels.
            al_criterion: An uncertainty criterion, then optionally a second stage (diversity or
                representativeness); a name, or your own package.module.Class.
            restart: Weights that each cycle's training starts from: the initial ones, or those of
                the cycle before (continue).
            candidate_factor: The second stage chooses among the best candidate_factor x
                budget_num images; auto = the number of criteria, null = the whole pool.
            aggregate: From boxes to images: max, mean, sum, top_k (mean of the 5 highest) or
                score_weighted; null = the criterion's own default.
            empty_images: Place of images without a detection: first, last, median or random.
            max_per_group: Images of one patient that a cycle labels at most, the best by the
                first criterion; null = any number.
            seed: The run's seed.

        Raises:
            ConfigError: An argument is wrong.
        """
        args = {
            "init_num": init_num,
            "budget_num": budget_num,
            "al_criterion": al_criterion,
            "candidate_factor": candidate_factor,
            "aggregate": aggregate,
            "empty_images": empty_images,
            "max_per_group": max_per_group,
        }
        problems = self.check_args(args)
        if problems:
            raise ConfigError("; ".join(f"{name}: {sentence}" for name, sentence in problems))
        self.init_num = init_num
        self.budget_num = budget_num
        self.restart = restart
        self.max_per_group = max_per_group
        self.seed = seed
        self._factor = len(al_criterion) if candidate_factor == "auto" else candidate_factor
        criterion = find_criterion(al_criterion[0])
        self.criterion: Criterion = (
            criterion(aggregate=aggregate, empty_images=empty_images)
            if issubclass(criterion, BoxCriterion)
            else criterion()
        )
        self.selector: Selector = find_selector([*al_criterion, "top_k"][1])()

    @classmethod
    def check_args(cls, args: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Find what is wrong between arguments of the right types.

        Args:
            args: The arguments with their defaults, as the config gives them.

        Returns:
            (argument, sentence) for each problem.
        """
        problems = [
            (name, f"found {args[name]}; allowed: 1 or more{more}")
            for name, more in (("init_num", ', or "all"'), ("budget_num", ""))
            if args[name] != "all" and args[name] < 1
        ]
        cap = args["max_per_group"]
        if cap is not None and cap < 1:
            problems.append(("max_per_group", f"found {cap}; allowed: 1 or more, or null"))
        factor = args["candidate_factor"]
        if factor not in ("auto", None) and not 1 <= factor < math.inf:
            problems.append(
                ("candidate_factor", f'found {factor}; allowed: 1 or more, "auto", or null')
            )
        names = args["al_criterion"]
        if not 1 <= len(names) <= 2:
            return [
                *problems,
                (
                    "al_criterion",
                    f"found {len(names)} names; allowed: an uncertainty criterion, then optionally "
                    "one second stage",
                ),
            ]
        finders = zip(names, (find_criterion, find_selector), strict=False)
        for name, find in finders:
            try:
                find(name)
            except ConfigError as error:
                problems.append(("al_criterion", str(error)))
        return problems + _check_boxless(args, problems)

    @property
    def views(self) -> tuple[str, ...]:
        """Sections that the record of a query must have."""
        needed = (*self.criterion.views, *self.selector.views)
        needed += tuple(view for cls in self.selector.criteria for view in cls.views)
        return tuple(dict.fromkeys((PLAIN, *needed)))

    def initial(self, pool: Pool) -> tuple[str, ...]:
        """The first images to label: a seeded draw that the order of files does not change.

        Raises:
            ConfigError: The pool has fewer than `init_num` images.
        """
        n_images = self.n_initial(len(pool.unlabelled))
        check_pool(n_images, 0, len(pool.unlabelled))
        drawn = sorted(pool.unlabelled, key=lambda name: stable_hash("initial", self.seed, name))
        return tuple(drawn[:n_images])

    def n_initial(self, pool_size: int) -> int:
        """Images of the initial set, of a pool of `pool_size` images."""
        return pool_size if self.init_num == "all" else self.init_num

    def query(self, record: PoolRecord, pool: Pool, budget: int, cycle: int) -> Selection:
        """The next images to label.

        Args:
            record: What the pass over exactly the unlabelled images of `pool` saw.
            pool: The pool before the query.
            budget: Images to take; where fewer are left, all of them.
            cycle: Number of the cycle, part of the seed.

        Returns:
            The images in order with all values and reasons.

        Raises:
            DataError: The record is of other images than the pool's unlabelled ones.
            ConfigError: `max_per_group` leaves fewer images than the budget.
        """
        ids = tuple(record.image_ids.tolist())
        if ids != pool.unlabelled:
            raise DataError(
                f"record {record.path} holds {len(ids)} images, which are not the "
                f"{len(pool.unlabelled)} unlabelled ones of the pool: score the pool again"
            )
        budget = min(budget, len(ids))
        seed = stable_hash("query", self.seed, cycle)
        criteria = [self.criterion, *(cls() for cls in self.selector.criteria)]
        values = {criterion.name: criterion(record, seed) for criterion in criteria}
        ranking = rank(values[self.criterion.name], ids, seed)
        groups = record.section(PLAIN).group_ids
        check_groups(groups.tolist(), budget, self.max_per_group)
        allowed = cap_groups(ranking, groups, self.max_per_group)
        candidates = allowed[: self._n_candidates(budget, len(allowed))]
        choices = self.selector.select(record, candidates, values, budget, seed)
        rows = [choice.row for choice in choices]
        if len(rows) != budget or len(set(rows) & set(candidates.tolist())) != budget:
            raise ValueError(
                f"selector {self.selector.name} must return {budget} distinct candidates, found "
                f"{len(rows)} rows, {len(set(rows) & set(candidates.tolist()))} of them valid"
            )
        places = np.empty_like(ranking)
        places[ranking] = np.arange(1, len(ids) + 1)
        items = []
        for number, (row, reason) in enumerate(choices, start=1):
            own = {name: float(column[row]) for name, column in values.items()}
            first = f"{self.criterion.name} {own[self.criterion.name]:.4f}"
            parts = [f"{first}, place {places[row]} of {len(ids)}", *([reason] if reason else [])]
            items.append(Selected(ids[row], number, str(groups[row]), own, "; ".join(parts)))
        return Selection(
            items=tuple(items),
            scores={
                name: dict(zip(ids, column.tolist(), strict=True))
                for name, column in values.items()
            },
            criteria=(self.criterion.name, self.selector.name),
            seed=self.seed,
            box_count_bias=self._box_count_bias(values[self.criterion.name], record, cycle),
        )

    def _box_count_bias(self, values: np.ndarray, record: PoolRecord, cycle: int) -> float | None:
        """Rank correlation of the first criterion's values and the number of detections."""
        bias = rank_correlation(values, record.section(PLAIN).counts)
        logger.info(
            "cycle %d: rank correlation of %s and the number of detections: %s",
            cycle,
            self.criterion.name,
            "undefined, one of them is the same for all" if bias is None else f"{bias:.2f}",
        )
        return bias

    def _n_candidates(self, budget: int, n_images: int) -> int:
        """How many of the best images the second stage may choose from."""
        if self._factor is None:
            return n_images
        return min(n_images, math.ceil(self._factor * budget))


def check_pool(init_num: int, budget_num: int, pool_size: int) -> None:
    """Refuse an initial set and first query that the pool cannot fill.

    Raises:
        ConfigError: init_num + budget_num is more than `pool_size`.
    """
    if init_num + budget_num > pool_size:
        raise ConfigError(
            f"al_settings.args: init_num {init_num} + budget_num {budget_num} is more than the "
            f"{pool_size} images of the pool: lower them"
        )


def check_groups(group_ids: Iterable[str], budget: int, max_per_group: int | None) -> None:
    """Refuse a cap that leaves too few images.

    Args:
        group_ids: The patient of every unlabelled image.
        budget: Images that one cycle is to take.
        max_per_group: Images of one patient at most; None = any number.

    Raises:
        ConfigError: Fewer than `budget` images could be had.
    """
    if max_per_group is None:
        return
    sizes = Counter(group_ids)
    n_images = sum(min(size, max_per_group) for size in sizes.values())
    if n_images < budget:
        raise ConfigError(
            f"al_settings.args.max_per_group {max_per_group} leaves {n_images} images of "
            f"{len(sizes)} patients, fewer than the budget of {budget}: raise it, or lower "
            f"budget_num to at most {n_images}"
        )


def cap_groups(ranking: np.ndarray, group_ids: np.ndarray, max_per_group: int | None) -> np.ndarray:
    """The best images of each patient, so that whatever is chosen among them keeps the cap.

    Args:
        ranking: int64 [N], rows from best to worst.
        group_ids: str [N], the patient of each row.
        max_per_group: Images of one patient at most; None = any number.

    Returns:
        int64 [K], the rows that are left, still from best to worst.

    Example:
        >>> cap_groups(np.array([2, 0, 1]), np.array(["a", "b", "a"]), 1).tolist()
        [2, 1]
    """
    if max_per_group is None:
        return ranking
    seen: Counter[str] = Counter()
    keep = []
    for group in group_ids[ranking].tolist():
        seen[group] += 1
        keep.append(seen[group] <= max_per_group)
    return ranking[np.array(keep, dtype=bool)]


def rank(values: np.ndarray, image_ids: tuple[str, ...], seed: int) -> np.ndarray:
    """Rows from best to worst.

    Args:
        values: float64 [N], rounded, higher = better.
        image_ids: N ids.
        seed: Ties are broken by a hash of it and the image id.

    Returns:
        int64 [N], a permutation of the rows.
    """
    ties = np.array([stable_hash("tie", seed, name) for name in image_ids], dtype=np.int64)
    return np.lexsort((ties, -values))


def _check_boxless(
    args: Mapping[str, Any], problems: list[tuple[str, str]]
) -> list[tuple[str, str]]:
    """Refuse settings about boxes for a criterion that looks at none."""
    if any(name == "al_criterion" for name, _ in problems):
        return []
    criterion = find_criterion(args["al_criterion"][0])
    if issubclass(criterion, BoxCriterion):
        return []
    defaults = {"aggregate": None, "empty_images": "median"}
    return [
        (name, f"criterion {criterion.name} looks at no boxes and has no '{name}': leave it out")
        for name, default in defaults.items()
        if args[name] != default
    ]
