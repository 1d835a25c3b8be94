"""Does an arm save labels, how many, and how sure is that: the statistics of a study.

Everything is paired by seed: arms with the same seed share initial set, weights and number of
steps, so their difference is what the choice of images made. Effect and interval are the verdict.

Shape shorthand: B draws, S seeds, G label counts.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from med_sslal.study.paired import TAILS, Bootstrap, holm, signed_rank_p, smallest_p
from med_sslal.study.study_result import (
    ArmResult,
    Comparison,
    Curve,
    Goal,
    Interval,
    MeanCurve,
    Saving,
    StudyResult,
)
from med_sslal.utils.errors import DataError

FRACTIONS = (0.9, 0.95)
"""The parts of the full-supervision score whose price in labels is given."""

TIE = 0.001
"""Areas no further apart than this (a tenth of a point) are a tie in the win/tie/loss matrix."""

ALPHA = 0.05
MIN_SEEDS_SIGNIFICANT = 8
"""Below this many paired seeds nothing is called significant."""

Curves = Mapping[str, Mapping[int, Curve]]


def normalised_area(curve: Curve) -> float:
    """Mean height of a curve: trapezoid area over its label range, divided by its width.

    A curve of one point, or with all points at one label count, has the value there.
    """
    labels, values = _knots(curve)
    if len(labels) == 1:
        return float(values[0])
    width = np.diff(labels)
    return float(width @ (values[1:] + values[:-1]) / (2 * width.sum()))


def labels_to_reach(curve: Curve, target: float) -> float | None:
    """Labels at the first crossing of `target`, by linear interpolation between the points.

    Returns:
        The first label count of the curve where it starts at `target` or above; None where it
        never gets there (censored: more labels than the budget).
    """
    labels, values = _knots(curve)
    return _known(_first_crossing(labels, values[None], np.array([target]))[0])


def compare_arms(
    curves: Curves,
    full: Mapping[int, float] | None,
    baseline: str = "random",
    draws: int = 10_000,
    seed: int = 0,
    unit: str = "labels",
) -> StudyResult:
    """Compare every arm with the baseline, paired by seed.

    Areas and last scores of a seed are taken over the range of labels that ALL its arms cover, with
    linear interpolation at its ends: counted in boxes, every run starts or ends elsewhere. Only
    seeds that an arm shares with the baseline are compared; its own curve, area and goals use all.
    The order of arms changes nothing but that of `arms` in the result, that of seeds nothing.

    Args:
        curves: Arm to seed to curve. Full supervision is no arm.
        full: Seed to the full-supervision score; None where it was not measured.
        baseline: The arm to compare with.
        draws: Bootstrap draws.
        seed: Of the bootstrap.
        unit: What the labels of the curves count, for the sentences: "images", "boxes", ...

    Raises:
        DataError: The baseline is missing, an arm has no curve or no seed in common with it, a full
            score is not finite, or no label count is covered by all arms of a seed.
    """
    _check(curves, full, baseline)
    curves = {arm: dict(sorted(by_seed.items())) for arm, by_seed in curves.items()}
    ranges, bootstrap = _common_ranges(curves), Bootstrap(draws, seed)
    inside = {
        arm: {s: _between(curve, *ranges[s]) for s, curve in by_seed.items()}
        for arm, by_seed in curves.items()
    }
    areas = {
        arm: {s: normalised_area(curve) for s, curve in by_seed.items()}
        for arm, by_seed in inside.items()
    }
    comparisons = _comparisons(inside, areas, baseline, bootstrap)
    arms = {
        arm: ArmResult(
            seeds=tuple(by_seed),
            curve=_mean_curve(by_seed.values(), bootstrap),
            areas=areas[arm],
            area=bootstrap.estimate(list(areas[arm].values())),
            goals=() if full is None else tuple(_goal(by_seed, full, part) for part in FRACTIONS),
            comparison=comparisons.get(arm),
        )
        for arm, by_seed in curves.items()
    }
    notes, matrix = _notes(curves, baseline, ranges, unit), _matrix(areas)
    measured = None if full is None else dict(sorted(full.items()))
    return StudyResult(baseline, unit, ranges, arms, matrix, measured, notes, draws, seed)


def _check(curves: Curves, full: Mapping[int, float] | None, baseline: str) -> None:
    """Raise DataError for what cannot be compared."""
    if baseline not in curves:
        raise DataError(
            f"the study has no arm {baseline!r} to compare with, found {', '.join(curves) or 'no'} "
            f"arms; add {baseline!r} or name another baseline."
        )
    for arm, by_seed in curves.items():
        if not set(by_seed) & set(curves[baseline]):
            raise DataError(
                f"arm {arm!r} has no seed in common with {baseline!r}: seeds {sorted(by_seed)} and "
                f"{sorted(curves[baseline])}; run both with the same seeds."
            )
    if full is not None and not np.isfinite(list(full.values())).all():
        raise DataError(
            f"a full-supervision score is not finite, found {dict(full)}; leave out its seed."
        )


def _common_ranges(curves: Curves) -> dict[int, Interval]:
    """Seed to the first and last label count that all its arms cover."""
    ranges = {}
    for s in sorted({s for by_seed in curves.values() for s in by_seed}):
        mine = {arm: by_seed[s].labels for arm, by_seed in curves.items() if s in by_seed}
        late = max(mine, key=lambda arm: mine[arm][0])
        early = min(mine, key=lambda arm: mine[arm][-1])
        low, high = mine[late][0], mine[early][-1]
        if low > high:
            raise DataError(
                f"with seed {s} no label count is covered by every arm: {late!r} starts at {low:g},"
                f" but {early!r} ends at {high:g}; start all arms from one initial set."
            )
        ranges[s] = (low, high)
    return ranges


def _notes(
    curves: Curves, baseline: str, ranges: Mapping[int, Interval], unit: str
) -> tuple[str, ...]:
    """What a reader must know before reading the numbers."""
    notes = []
    if any(
        (curve.labels[0], curve.labels[-1]) != ranges[s]
        for by_seed in curves.values()
        for s, curve in by_seed.items()
    ):
        notes.append(
            f"areas and last scores of a seed are taken over the {unit} that all its arms cover; "
            "longer curves are cut there"
        )
    single = [str(s) for s, (low, high) in ranges.items() if low == high]
    if single:
        notes.append(f"one label count only, whose score is the area: seed {', '.join(single)}")
    for arm, by_seed in curves.items():
        either, both = set(by_seed) | set(curves[baseline]), set(by_seed) & set(curves[baseline])
        if either != both:
            notes.append(
                f"{arm}: {_seeds(len(both))} paired with {baseline}, "
                f"{len(either) - len(both)} without a partner left out of the differences"
            )
    if len(ranges) == 1:
        notes.append("1 seed, no interval")
    return tuple(notes)


def _seeds(n: int) -> str:
    return "1 seed" if n == 1 else f"{n} seeds"


def _knots(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Labels, strictly rising, and values [G]: the last of the cycles at one label count."""
    labels, values = np.asarray(curve.labels, float), np.asarray(curve.values, float)
    last = np.append(labels[1:] != labels[:-1], True)
    return labels[last], values[last]


