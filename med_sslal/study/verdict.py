"""What the numbers of a study support, in plain sentences, and what they do not."""

from med_sslal.study.label_efficiency import ALPHA, MIN_SEEDS_SIGNIFICANT
from med_sslal.study.paired import smallest_p
from med_sslal.study.study_result import Comparison, Saving, StudyResult

MIN_SEEDS_VERDICT = 5
"""Paired seeds that a fair comparison needs; below it no arm is called better or worse."""

CHANCE = {2: 50, 3: 25, 4: 20, 5: 16, 6: 14, 7: 12, 8: 11, 9: 11, 10: 10}
"""Paired seeds to how many of 100 intervals exclude 0 although there is no difference.

A percentile interval over n values is narrower than it says by about sqrt((n - 1) / n) and knows
nothing of their uncertain spread. Simulated with normally spread differences (22,500 studies for
each n); from 3 seeds on they are about P(|t| > 1.96 sqrt((n - 1) / n)) of Student's t with n - 1
degrees of freedom.
"""


def verdict(result: StudyResult) -> list[str]:
    """One sentence per arm that its numbers support, then what so many seeds cannot show.

    An arm is called better or worse only from 5 paired seeds on and where the interval of its area
    difference excludes 0; "saves" only where that of the labels saved excludes 0 too.
    """
    compared = {arm: own.comparison for arm, own in result.arms.items() if own.comparison}
    sentences = [_arm_sentence(arm, own, result) for arm, own in compared.items()]
    return [*sentences, _limits(list(compared.values()))] if compared else []


def _arm_sentence(name: str, comparison: Comparison, result: StudyResult) -> str:
    n_seeds, interval = len(comparison.seeds), comparison.area.interval
    if interval is None:
        return (
            f"{name}: area {comparison.area.value:+.3f} against {result.baseline}: "
            "1 seed, no interval, so no verdict."
        )
    low, high = interval
    head = (
        f"{name}: area {comparison.area.value:+.3f} (95 % interval {low:+.3f} to {high:+.3f}) "
        f"against {result.baseline} over {n_seeds} seeds:"
    )
    if n_seeds < MIN_SEEDS_VERDICT:
        return f"{head} too few seeds for a verdict, which takes {MIN_SEEDS_VERDICT}."
    if low > 0:
        return f"{head} better; {_saving_clause(comparison.saving, result)}{_last(comparison)}."
    if high < 0:
        return f"{head} worse{_last(comparison)}."
    return f"{head} no difference shown{_last(comparison)}."


def _saving_clause(saving: Saving, result: StudyResult) -> str:
    """How many labels an arm with a larger area saves, where that can be said."""
    unit, score = result.unit, f"{result.baseline}'s last score"
    if result.label_range[0] == result.label_range[1]:
        return f"one label count does not tell how many {unit} that saves"
    if saving.interval is None:
        return f"the seeds share no range of {unit}, so no number of {unit} saved can be given"
    if saving.value is None:
        return f"it does not reach {score} itself, so no number of {unit} saved can be given"
    low = saving.interval[0]
    ends = ["open" if end is None else f"{end:.0f}" for end in saving.interval]
    span = f"95 % interval {ends[0]} to {ends[1]}"
    if low is not None and low > 0:
        return f"saves labels: about {saving.value:.0f} fewer {unit} ({span}) for {score}"
    return f"how many {unit} that saves is open: {saving.value:.0f} ({span}) for {score}"


def _last(comparison: Comparison) -> str:
    """The test of the last budget, where it may be called anything."""
    if comparison.significant is None:
        return ""
    word = "significant" if comparison.significant else "not significant"
    return (
        f"; last budget {comparison.last.value:+.3f}, {word} (p {comparison.p:.3g}, "
        f"{comparison.p_holm:.3g} after Holm)"
    )


def _limits(comparisons: list[Comparison]) -> str:
    """What comparisons over so many seeds cannot show."""
    n_seeds, family = len(comparisons[0].seeds), len(comparisons)
    if n_seeds == 1:
        return "1 seed shows one outcome: nothing about how another seed would end."
    chance = CHANCE.get(n_seeds, f"{CHANCE[max(CHANCE)]} or fewer")
    widths = [
        (high - low) / 2
        for low, high in (c.area.interval for c in comparisons if c.area.interval is not None)
    ]
    limits = [
        f"{n_seeds} seeds cannot show area differences much smaller than {max(widths):.3f} (half "
        "the widest interval), and no difference shown does not mean that there is none",
        f"without any difference about {chance} of 100 such intervals exclude 0, not 5",
    ]
    smallest = smallest_p(n_seeds)
    if n_seeds < MIN_SEEDS_SIGNIFICANT:
        limits.append(
            f"p cannot fall below {smallest:g}, and nothing is called significant below "
            f"{MIN_SEEDS_SIGNIFICANT} seeds"
        )
    elif smallest * family >= ALPHA:
        limits.append(
            f"the smallest possible p ({smallest:g}) times {family} comparisons is "
            f"{min(1.0, smallest * family):.3g}, so one arm alone cannot become significant"
        )
    return "; ".join(limits) + "."
