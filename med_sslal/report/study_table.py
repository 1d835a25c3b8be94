"""The table that a study ends with: one line per arm."""

from med_sslal.study.study_result import ArmResult, Estimate, Goal, StudyResult
from med_sslal.utils.text_table import text_table


def study_table(result: StudyResult) -> str:
    """The arms of a study as aligned text, then what its columns mean.

    Returns:
        A heading, a rule, one line per arm and the notes; what is not defined is "-". In the
        columns of labels to a part of full supervision, "> 100" means: more than the budget for
        the median seed; "(2/5)" that 2 of 5 seeds did not get there.
    """
    base = result.baseline
    fractions = [goal.fraction for goal in result.arms[base].goals]
    headings = ["arm", "seeds", "area", f"minus {base} (95 %)"]
    headings += [f"to {100 * fraction:.0f} %" for fraction in fractions]
    headings += ["last", "p", "Holm", "w/t/l"]
    body = [_row(name, arm, result) for name, arm in result.arms.items()]
    low, high = result.label_range
    where = f"mean score from {low:g} to {high:g}" if low < high else f"score at {low:g}"
    notes = [
        f"area: {where} {result.unit}"
        f"{' (less in some seeds)' if len(set(result.ranges.values())) > 1 else ''}; last: "
        f"difference at the last budget; differences and wins/ties/losses: by seed against {base}"
    ]
    if fractions:
        notes.append(
            f"to 90 %, to 95 %: {result.unit} at which that part of the full-supervision score is "
            "first reached, median over seeds; (k/n): k of n seeds did not get there"
        )
    return "\n".join([text_table([headings, *body], "<>"), "", *notes, *result.notes])


def _row(name: str, arm: ArmResult, result: StudyResult) -> list[str]:
    comparison = arm.comparison
    cells = [name, str(len(arm.seeds)), f"{arm.area.value:.3f}"]
    cells.append("-" if comparison is None else _estimate(comparison.area))
    cells += [_goal(goal) for goal in arm.goals]
    if comparison is None:
        return [*cells, "-", "-", "-", "-"]
    wins = "/".join(map(str, result.matrix[name][result.baseline]))
    star = "*" if comparison.significant else ""
    tests = [f"{comparison.p:.3g}", f"{comparison.p_holm:.3g}{star}"]
    return [*cells, f"{comparison.last.value:+.3f}", *tests, wins]


def _estimate(estimate: Estimate) -> str:
    if estimate.interval is None:
        return f"{estimate.value:+.3f}"
    low, high = estimate.interval
    return f"{estimate.value:+.3f} ({low:+.3f} to {high:+.3f})"


def _goal(goal: Goal) -> str:
    """Median labels, and how many seeds were censored."""
    if not goal.per_seed:
        return "-"
    text = f"> {goal.budget:.0f}" if goal.median is None else f"{goal.median:.0f}"
    missed = f" ({goal.n_censored}/{len(goal.per_seed)})" if goal.n_censored else ""
    return text + missed
