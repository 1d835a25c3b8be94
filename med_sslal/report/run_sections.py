"""The parts of a run's report that show numbers: curves, calibration, time, config."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from med_sslal.config.values import show
from med_sslal.eval.calibration import N_BINS, Reliability, reliability
from med_sslal.report.colours import PALETTE, colour_of
from med_sslal.report.html import (
    Content,
    Html,
    Section,
    chart_figure,
    definitions,
    figures,
    legend,
    table,
    tag,
)
from med_sslal.report.plots import MARKS, froc_lines
from med_sslal.report.run_data import CycleData, RunData
from med_sslal.report.svg import Axis, Chart, axis_for

LOSS = "test_loss"
FROC = "sensitivity_k_fps"
MAX_CHARTS = 12

STAGES = {
    "training": PALETTE[0],
    "evaluation": PALETTE[5],
    "scoring": PALETTE[2],
    "selection": PALETTE[3],
    "pseudo_labels": PALETTE[4],
}


def number(value: float | None, digits: int = 3) -> str:
    """A number as text, a dash where there is none."""
    return "\N{EN DASH}" if value is None or not np.isfinite(value) else f"{value:.{digits}f}"


def headline_metrics(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Key and name of the metrics that stand for a run: two of ours, or the first of a user's."""
    known = [("test_sens_mean", "mean sensitivity"), ("test_AP50", "AP50")]
    found = [(key, name) for key, name in known if any(key in row for row in rows)]
    others = [key for row in rows for key in row if key.startswith("test_") and key != LOSS]
    return found or [(key, key.removeprefix("test_")) for key in others[:1]]


def cycles_section(run: RunData) -> Section:
    """The table of cycles."""
    headline = {k: name for k, name in headline_metrics(run.rows) if k != "test_sens_mean"}
    marks = {f"test_sens_{mark:g}fp": f"{mark:g} FP" for mark in MARKS}
    marks = {key: name for key, name in marks.items() if any(key in row for row in run.rows)}
    per_class = list(
        dict.fromkeys(key for row in run.rows for key in row if key.startswith("test_AP50/"))
    )
    has_mean = any("test_sens_mean" in row for row in run.rows)
    headings: list[Content] = ["Cycle", "Images", "Boxes", "Pseudo-labelled", *marks.values()]
    headings += ["Mean (95 % interval)"] if has_mean else []
    # A space, so that a long name can go on below.
    of_classes = [key.removeprefix("test_").replace("/", " ", 1) for key in per_class]
    headings += [*headline.values(), *of_classes, "Minutes"]
    rows = []
    for row in run.rows:
        cells: list[Content] = [row["cycle"], row["labelled_images"], row["labelled_boxes"]]
        cells.append(row["pseudo_images"])
        cells += [number(row.get(key)) for key in marks]
        cells += [_with_interval(row)] if has_mean else []
        cells += [number(row.get(key)) for key in (*headline, *per_class)]
        rows.append([*cells, number(row.get("minutes"), 1)])
    lead = (
        "Each line is one training, measured on the test images: sensitivity at so many false "
        "positives (FP) per image, and the mean of these."
        if marks
        else "Each line is one training, measured on the test images."
    )
    lead += " Minutes are those of training and evaluation."
    return Section("cycles", "Cycles", lead, table(headings, rows))


def _with_interval(row: Mapping[str, Any]) -> Content:
    """Mean sensitivity, and its interval in small print."""
    low, high = row.get("test_sens_mean_low"), row.get("test_sens_mean_high")
    value = number(row.get("test_sens_mean"))
    if low is None or high is None:
        return value
    return [value, " ", tag("small", f"({low:.3f} to {high:.3f})")]


def curve_section(run: RunData) -> Section:
    """What was learned from how many labels."""
    metrics, colour = headline_metrics(run.rows), colour_of(run.strategy)
    dashes = ("", "6 3")
    charts = []
    for key, unit in (("labelled_images", "labelled images"), ("labelled_boxes", "labelled boxes")):
        chart = _curve(run, key, unit, metrics, colour, dashes)
        charts.append(chart_figure(chart, f"Against {unit}."))
    lines = legend([(name, colour, dash) for (_, name), dash in zip(metrics, dashes, strict=False)])
    lead = "How good the detector is after so many labels have been paid for: higher and further "
    lead += "left is better. 1 seed, no interval over seeds."
    band = "test_sens_mean" in dict(metrics)
    aside = (
        "Mean sensitivity is that at 0.5, 1, 2 and 4 false positives per image; its band is the "
    )
    aside += f"95 % bootstrap interval over {run.resampled}."
    body = [figures(charts), lines, tag("p", aside, class_="aside") if band else None]
    return Section("label-efficiency", "Label efficiency", lead, body)


