"""Does an arm save labels, how many, and how sure is that: the statistics of a study.

Everything is paired by seed: arms with the same seed share initial set, weights and number of
steps, so their difference is what the choice of images made. Effect and interval are the verdict.

Shape shorthand: B draws, S seeds, G label counts.
"""

from collections.abc import Collection, Mapping
from itertools import permutations

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
    linear interpolation at its ends: counted in boxes, every run ends elsewhere. The order of arms
    changes nothing but that of `arms` in the result, that of seeds nothing.

    Args:
        curves: Arm to seed to curve, the same seeds for all. Full supervision is no arm.
        full: Seed to the full-supervision score; None where it was not measured.
        baseline: The arm to compare with.
        draws: Bootstrap draws.
        seed: Of the bootstrap.
        unit: What the labels of the curves count, for the sentences: "images", "boxes", ...

    Raises:
        DataError: The baseline is missing, or arms differ in their seeds or in where they start.
    """
    curves = {arm: dict(sorted(by_seed.items())) for arm, by_seed in curves.items()}
    ranges, bootstrap = _ranges(curves, baseline), Bootstrap(draws, seed)
    inside = {
        arm: {s: _between(curve, *ranges[s]) for s, curve in by_seed.items()}
        for arm, by_seed in curves.items()
    }
    areas = {arm: {s: normalised_area(own[s]) for s in own} for arm, own in inside.items()}
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
    notes, matrix = _notes(curves, ranges, unit), _matrix(areas)
    measured = None if full is None else dict(sorted(full.items()))
    return StudyResult(baseline, unit, ranges, arms, matrix, measured, notes, draws, seed)


def _ranges(curves: Curves, baseline: str) -> dict[int, Interval]:
    """Seed to the label counts that all its arms cover; DataError where they cannot be paired."""
    seeds = list(curves.get(baseline, ()))
    for arm, by_seed in curves.items():
        if list(by_seed) != seeds or not seeds:
            raise DataError(
                f"arm {arm!r} has the seeds {list(by_seed)} and the baseline {baseline!r} {seeds}: "
                "run both with the same"
            )
    ranges = {s: _range([by_seed[s] for by_seed in curves.values()]) for s in seeds}
    for s, (low, high) in ranges.items():
        if low > high:
            raise DataError(
                f"with seed {s} no label count is covered by every arm: one starts at {low:g}, but "
                f"another ends at {high:g}; start all arms from one initial set"
            )
    return ranges


def _range(curves: Collection[Curve]) -> Interval:
    """First and last label count that all curves cover; the first is the larger where none is."""
    ends = [(curve.labels[0], curve.labels[-1]) for curve in curves]
    return max(low for low, _ in ends), min(high for _, high in ends)


def _notes(curves: Curves, ranges: Mapping[int, Interval], unit: str) -> tuple[str, ...]:
    """What a reader must know before reading the numbers."""
    notes = []
    if any(_range([own[s]]) != ranges[s] for own in curves.values() for s in own):
        notes.append(
            f"areas and last scores of a seed are taken over the {unit} that all its arms cover; "
            "longer curves are cut there"
        )
    if single := [str(s) for s, (low, high) in ranges.items() if low == high]:
        notes.append(f"one label count only, whose score is the area: seed {', '.join(single)}")
    if len(ranges) == 1:
        notes.append("1 seed, no interval")
    return tuple(notes)


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
    low, high = _range(curves)
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
    return float(labels) if np.isfinite(labels) else None


def _goal(curves: Mapping[int, Curve], full: Mapping[int, float], fraction: float) -> Goal:
    """Labels to a fraction of each seed's own full score."""
    measured = {s: curve for s, curve in curves.items() if full.get(s, 0.0) > 0}
    per_seed = {s: labels_to_reach(curve, fraction * full[s]) for s, curve in measured.items()}
    if not per_seed:
        return Goal(fraction, {}, None, 0, None, None)
    reached = [np.inf if labels is None else labels for labels in per_seed.values()]
    grid, values = _on_one_grid(measured.values())
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
    """Every other arm minus the baseline, from curves that are cut to the ranges of the seeds."""
    base = curves[baseline]
    lasts = {
        arm: [own[s].values[-1] - base[s].values[-1] for s in base]
        for arm, own in curves.items()
        if arm != baseline
    }
    p = [signed_rank_p(last) for last in lasts.values()]
    return {
        arm: Comparison(
            seeds=tuple(base),
            area=bootstrap.estimate([areas[arm][s] - areas[baseline][s] for s in base]),
            last=bootstrap.estimate(last),
            p=own_p,
            smallest_p=smallest_p(len(last)),
            p_holm=adjusted,
            significant=adjusted < ALPHA if len(last) >= MIN_SEEDS_SIGNIFICANT else None,
            reason=_too_few(len(last)),
            saving=_saving(curves[arm].values(), base.values(), bootstrap),
        )
        for (arm, last), own_p, adjusted in zip(lasts.items(), p, holm(p), strict=True)
    }


def _too_few(n_seeds: int) -> str | None:
    """Why nothing is called significant; None from 8 seeds on."""
    if n_seeds >= MIN_SEEDS_SIGNIFICANT:
        return None
    seeds = "1 seed" if n_seeds == 1 else f"{n_seeds} seeds"
    return (
        f"{seeds}: nothing is called significant below {MIN_SEEDS_SIGNIFICANT}; the smallest p "
        f"possible is {smallest_p(n_seeds):g}"
    )


def _saving(arm: Collection[Curve], baseline: Collection[Curve], bootstrap: Bootstrap) -> Saving:
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


def _matrix(areas: Mapping[str, Mapping[int, float]]) -> dict[str, dict[str, tuple[int, int, int]]]:
    """Arm to other arm to seeds with a larger, equal (within TIE) and smaller area."""
    matrix: dict[str, dict[str, tuple[int, int, int]]] = {arm: {} for arm in areas}
    for mine, other in permutations(areas, 2):
        differences = np.array([areas[mine][s] - areas[other][s] for s in areas[mine]])
        wins, losses = int((differences > TIE).sum()), int((differences < -TIE).sum())
        matrix[mine][other] = (wins, len(differences) - wins - losses, losses)
    return matrix
