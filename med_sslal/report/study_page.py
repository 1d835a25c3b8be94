"""The report of a study: does choosing images save labels, how many, and how sure is that."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from med_sslal.config.values import show
from med_sslal.report.colours import styles
from med_sslal.report.html import (
    Content,
    Html,
    Section,
    chart_figure,
    figures,
    legend,
    page,
    table,
    tag,
    write_page,
)
from med_sslal.report.run_page import NOT_A_DEVICE, PHANTOM
from med_sslal.report.run_sections import number
from med_sslal.report.study_data import StudyData
from med_sslal.report.svg import Axis, Chart, axis_for
from med_sslal.study.study_folder import UNITS, run_folder
from med_sslal.trainer.run_folder import REPORT

Json = Mapping[str, Any]

_DASH = "\N{EN DASH}"


def write_study_report(study: StudyData) -> Path:
    """Write `report.html` into the study folder; returns its path.

    Raises:
        UserError: The folder cannot be written.
    """
    return write_page(study.folder / REPORT, study_page(study))


def study_page(study: StudyData) -> str:
    """The report as HTML that needs no other file; it links to the reports of its runs."""
    sections: list[Section | None] = [_curves(study)]
    if study.results:
        sections += [_areas(study), _goals(study), _last_budget(study), _matrix(study)]
    sections += [_runs(study), _reproduce(study)]
    seeds = ", ".join(map(str, study.seeds))
    return page(
        study.name,
        kicker="Report of a study",
        facts=[
            f"{len(study.strategies)} arms",
            f"{len(study.seeds)} paired seed{'s' if len(study.seeds) > 1 else ''}: {seeds}",
            f"compared: {study.metric}",
            f"baseline: {study.baseline}",
        ],
        notices=_notices(study),
        intro=_intro(study),
        sections=[section for section in sections if section is not None],
    )


def _notices(study: StudyData) -> list[Content]:
    """What every reader must know."""
    notices: list[Content] = [NOT_A_DEVICE]
    if "Phantom" in str(study.config["dataset"]["type"]):
        notices.append(PHANTOM)
    if len(study.finished) < study.n_runs:
        notices.append(
            f"The study is in progress or was interrupted: {len(study.finished)} of "
            f"{study.n_runs} runs have ended. The page shows what is there."
        )
    if not study.results:
        notices.append("The comparison is not made yet: the study command makes it at its end.")
    if len(study.seeds) == 1:
        notices.append("1 seed, no interval: it shows one outcome and nothing about another.")
    return notices


def _intro(study: StudyData) -> list[Content]:
    """The verdict, a sentence per arm."""
    return [tag("ul", [tag("li", sentence) for sentence in study.verdict], class_="verdict")]


def _curves(study: StudyData) -> Section:
    """Label-efficiency curves against images and boxes."""
    looks = styles(study.arms)
    charts = []
    for unit, column in UNITS.items():
        chart = _curve_chart(study, unit, column, looks)
        charts.append(chart_figure(chart, f"Against labelled {unit}."))
    entries = [(arm, *looks[arm]) for arm in study.arms]
    if study.full is not None and study.rows[study.full]:
        entries.append((f"{study.full} supervision, mean", "var(--ink)", "1 4"))
    lead = "How good the detector is after so many labels: higher and further left is better."
    aside = (
        "Thick: mean over seeds with its 95 % bootstrap interval over seeds. Thin: single seeds."
        if study.results and len(study.seeds) > 1
        else "Thin: single seeds."
    )
    notes = [note for result in study.results.values() for note in result["notes"]]
    asides = [tag("p", _sentence(text), class_="aside") for text in dict.fromkeys([aside, *notes])]
    body = [legend(entries), figures(charts, wide=True), asides]
    return Section("label-efficiency", "Label efficiency", lead, body)


def _sentence(text: str) -> str:
    """A note as a sentence of its own."""
    return text if text.endswith(".") else f"{text[0].upper()}{text[1:]}."


def _curve_chart(
    study: StudyData, unit: str, column: str, looks: Mapping[str, tuple[str, str]]
) -> Html:
    """All arms against one count of labels."""
    singles = {
        (arm, seed): [(r[column], r[study.metric]) for r in rows if r.get(study.metric) is not None]
        for arm in study.arms
        for seed, rows in study.rows[arm].items()
    }
    full = _full_mean(study)
    means = study.results[unit]["arms"] if unit in study.results else {}
    heights = [y for points in singles.values() for _, y in points]
    heights += [] if full is None else [full]
    widths = [float(x) for points in singles.values() for x, _ in points]
    x, y = axis_for(f"labelled {unit}", widths), axis_for(_name(study.metric), heights)
    chart = Chart(x, y, f"{study.metric} of every arm against labelled {unit}")
    if full is not None:
        chart.line([x.low, x.high], [full, full], "var(--ink)", width=1.4, dash="1 4")
    for (arm, _), points in singles.items():
        if points:
            colour, _ = looks[arm]
            xs, ys = zip(*points, strict=True)
            chart.line(xs, ys, colour, width=1, opacity=0.3)
    for arm, result in means.items():
        colour, dash = looks[arm]
        curve = result["curve"]
        if curve["low"] is not None:
            chart.band(curve["labels"], curve["low"], curve["high"], colour)
        chart.line(curve["labels"], curve["values"], colour, width=2.4, dash=dash)
        # Counted in boxes, every seed has points of its own, and none is measured for all.
        if len(curve["labels"]) <= max(map(len, study.rows[arm].values())):
            for labels, value in zip(curve["labels"], curve["values"], strict=True):
                chart.point(labels, value, colour, f"{arm}: {value:.3f} with {labels:g} {unit}")
    return chart.to_html()


def _name(metric: str) -> str:
    """A metric's key as a person would say it."""
    return "mean sensitivity, test" if metric == "test_sens_mean" else metric