def _curve(
    run: RunData,
    x_key: str,
    unit: str,
    metrics: Sequence[tuple[str, str]],
    colour: str,
    dashes: Sequence[str],
) -> Html:
    """One label-efficiency curve."""
    rows = run.rows
    everything = [
        row[name]
        for row in rows
        for key, _ in metrics
        for name in (key, f"{key}_low", f"{key}_high")
        if row.get(name) is not None
    ]
    in_unit = all(0 <= value <= 1 for value in everything)
    name = "on the test images"
    y = Axis(name, 0, 1) if in_unit else axis_for(name, everything)
    x = axis_for(unit, [row[x_key] for row in rows], from_zero=True)
    chart = Chart(x, y, f"Metrics of the test images against {unit}")
    for (key, name), dash in zip(metrics, dashes, strict=False):
        known = [row for row in rows if row.get(key) is not None]
        spread = [row for row in known if row.get(f"{key}_low") is not None]
        if len(spread) > 1:
            xs = [row[x_key] for row in spread]
            low, high = ([row[f"{key}_{end}"] for row in spread] for end in ("low", "high"))
            chart.band(xs, low, high, colour)
        elif spread:
            row = spread[0]
            chart.bar(row[x_key], row[f"{key}_low"], row[f"{key}_high"], colour)
        chart.line([r[x_key] for r in known], [r[key] for r in known], colour, dash=dash)
        for row in known:
            text = f"cycle {row['cycle']}: {name} {row[key]:.3f} with {row[x_key]} {unit}"
            chart.point(row[x_key], row[key], colour, text)
    return chart.to_html()


def froc_section(run: RunData) -> Section | None:
    """FROC per class, the last cycle emphasised; None where it was not measured."""
    tested = [c for c in run.cycles if c.test is not None and FROC in c.test["details"]]
    measured = [(c.number, froc_lines(c.test)) for c in tested if c.test is not None]
    if not measured:
        return None
    classes = list(dict.fromkeys(name for _, lines in measured for name in lines))
    colour = colour_of(run.strategy)
    parts = [
        chart_figure(_froc(measured, name, colour), f"{name}." if len(classes) > 1 else None)
        for name in classes[:MAX_CHARTS]
    ]
    last = measured[-1][0]
    entries = [(f"cycle {last}", colour, "")]
    if len(measured) > 1:
        earlier = f"cycle{'s' if len(measured) > 2 else ''} {measured[0][0]}"
        if len(measured) > 2:
            earlier += f" to {measured[-2][0]}, later ones stronger"
        entries.append((earlier, "var(--faint)", ""))
    lead = "The share of objects found, against how many false alarms per image one must look at."
    aside = (
        "Marks are at 0.5, 1, 2 and 4 false positives per image, with 95 % bootstrap intervals "
        f"over {run.resampled}; a hollow mark lies beyond the end of its curve."
    )
    if len(classes) > MAX_CHARTS:
        aside += f" The first {MAX_CHARTS} of {len(classes)} classes are shown."
    body = [figures(parts, wide=len(parts) == 1), legend(entries), tag("p", aside, class_="aside")]
    return Section("froc", "Sensitivity and false positives (FROC)", lead, body)


def _froc(measured: Sequence[tuple[int, Mapping[str, Any]]], name: str, colour: str) -> Html:
    """The curves of one class over the cycles."""
    ticks = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
    x = Axis("false positives per image (log scale)", 0.1, 20, ticks, log=True)
    chart = Chart(x, Axis("sensitivity", 0, 1), f"FROC of {name} per cycle")
    for place, (number_, lines) in enumerate(measured):
        if name not in lines:
            continue
        line, is_last = lines[name], number_ == measured[-1][0]
        end = line.sensitivity[-1] if len(line.sensitivity) else 0.0
        xs, ys = [0.0, *line.fps, line.reach], [0.0, *line.sensitivity, end]
        shade = 0.35 + 0.5 * place / max(1, len(measured) - 1)
        chart.line(
            xs,
            ys,
            colour if is_last else "var(--faint)",
            width=2.4 if is_last else 1.5,
            opacity=1 if is_last else shade,
            steps=True,
        )
        if not is_last:
            continue
        chart.line([line.reach, 20], [end, end], colour, width=1.3, dash="2 3")
        for mark, value, interval in zip(MARKS, line.marks, line.intervals, strict=True):
            if value is None:
                continue
            if interval is not None:
                chart.bar(mark, interval[0], interval[1], colour)
            text = f"{value:.3f} at {mark:g} FPs per image"
            chart.point(mark, value, colour, text, hollow=mark > line.reach)
            chart.value(mark, value, f"{value:.2f}", "below")
    return chart.to_html()