def _between(curve: Curve, low: float, high: float) -> Curve:
    """The part of a curve from `low` to `high`, interpolated linearly at both."""
    labels, values = _knots(curve)
    inner = labels[(labels > low) & (labels < high)]
    cut = np.unique([low, *inner, high])
    return Curve(tuple(cut.tolist()), tuple(np.interp(cut, labels, values).tolist()))


def _on_one_grid(curves: Collection[Curve]) -> tuple[np.ndarray, np.ndarray]:
    """All points of R curves inside the range that they share: labels [G], values [R, G].

    The mean of broken lines bends only at their points, so nothing is lost between them. G is 0
    where the curves share no label count.
    """
    low = max(curve.labels[0] for curve in curves)
    high = min(curve.labels[-1] for curve in curves)
    if low > high:
        return np.empty(0), np.empty((len(curves), 0))
    cut = [_between(curve, low, high) for curve in curves]
    grid = np.unique(np.concatenate([curve.labels for curve in cut]))
    return grid, np.stack([np.interp(grid, curve.labels, curve.values) for curve in cut])


def _mean_curve(curves: Collection[Curve], bootstrap: Bootstrap) -> MeanCurve:
    """Mean over seeds with its interval at every point."""
    grid, values = _on_one_grid(curves)
    low, high = None, None
    if len(values) > 1 and len(grid):
        low, high = (tuple(ends) for ends in bootstrap.interval(values).tolist())
    return MeanCurve(tuple(grid.tolist()), tuple(values.mean(0).tolist()), low, high)


