"""Which images get their labels next."""

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt

from med_sslal.al.al_criteria import find_selector
from med_sslal.al.budget import SECONDS_PER_BOX, SECONDS_PER_IMAGE, BudgetUnit, CostModel
from med_sslal.al.criteria.aggregate import Aggregate, EmptyImages
from med_sslal.al.criteria.base import Reader
from med_sslal.al.criteria.random import Random
from med_sslal.al.finds import Rating
from med_sslal.al.pool import Pool
from med_sslal.al.query import Query, rank
from med_sslal.al.record import OPTIONAL_COLUMNS, PLAIN, PoolRecord
from med_sslal.al.restrict import check_pool
from med_sslal.al.schedule import Until, check_schedule, in_use
from med_sslal.al.stages import Stage, build_stages, check_stages, unused_defaults
from med_sslal.al.views import parse_views
from med_sslal.base.types import ImageInfo, ScheduleEntry, Selection
from med_sslal.config.jsonc import KeyPath
from med_sslal.config.parse_config import dotted
from med_sslal.config.signature import wrong_arguments
from med_sslal.utils.errors import ConfigError
from med_sslal.utils.util import stable_hash

Count = Annotated[int, Ge(1)]
_COSTS = {"budget_num", "seconds_per_image", "seconds_per_box"}

logger = logging.getLogger(__name__)