def calibration_section(run: RunData) -> Section | None:
    """Scores against hits on the test images; None without data set or predictions."""
    measured = [c for c in run.cycles if c.predictions_file is not None]
    if run.dataset is None or not measured:
        return None
    found = [(cycle, _reliability(run, cycle)) for cycle in measured]
    cycle, last = found[-1]
    errors = table(
        ["Cycle", "Detections", "Expected calibration error"],
        [[c.number, f"{int(r.counts.sum()):,}", number(r.error)] for c, r in found],
    )
    rule = _rule(cycle)
    aside = (
        f"A detection is right when it overlaps an object of its class by {rule}; all detections "
        "that the model gave count, those in ignore regions do not. The error is the mean distance "
        "of the two over detections. The tinted columns show what share of the detections each "
        "tenth of the scores holds."
    )
    lead = (
        "Whether a score can be taken at its word: on the diagonal, detections of score 0.7 are "
        "right in 7 of 10 cases; below it the model is too sure."
    )
    caption = f"Cycle {cycle.number}, test images; expected calibration error {number(last.error)}."
    chart = chart_figure(_reliability_chart(last, colour_of(run.strategy)), caption)
    body = [figures([chart, errors]), tag("p", aside, class_="aside")]
    return Section("calibration", "Calibration", lead, body)


def _rule(cycle: CycleData) -> str:
    """The rule of a hit, in words."""
    return f"{'IoBB' if _overlap(cycle) == 'iobb' else 'IoU'} 0.5 or more"


def _overlap(cycle: CycleData) -> Any:
    """The overlap that FROC used, IoU where it was not measured."""
    details = cycle.test["details"] if cycle.test else {}
    return details.get(FROC, {}).get("overlap", "iou")


def _reliability(run: RunData, cycle: CycleData) -> Reliability:
    """Calibration of one cycle."""
    dataset = run.dataset
    assert dataset is not None
    return reliability(
        cycle.predictions(dataset.labels.class_names),
        dataset.labels.of(dataset.images.splits["test"]),
        dataset.images.infos,
        dataset.labels.class_names,
        _overlap(cycle),
    )


def _reliability_chart(result: Reliability, colour: str) -> Html:
    """Hit rate against mean score."""
    chart = Chart(Axis("score", 0, 1), Axis("share that is right", 0, 1), "Reliability of scores")
    total = max(1, int(result.counts.sum()))
    for i, count in enumerate(result.counts.tolist()):
        low, high = i / N_BINS, (i + 1) / N_BINS
        text = f"{count} detections of score {low:.1f} to {high:.1f}"
        chart.column(low, high, count / total, "var(--faint)", text)
    chart.line([0, 1], [0, 1], "var(--faint)", width=1.3, dash="4 4")
    filled = np.flatnonzero(result.counts)
    xs, ys = result.mean_scores[filled].tolist(), result.hit_rates[filled].tolist()
    chart.line(xs, ys, colour)
    for x, y, i in zip(xs, ys, filled.tolist(), strict=True):
        text = f"score {x:.2f} on average, {y:.2f} right, {result.counts[i]} detections"
        chart.point(x, y, colour, text)
    return chart.to_html()


def time_section(run: RunData) -> Section | None:
    """Seconds per stage; None where nothing was measured yet."""
    timed = [cycle for cycle in run.cycles if cycle.seconds]
    if not timed:
        return None
    known = {name: name.replace("_", "-") for name in STAGES}
    longest = max(sum(cycle.seconds.values()) for cycle in timed) or 1.0
    rows: list[list[Content]] = []
    for cycle in timed:
        total = sum(cycle.seconds.values())
        widths = {name: 100 * cycle.seconds.get(name, 0) / longest for name in STAGES}
        parts = [
            tag("i", style=f"width:{widths[name]:.2f}%;background:{colour}")
            for name, colour in STAGES.items()
        ]
        bar = tag("div", parts, class_="stack")
        cells = [duration(cycle.seconds.get(name)) for name in known]
        rows.append([cycle.number, bar, *cells, duration(total)])
    lead = (
        f"Where the {duration(run.seconds)} of the stages below went; the bars share one scale. "
        "The time that the program tells at its end counts from its last start, with what lies "
        "between the stages and the drawing of the pictures."
    )
    marks = legend([(known[name], colour, "") for name, colour in STAGES.items()])
    headings = ["Cycle", "", *(name.capitalize() for name in known.values()), "Together"]
    return Section("time", "Time per stage", lead, [table(headings, rows, text_columns=2), marks])


def duration(seconds: float | None) -> str:
    """Seconds in the unit that a person would use."""
    if seconds is None:
        return "\N{EN DASH}"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 60 else f"{minutes / 60:.1f} h"


def config_section(run: RunData, command: str) -> Section:
    """How to do it again: command, config and environment."""
    body: list[Content] = [tag("pre", command)]
    if run.differences:
        rows = [
            [tag("code", key), tag("code", show(value)), tag("code", show(default))]
            for key, value, default in run.differences
        ]
        changes = table(["Key", "Value", "Default"], rows, text_columns=3, stacked=True)
        body += [tag("h3", "What the config changes"), changes]
    elif run.differences is not None:
        body.append(tag("p", "The config leaves every default as it is."))
    environment = dict(run.environment)
    packages = environment.pop("packages", {})
    known = {**environment, **packages}
    if known:
        body.append(tag("h3", "Environment"))
        body.append(
            definitions({k.replace("_", " "): str(v) for k, v in known.items() if v is not None})
        )
    lead = "The run folder holds the whole config; the same config, data and seed repeat the run."
    return Section("reproduce", "How to reproduce", lead, body)
