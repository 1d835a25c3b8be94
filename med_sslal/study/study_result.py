"""What a study measured and what its comparison says, as plain values.

Words: an arm is one way to choose images (or the baseline), a seed one repetition that all arms
share, labels the x-axis of a curve: images, boxes or estimated seconds of annotation. Intervals are
95 % bootstrap intervals over seeds; there is none with 1 seed.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from med_sslal.utils.errors import DataError

Interval = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """One learning curve: the score after each cycle of one run.

    Attributes:
        labels: Labels bought by each cycle, never falling. Where a cycle bought nothing on this
            axis (images without a box, counted in boxes), its later value stands for the point.
        values: Score at these, higher = better.

    Raises:
        DataError: No point, unequal lengths, a number that is not finite, or falling labels.
    """

    labels: tuple[float, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        """Validate once."""
        if len(self.labels) != len(self.values) or not self.labels:
            raise DataError(
                f"a curve needs one value for each of at least one label count, found "
                f"{len(self.labels)} label counts and {len(self.values)} values; give both from "
                "the same cycles."
            )
        if not np.isfinite((*self.labels, *self.values)).all():
            raise DataError(
                f"a curve needs finite numbers, found labels {self.labels} and values "
                f"{self.values}; leave out runs whose score is undefined."
            )
        if (np.diff(self.labels) < 0).any():
            raise DataError(
                f"the labels of a curve must not fall from cycle to cycle, found {self.labels}; "
                "give the cycles in their order."
            )


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its interval."""

    value: float
    interval: Interval | None


@dataclass(frozen=True)
class MeanCurve:
    """Mean of an arm's curves at every label count where one of them has a point.

    Attributes:
        labels: The label counts that lie inside the range of ALL seeds of the arm, rising; empty
            where they share none (few and different boxes).
        values: Mean over seeds; curves without a point there are interpolated linearly.
        low: Lower end of the interval, per point; None where there is none.
        high: Upper end.
    """

    labels: tuple[float, ...]
    values: tuple[float, ...]
    low: tuple[float, ...] | None
    high: tuple[float, ...] | None


@dataclass(frozen=True)
class Goal:
    """Labels that an arm needs for a fraction of the full-supervision score.

    Attributes:
        fraction: 0.9 or 0.95.
        per_seed: Seed to labels at the first crossing of `fraction` x that seed's full score; None
            where the budget ended before (censored). Seeds without a full score above 0 are absent.
        median: Over these seeds, censored ones counted as infinite; None where it is censored.
        n_censored: Seeds that did not reach it.
        budget: The smallest budget among these seeds; a censored median lies above it.
        mean_curve: First crossing of the mean curve of these seeds and `fraction` x their mean full
            score; None where censored or without a seed.
    """

    fraction: float
    per_seed: Mapping[int, float | None]
    median: float | None
    n_censored: int
    budget: float | None
    mean_curve: float | None


@dataclass(frozen=True)
class Saving:
    """Labels that an arm needs less than the baseline for the baseline's last score.

    Both are first crossings of the mean curves, so that a bump helps neither side.

    Attributes:
        value: Baseline's crossing minus the arm's, positive = labels saved; None where the arm does
            not reach that score inside the range of all seeds, or where there is no such range.
        interval: Of the value; an end is None where the score is not reached there.
    """

    value: float | None
    interval: tuple[float | None, float | None] | None


@dataclass(frozen=True)
class Comparison:
    """One arm minus the baseline, paired by seed.

    Attributes:
        area: Difference of the normalised areas: the verdict.
        last: Difference of the scores at the end of each seed's range (the last budget).
        p: Two-sided Wilcoxon signed-rank p of `last`.
        smallest_p: The smallest that so many seeds can reach.
        p_holm: `p` after Holm's correction over all arms but the baseline.
        significant: `p_holm` < 0.05; None below 8 seeds.
        reason: Why `significant` is None.
    """

    seeds: tuple[int, ...]
    area: Estimate
    last: Estimate
    p: float
    smallest_p: float
    p_holm: float
    significant: bool | None
    reason: str | None
    saving: Saving


@dataclass(frozen=True)
class ArmResult:
    """One arm: its seeds, rising, their mean curve, and their normalised areas with the mean.

    Attributes:
        goals: Labels to 90 % and 95 % of full supervision; empty where that was not measured.
        comparison: Against the baseline; None for the baseline itself.
    """

    seeds: tuple[int, ...]
    curve: MeanCurve
    areas: Mapping[int, float]
    area: Estimate
    goals: tuple[Goal, ...]
    comparison: Comparison | None


@dataclass(frozen=True)
class StudyResult:
    """All arms of a study on one axis.

    Attributes:
        baseline: The arm that the others are compared with.
        unit: What the x-axis counts, for example "images".
        ranges: Seed to the labels that all its arms cover: areas and last scores are taken in it.
        arms: In the order given.
        matrix: Arm to arm to (wins, ties, losses) over the seeds, by area.
        full: Seed to the full-supervision score; None where not measured.
        notes: What a reader must know: curves cut, a single seed.
        draws: Bootstrap draws.
        seed: Of the bootstrap.
    """

    baseline: str
    unit: str
    ranges: Mapping[int, Interval]
    arms: Mapping[str, ArmResult]
    matrix: Mapping[str, Mapping[str, tuple[int, int, int]]]
    full: Mapping[int, float] | None
    notes: tuple[str, ...]
    draws: int
    seed: int

    @property
    def label_range(self) -> Interval:
        """From the first label count of any seed's range to the last of any."""
        lows, highs = zip(*self.ranges.values(), strict=True)
        return min(lows), max(highs)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: what `json` writes and reads back is equal to it."""
        text = json.dumps({**asdict(self), "label_range": self.label_range}, allow_nan=False)
        return json.loads(text)