class ActiveLearningHelper:
    """Chooses the first labelled images, and after each training the next ones.

    It trains nothing, opens no file and knows no model: a query is a pure function of the pool
    record, the budget and the seed; under a schedule also of the validation metrics so far (`at`).

    Args:
        init_num: Images that are labelled at the start; all = the whole pool, which leaves
            nothing to query (full supervision); labelled = those that the data has labels of.
        budget_num: What each cycle labels, in budget_unit; it is never exceeded.
        al_criterion: A criterion, then optionally a second stage (diversity or
            representativeness): a name, your own package.module.Class, or {"type", "args"}. In
            the first place a list of criteria, each with a "weight" if you like, combines them
            by their percentile ranks.
        schedule: In place of al_criterion, strategies that follow each other: a list of
            {"al_criterion", "until"}. An entry chooses until the model of a cycle reaches every
            value of its until on validation, {"val_sens_mean": 0.5}, and does not come back; the
            last has none.
        budget_unit: images, boxes or seconds of annotation. With the latter two a query plans
            on predicted boxes, and the labels that are given, in its order, end where the
            next one would exceed the budget.
        seconds_per_image: Seconds to look an image through.
        seconds_per_box: Seconds to draw and check a box.
        initial: How the images at the start are picked: random, or to cover the embeddings
            that the initial backbone gives (k_center, k_means_diversity, typicality).
        restart: Weights that each cycle's training starts from: the initial ones, or those of
            the cycle before (continue).
        candidate_factor: The second stage chooses among the best candidate_factor x
            budget_num images; auto = the number of stages, or the whole pool for those that
            are a strategy of their own (k_center and typicality after random); null = the
            whole pool. With a budget in boxes or seconds it counts in the images that the
            budget would buy best first.
        aggregate: From boxes to images, for criteria that do not say so themselves: max, mean,
            sum, top_k (mean of the 5 highest), top_3 or score_weighted; null = the criterion's
            own default.
        empty_images: Place of images without a detection, likewise: first, last, median or
            random.
        max_per_group: Images of one patient that a cycle labels at most, the best by the
            first stage; null = any number.
        spread_groups: Candidates come in turns, the best image of each patient without a label
            first, and the second stage chooses among as few turns as fill the query.
        suppress_adjacent: Slices up to so many places from a better or labelled slice of
            their series are taken only when no others are left; null = no such rule.
        seed: The run's seed.

    Raises:
        ConfigError: An argument is wrong.
    """

    def __init__(
        self,
        init_num: Count | Literal["all", "labelled"],
        budget_num: Count,
        al_criterion: list[Stage | list[Stage]] | None = None,
        *,
        schedule: list[dict[str, Any]] | None = None,
        budget_unit: BudgetUnit = "images",
        seconds_per_image: Annotated[float, Gt(0)] = SECONDS_PER_IMAGE,
        seconds_per_box: Annotated[float, Ge(0)] = SECONDS_PER_BOX,
        initial: Literal["random", "k_center", "k_means_diversity", "typicality"] = "random",
        restart: Literal["initial", "continue"] = "initial",
        candidate_factor: Annotated[float, Ge(1)] | Literal["auto"] | None = "auto",
        aggregate: Aggregate | None = None,
        empty_images: EmptyImages = "median",
        max_per_group: Count | None = None,
        spread_groups: bool = False,
        suppress_adjacent: Count | None = None,
        seed: int,
    ) -> None:
        args = dict(locals())
        del args["self"], args["seed"]
        wrong = wrong_arguments(ActiveLearningHelper, args, provided=("seed",))
        problems: list[tuple[str | KeyPath, str]] = [(name, text) for name, text, _ in wrong]
        problems = problems or ActiveLearningHelper.check_args(args)
        if problems:
            named = ((at if isinstance(at, str) else dotted(at), text) for at, text in problems)
            raise ConfigError("; ".join(f"{at}: {text}" for at, text in named))
        self.init_num = init_num
        self.budget_num = budget_num
        self.costs = CostModel(budget_unit, seconds_per_image, seconds_per_box)
        self.restart = restart
        self.max_per_group = max_per_group
        self.suppress_adjacent = suppress_adjacent
        self.spread_groups = spread_groups
        self.seed = seed
        self._initial = initial
        entries = schedule or [{"al_criterion": al_criterion}]
        # Of every entry of the schedule; one without any where there is none.
        self.untils: list[Until] = [entry.get("until") or {} for entry in entries]
        built = (
            build_stages(entry["al_criterion"], _defaults(args), candidate_factor)
            for entry in entries
        )
        rules = (max_per_group, suppress_adjacent, spread_groups)
        self._queries = [Query(*stages, seed, self.costs, *rules) for stages in built]
        self._entry: ScheduleEntry | None = None

    @classmethod
    def check_args(cls, args: Mapping[str, Any]) -> list[tuple[str | KeyPath, str]]:
        """Find what is wrong between arguments of the right types, as the config gives them.

        For each problem (argument or path into one, sentence). A subclass may take others, and its
        constructor then checks what it hands on.
        """
        problems: list[tuple[str | KeyPath, str]] = []
        if args.get("budget_unit") == "seconds" and args.keys() >= _COSTS:
            least = args["seconds_per_image"] + args["seconds_per_box"]
            if args["budget_num"] < least:
                text = f"found {args['budget_num']}; allowed: {math.ceil(least)} or more, the "
                problems.append(("budget_num", f"{text}seconds of an image with one box"))
        if "al_criterion" not in args:
            return problems
        stages, schedule, defaults = args["al_criterion"], args.get("schedule"), _defaults(args)
        if (stages is None) == (schedule is None):
            state = "missing" if stages is None else "given beside a schedule"
            text = f"it is {state}: give this, or a schedule in its place"
            return [*problems, ("al_criterion", text)]
        if schedule is None:
            wrong, own = check_stages(stages, defaults), "al_criterion"
        else:
            wrong, own = check_schedule(schedule, defaults), "schedule"
        found: list[tuple[str | KeyPath, str]] = [((own, *at), text) for at, text in wrong]
        if not found:
            firsts = [entry["al_criterion"][0] for entry in schedule or [args]]
            # The default is for whom it concerns, and no choice.
            given = {name: v for name, v in defaults.items() if v != "median"}
            unused = unused_defaults(firsts, given)
            found += [(name, f"the criterion has no '{name}': leave it out") for name in unused]
        return problems + found

    @property
    def _readers(self) -> list[Reader | type[Reader]]:
        """Everything that reads a record."""
        return [reader for query in self._queries for reader in query.readers]

    def at(
        self, cycle: int, num_cycles: int, metrics: Sequence[Mapping[str, Any]] = ()
    ) -> "ActiveLearningHelper":
        """The strategy of one query: a copy that has the entry of the schedule in use alone.

        The model of `cycle` scores the pool; the run plans `num_cycles` queries; the `metrics` are
        validation metrics by name (`val_sens_mean`) of the models of all cycles up to this one, in
        order, and what else is among them does not matter.
        """
        place, entry = in_use(self.untils, metrics)
        one, query = copy(self), self._queries[place]
        one._queries = [replace(query, selector=query.selector.at(cycle, num_cycles))]
        one.untils, one._entry = [{}], entry
        return one

    @property
    def views(self) -> tuple[str, ...]:
        """Sections that the record of a query must have."""
        return tuple(dict.fromkeys((PLAIN, *(v for one in self._readers for v in one.views))))

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of OPTIONAL_COLUMNS that the record of a query must have."""
        needs = {need for one in self._readers for need in one.needs}
        return tuple(name for name in OPTIONAL_COLUMNS if name in needs)

    def missing_abilities(self, given: Collection[str]) -> list[tuple[str, str]]:
        """What a detector that has the keys `given` of `base_model.ABILITIES` lacks for a query.

        For each gap (name of the criterion or second stage, missing key); ConfigError where a view
        is asked for that does not exist.
        """
        gaps = []
        for one in self._readers:
            views = parse_views(one.views)
            needs = [*one.needs, *("views" if view.is_full else view.kind for view in views)]
            gaps += [(one.name, need) for need in dict.fromkeys(needs) if need not in given]
        return gaps

    @property
    def cold_start(self) -> bool:
        """Whether the initial set is picked by `initial_query`, from a record of the pool."""
        return self._initial != "random" and isinstance(self.init_num, int)

    @property
    def starts_labelled(self) -> bool:
        """Whether the initial set is the images that the data has labels of."""
        return getattr(self, "init_num", None) == "labelled"

    def initial(self, pool: Pool) -> tuple[str, ...]:
        """The first images to label: a seeded draw that the order of files does not change.

        ConfigError where the pool has fewer than `init_num` images.
        """
        n_images = self._first(pool)
        drawn = sorted(pool.unlabelled, key=lambda name: stable_hash("initial", self.seed, name))
        return tuple(drawn[:n_images])

    def initial_query(self, record: PoolRecord, pool: Pool) -> Selection:
        """The first images to label, picked to cover the embeddings of a pool without labels.

        ConfigError as in `initial`; DataError where the record is of other images than the pool's.
        """
        n_images = self._first(pool)
        cover = Query(Random(), find_selector(self._initial)(), None, self.seed)
        return cover.select(record, pool, n_images, stable_hash("initial", self.seed))

    def n_initial(self, pool_size: int) -> int:
        """Images of the initial set, of a pool of `pool_size` images."""
        return self.init_num if isinstance(self.init_num, int) else pool_size

    def _first(self, pool: Pool) -> int:
        """Images of the initial set, of which the pool has enough."""
        n_images = self.n_initial(len(pool.unlabelled))
        check_pool(n_images, 0, len(pool.unlabelled))
        return n_images

    def handful(self, n_initial: int, n_query: int) -> "ActiveLearningHelper":
        """A copy that labels at most so few images, of any patient, to try a config out."""
        small = self.costing(replace(self.costs, unit="images"))
        if isinstance(self.init_num, int):
            small.init_num = min(self.init_num, n_initial)
        small.budget_num, small.max_per_group = n_query, None
        small._queries = [replace(query, max_per_group=None) for query in small._queries]
        return small

    def costing(self, costs: CostModel) -> "ActiveLearningHelper":
        """A copy that plans with other costs."""
        other = copy(self)
        other.costs = costs
        other._queries = [replace(query, costs=costs) for query in self._queries]
        return other

    def rate(self, record: PoolRecord, cycle: int) -> Rating:
        """Rate the images of any record by the criterion, as the cycle's query does its own.

        DataError where the record lacks something that the criterion reads.
        """
        criterion, seed = self._own.criterion, self._query_seed(cycle)
        values = criterion.columns(record, seed)[criterion.name]
        return Rating(criterion.name, values, rank(values, tuple(record.image_ids.tolist()), seed))

    @property
    def _own(self) -> Query:
        """The only one."""
        if len(self._queries) > 1:
            raise ValueError("a schedule has no one strategy: ask its helper.at(...)")
        return self._queries[0]

    def _query_seed(self, cycle: int) -> int:
        """What decides what is random in a cycle's query."""
        return stable_hash("query", self.seed, cycle)

    def query(
        self,
        record: PoolRecord,
        pool: Pool,
        budget: int,
        cycle: int,
        infos: Mapping[str, ImageInfo] | None = None,
        without: Collection[str] = (),
    ) -> Selection:
        """The next images to label, in order with all values and reasons.

        Args:
            record: What the pass over exactly the unlabelled images of `pool` saw.
            pool: The pool before the query.
            budget: What may be spent, in the unit of the budget. In images it is exact; where
                fewer can be had, all of them are taken. In boxes and seconds the selection is a
                plan on predicted boxes: label in its order, until the budget is spent.
            cycle: Number of the cycle, part of the seed.
            infos: Of every image of the pool, for `suppress_adjacent` and `spread_groups`.
            without: Images that are rated and not chosen.

        Raises:
            DataError: The record is of other images than the pool's unlabelled ones.
            ConfigError: `suppress_adjacent` is set and the position of an image is not known, or
                `spread_groups` and the patient of a labelled one.
        """
        own, seed = self._own, self._query_seed(cycle)
        selection = own.select(record, pool, budget, seed, infos or {}, without)
        if self._entry is not None:
            chain = " + ".join(selection.criteria)
            logger.info("cycle %d: %s: %s", cycle, self._entry, chain)
        bias = selection.box_count_bias
        words = "undefined, one of them is the same for all" if bias is None else f"{bias:.2f}"
        text = "cycle %d: rank correlation of %s and the number of detections: %s"
        logger.info(text, cycle, own.criterion.name, words)
        return replace(selection, entry=self._entry)


def _defaults(args: Mapping[str, Any]) -> dict[str, Any]:
    """What the top level says for all criteria that do not say so themselves."""
    return {name: args.get(name) for name in ("aggregate", "empty_images")}