def _full_mean(study: StudyData) -> float | None:
    """Mean score of full supervision over its seeds, None where it was not measured."""
    if study.full is None:
        return None
    scores = [rows[-1].get(study.metric) for rows in study.rows[study.full].values() if rows]
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if known else None


def _areas(study: StudyData) -> Section:
    """Areas under the curve and their differences to the baseline."""
    lead = (
        "The verdict: the mean height of each curve, and how far it lies above the baseline's, "
        "seed by seed. An interval that excludes 0 speaks for a difference."
    )
    aside = (
        "Intervals are 95 % bootstrap intervals over paired seeds. Labels saved: how many fewer an "
        "arm needs for the baseline's last score; open where it does not get there."
    )
    body: list[Content] = []
    for unit, result in study.results.items():
        low, high = result["label_range"]
        compared = [arm["comparison"] for arm in result["arms"].values() if arm["comparison"]]
        scale = _scale([comparison["area"] for comparison in compared])
        rows = [_area_row(name, arm, scale) for name, arm in result["arms"].items()]
        headings: list[Content] = ["Arm", "Seeds", "Area", f"Minus {study.baseline}", ""]
        headings.append(f"{unit.capitalize()} saved")
        body.append(table(headings, rows, caption=f"Against {unit}, within {low:g} to {high:g}."))
    return Section("areas", "Areas under the curve", lead, [body, tag("p", aside, class_="aside")])


def _area_row(name: str, arm: Json, scale: Axis) -> list[Content]:
    """The area of one arm."""
    comparison = arm["comparison"]
    seeds = len(arm["seeds"])
    head: list[Content] = [name, seeds, _estimate(arm["area"])]
    if comparison is None:
        return [*head, "baseline", None, _DASH]
    if len(comparison["seeds"]) != seeds:
        head[1] = f"{seeds} ({len(comparison['seeds'])} paired)"
    difference = _estimate(comparison["area"], signed=True)
    saved = _saving(comparison["saving"])
    return [*head, difference, _forest(comparison["area"], scale), saved]


def _last_budget(study: StudyData) -> Section:
    """Differences at the end of the curves, and their tests."""
    body: list[Content] = []
    for unit, result in study.results.items():
        rows = [
            [
                name,
                _estimate(comparison["last"], signed=True),
                f"{comparison['p']:.3g}",
                f"{comparison['smallest_p']:.3g}",
                f"{comparison['p_holm']:.3g}{'*' if comparison['significant'] else ''}",
            ]
            for name, arm in result["arms"].items()
            if (comparison := arm["comparison"])
        ]
        headings = ["Arm", f"Minus {study.baseline}", "p", "Smallest p possible", "p after Holm"]
        caption = f"At the last {unit} that all arms of a seed reach, up to "
        caption += f"{result['label_range'][1]:g}."
        body.append(table(headings, rows, caption=caption))
    lead = "What is left of the difference when the budget is spent, with its paired test."
    aside = (
        "p is the exact two-sided Wilcoxon signed-rank test, Holm its correction over all arms; a "
        "star marks p below 0.05 after Holm, spoken of only from 8 paired seeds on."
    )
    return Section("last-budget", "The last budget", lead, [body, tag("p", aside, class_="aside")])


def _estimate(estimate: Json, *, signed: bool = False) -> Content:
    """A mean with its interval in small print."""
    form = "+.3f" if signed else ".3f"
    value = format(estimate["value"], form)
    if estimate["interval"] is None:
        return value
    low, high = (format(end, form) for end in estimate["interval"])
    return [value, " ", tag("small", f"({low} to {high})")]


def _saving(saving: Json) -> Content:
    """Labels saved with their interval; an open end is one that was not reached."""
    if saving["value"] is None:
        return _DASH
    value = f"{saving['value']:+.0f}"
    if saving["interval"] is None:
        return value
    low, high = ("open" if end is None else f"{end:+.0f}" for end in saving["interval"])
    return [value, " ", tag("small", f"({low} to {high})")]