def _first_crossing(labels: np.ndarray, values: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Labels where each row of `values` [R, G] first reaches its target: float64 [R].

    Labels [G] rise strictly; infinity where a row never reaches its target of `targets` [R].
    """
    reached = values >= targets[:, None]
    first = reached.argmax(axis=1)
    rows, before = np.arange(len(values)), np.maximum(first - 1, 0)
    rise = values[rows, first] - values[rows, before]
    part = np.ones(len(values))
    np.divide(targets - values[rows, before], rise, out=part, where=first > 0)
    crossing = labels[before] + part * (labels[first] - labels[before])
    return np.where(reached.any(axis=1), crossing, np.inf)


def _known(labels: float) -> float | None:
    """A label count as a plain number, None where it is infinite."""
    return float(labels) if np.isfinite(labels) else None


def _goal(curves: Mapping[int, Curve], full: Mapping[int, float], fraction: float) -> Goal:
    """Labels to a fraction of each seed's own full score."""
    measured = {s: curve for s, curve in curves.items() if full.get(s, 0.0) > 0}
    per_seed = {s: labels_to_reach(curve, fraction * full[s]) for s, curve in measured.items()}
    if not per_seed:
        return Goal(fraction, {}, None, 0, None, None)
    reached = [np.inf if labels is None else labels for labels in per_seed.values()]
    grid, values = _on_one_grid(list(measured.values()))
    target = fraction * np.mean([full[s] for s in measured], keepdims=True)
    mean = _first_crossing(grid, values.mean(0, keepdims=True), target)[0] if len(grid) else np.inf
    return Goal(
        fraction,
        per_seed,
        _known(float(np.median(reached))),
        reached.count(np.inf),
        min(curve.labels[-1] for curve in measured.values()),
        _known(mean),
    )


def _comparisons(
    curves: Curves, areas: Mapping[str, Mapping[int, float]], baseline: str, bootstrap: Bootstrap
) -> dict[str, Comparison]:
    """Every other arm minus the baseline over their common seeds.

    Args:
        curves: Arm to seed to curve, cut to the range of the seed.
        areas: Their areas.
        baseline: The arm to compare with.
        bootstrap: For the intervals.
    """
    base, result = curves[baseline], {}
    for arm, own in curves.items():
        if arm == baseline:
            continue
        seeds = tuple(s for s in own if s in base)
        last = [own[s].values[-1] - base[s].values[-1] for s in seeds]
        result[arm] = Comparison(
            seeds=seeds,
            area=bootstrap.estimate([areas[arm][s] - areas[baseline][s] for s in seeds]),
            last=bootstrap.estimate(last),
            p=signed_rank_p(last),
            smallest_p=smallest_p(len(seeds)),
            p_holm=1.0,
            significant=None,
            reason=None,
            saving=_saving([own[s] for s in seeds], [base[s] for s in seeds], bootstrap),
        )
    adjusted = holm([comparison.p for comparison in result.values()])
    return {
        arm: _judged(comparison, p)
        for (arm, comparison), p in zip(result.items(), adjusted, strict=True)
    }


def _judged(comparison: Comparison, p_holm: float) -> Comparison:
    """The comparison with its corrected p, called significant or not from 8 seeds on."""
    n_seeds = len(comparison.seeds)
    if n_seeds >= MIN_SEEDS_SIGNIFICANT:
        return replace(comparison, p_holm=p_holm, significant=p_holm < ALPHA)
    reason = (
        f"{_seeds(n_seeds)}: nothing is called significant below {MIN_SEEDS_SIGNIFICANT}; the "
        f"smallest p possible is {comparison.smallest_p:g}"
    )
    return replace(comparison, p_holm=p_holm, reason=reason)


def _saving(arm: Sequence[Curve], baseline: Sequence[Curve], bootstrap: Bootstrap) -> Saving:
    """Labels that the mean of `arm` needs less than that of `baseline` for its last score."""
    grid, values = _on_one_grid([*arm, *baseline])
    if not len(grid):
        return Saving(None, None)
    mine, theirs = np.split(values, 2)
    n_seeds = len(mine)
    weights = np.full((1, n_seeds), 1 / n_seeds)
    if n_seeds > 1:
        weights = np.concatenate([weights, bootstrap.weights(n_seeds)])
    mean, mean_baseline = weights @ mine, weights @ theirs
    targets = mean_baseline[:, -1]
    saved = _first_crossing(grid, mean_baseline, targets) - _first_crossing(grid, mean, targets)
    if n_seeds == 1:
        return Saving(_known(saved[0]), None)
    # Taken from the draws themselves: between an infinite one and the next lies no number.
    drawn = np.sort(saved[1:])
    low, high = (_known(drawn[int(np.ceil(tail * len(drawn))) - 1]) for tail in TAILS)
    return Saving(_known(saved[0]), (low, high))


def _matrix(
    areas: Mapping[str, Mapping[int, float]],
) -> dict[str, dict[str, tuple[int, int, int]]]:
    """Arm to other arm to common seeds with a larger, equal (within TIE) and smaller area."""

    def count(mine: Mapping[int, float], other: Mapping[int, float]) -> tuple[int, int, int]:
        differences = np.array([mine[s] - other[s] for s in mine if s in other])
        wins, losses = int((differences > TIE).sum()), int((differences < -TIE).sum())
        return wins, len(differences) - wins - losses, losses

    return {
        arm: {other: count(mine, areas[other]) for other in areas if other != arm}
        for arm, mine in areas.items()
    }
