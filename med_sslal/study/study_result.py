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

    Raises:
        DataError: No point, unequal lengths, a number that is not finite, or falling labels.
    """

    # Labels bought by each cycle, never falling. Where a cycle bought nothing on this axis (images
    # without a box, counted in boxes), its later value stands for the point.
    labels: tuple[float, ...]
    values: tuple[float, ...]  # Score at these, higher = better.

    def __post_init__(self) -> None:
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
    """Mean of an arm's curves at every label count where one of them has a point."""

    # Those that lie inside the range of ALL seeds of the arm, rising; empty where they share none
    # (few and different boxes).
    labels: tuple[float, ...]
    values: tuple[float, ...]  # Curves without a point there are interpolated linearly.
    low: tuple[float, ...] | None  # Lower end of the interval, per point; None where there is none.
    high: tuple[float, ...] | None


@dataclass(frozen=True)
class Goal:
    """Labels that an arm needs for a fraction of the full-supervision score."""

    fraction: float  # 0.9 or 0.95.
    # Seed to labels at the first crossing of `fraction` x that seed's full score; None where the
    # budget ended before (censored). Seeds without a full score above 0 are absent.
    per_seed: Mapping[int, float | None]
    # Over these seeds, censored ones counted as infinite; None where it is censored.
    median: float | None
    n_censored: int  # Seeds that did not reach it.
    budget: float | None  # The smallest among these seeds; a censored median lies above it.
    # First crossing of the mean curve of these seeds and `fraction` x their mean full score; None
    # where censored or without a seed.
    mean_curve: float | None


@dataclass(frozen=True)
class Saving:
    """Labels that an arm needs less than the baseline for the baseline's last score.

    Both are first crossings of the mean curves, so that a bump helps neither side.
    """

    # Baseline's crossing minus the arm's, positive = labels saved; None where the arm does not get
    # to that score inside the range of all seeds, or where there is no such range.
    value: float | None
    # An end is None where the score is not reached there.
    interval: tuple[float | None, float | None] | None


@dataclass(frozen=True)
class Comparison:
    """One arm minus the baseline, paired by seed."""

    seeds: tuple[int, ...]
    area: Estimate  # Difference of the normalised areas: the verdict.
    last: Estimate  # Of the scores at the end of each seed's range (the last budget).
    p: float  # Two-sided Wilcoxon signed-rank p of `last`.
    smallest_p: float  # The smallest that so many seeds can reach.
    p_holm: float  # `p` after Holm's correction over all arms but the baseline.
    significant: bool | None  # `p_holm` < 0.05; None below 8 seeds.
    reason: str | None  # Why `significant` is None.
    saving: Saving


@dataclass(frozen=True)
class ArmResult:
    """One arm: its seeds, rising, their mean curve, and their normalised areas with the mean."""

    seeds: tuple[int, ...]
    curve: MeanCurve
    areas: Mapping[int, float]
    area: Estimate
    # Labels to 90 % and 95 % of full supervision; empty where that was not measured.
    goals: tuple[Goal, ...]
    comparison: Comparison | None  # Against the baseline; None for the baseline itself.


@dataclass(frozen=True)
class StudyResult:
    """All arms of a study on one axis."""

    baseline: str  # The arm that the others are compared with.
    unit: str  # What the x-axis counts, for example "images".
    # Seed to the labels that all its arms cover: areas and last scores are taken in it.
    ranges: Mapping[int, Interval]
    arms: Mapping[str, ArmResult]  # In the order given.
    # Arm to arm to (wins, ties, losses) over the seeds, by area.
    matrix: Mapping[str, Mapping[str, tuple[int, int, int]]]
    full: Mapping[int, float] | None  # Seed to the full-supervision score; None where not measured.
    notes: tuple[str, ...]  # What a reader must know: curves cut, a single seed.
    draws: int  # Of the bootstrap.
    seed: int  # Of the bootstrap.

    @property
    def label_range(self) -> Interval:
        """From the first label count of any seed's range to the last of any."""
        lows, highs = zip(*self.ranges.values(), strict=True)
        return min(lows), max(highs)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: what `json` writes and reads back is equal to it."""
        text = json.dumps({**asdict(self), "label_range": self.label_range}, allow_nan=False)
        return json.loads(text)