def _scale(estimates: Sequence[Json]) -> Axis:
    """One scale for all intervals of a table, with 0 in it."""
    values = [0.0]
    for estimate in estimates:
        values += [estimate["value"], *(estimate["interval"] or ())]
    return axis_for("", values)


def _forest(estimate: Json, scale: Axis) -> Html:
    """A difference and its interval as a picture, with a line at 0."""
    width = 110.0

    def at(value: float) -> float:
        return 4 + scale.place(value) * (width - 8)

    parts = [tag("line", x1=at(0), y1=0, x2=at(0), y2=20, class_="zero")]
    if estimate["interval"] is not None:
        low, high = estimate["interval"]
        parts.append(tag("line", x1=at(low), y1=10, x2=at(high), y2=10, class_="span"))
    parts.append(tag("circle", cx=at(estimate["value"]), cy=10, r=4))
    return tag("svg", parts, view_box=f"0 0 {width:g} 20", class_="forest", aria_hidden="true")


def _goals(study: StudyData) -> Section | None:
    """Labels to parts of the full-supervision score; None where that was not measured."""
    if all(
        not arm["goals"] for result in study.results.values() for arm in result["arms"].values()
    ):
        return None
    body: list[Content] = []
    for unit, result in study.results.items():
        goals = next(iter(result["arms"].values()))["goals"]
        headings = ["Arm", *(f"To {100 * goal['fraction']:.0f} %" for goal in goals)]
        rows = [
            [name, *(_goal_cell(goal, arm) for goal in arm["goals"])]
            for name, arm in result["arms"].items()
        ]
        body.append(table(headings, rows, caption=f"Labelled {unit}: median, and each seed."))
    full = _full_mean(study)
    lead = (
        f"Labels at which each seed first reaches 90 % and 95 % of its own full-supervision score "
        f"({number(full)} on average)."
    )
    aside = "More: a seed that ends before is censored: it needs more labels than were bought."
    body.append(tag("p", aside, class_="aside"))
    return Section("goals", "Labels to 90 % and 95 % of full supervision", lead, body)


def _goal_cell(goal: Json, arm: Json) -> Content:
    """Median of one goal, and single seeds in small print."""
    if not goal["per_seed"]:
        return _DASH
    budget = f"> {goal['budget']:.0f}"
    median = budget if goal["median"] is None else f"{goal['median']:.0f}"
    each = ", ".join("more" if v is None else f"{v:.0f}" for v in goal["per_seed"].values())
    return [median, " ", tag("small", f"({each})")]


def _matrix(study: StudyData) -> Section | None:
    """Who beat whom, seed by seed."""
    unit, result = next(iter(study.results.items()))
    names = list(result["arms"])
    rows = [
        [
            name,
            *(
                " / ".join(map(str, result["matrix"][name][other])) if other != name else _DASH
                for other in names
            ),
        ]
        for name in names
    ]
    lead = (
        "Seeds in which the arm of the line has the larger area than the arm of the column, about "
        "the same, and the smaller one."
    )
    body = table(["Wins / ties / losses", *names], rows, caption=f"Areas against {unit}.")
    return Section("matrix", "Win, tie, loss", lead, body)


def _runs(study: StudyData) -> Section:
    """Every run, with a link to its own report."""
    rows: list[list[Content]] = []
    for arm in study.strategies:
        cells: list[Content] = [arm]
        for seed in study.seeds:
            cells.append(_run_cell(study, arm, seed))
        rows.append(cells)
    headings = ["Arm", *(f"Seed {seed}" for seed in study.seeds)]
    lead = f"Each run's last {study.metric}; the numbers lead to its own report."
    return Section("runs", "Runs", lead, table(headings, rows))


def _run_cell(study: StudyData, arm: str, seed: int) -> Content:
    """The last score of one run, as a link where its report is there."""
    rows = study.rows[arm].get(seed)
    if not rows:
        return _DASH
    text = number(rows[-1].get(study.metric))
    if (arm, seed) not in study.finished:
        text += " so far"
    if not run_folder(study.folder, arm, seed).report.is_file():
        return text
    return tag("a", text, href=f"{arm}/s{seed}/{REPORT}")


def _reproduce(study: StudyData) -> Section:
    """What the arms are."""
    changes = [
        [arm, tag("code", key), tag("code", show(value))]
        for arm, own in study.strategies.items()
        for key, value in own.items()
    ]
    shared = [[tag("code", key), tag("code", show(value))] for key, value in study.shared.items()]
    lead = (
        "What each arm changes, and what all share; initial set, initial weights, steps and "
        "validation are the same for all arms of a seed."
    )
    body: list[Content] = [
        tag("pre", "python -m med_sslal study -c STUDY.json"),
        table(["Arm", "Key", "Value"], changes, text_columns=3, stacked=True),
        tag("h3", "Common to all arms"),
        table(["Key", "Value"], shared, text_columns=2, stacked=True)
        if shared
        else tag("p", "Nothing."),
    ]
    return Section("reproduce", "How to reproduce", lead, body)
