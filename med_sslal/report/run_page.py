"""The report of one run: what its sections show."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from med_sslal.al.finds import MISTAKES
from med_sslal.eval.calibration import reliability
from med_sslal.report.charts import to_svg
from med_sslal.report.colours import FAINT, GREY, PALETTE, colour_of
from med_sslal.report.pages import render, write_page
from med_sslal.report.plots import (
    MARKS,
    Score,
    froc_lines,
    froc_over_cycles,
    learning_curve,
    reliability_chart,
)
from med_sslal.report.run_choices import bought, pseudo_labelled, queries
from med_sslal.report.run_data import RunData

Content = Mapping[str, Any]

FROC = "sensitivity_k_fps"
MAX_CHARTS = 12

STAGES = {
    "training": PALETTE[0],
    "evaluation": PALETTE[5],
    "scoring": PALETTE[2],
    "selection": PALETTE[3],
    "pseudo_labels": PALETTE[4],
    "other_training": PALETTE[1],
    "gate": GREY,
}


def write_run_report(run: RunData) -> Path:
    """Write the report as HTML that needs no other file into the run folder; returns its path.

    Raises:
        UserError: A file of the run or of its data is damaged, or the folder cannot be written.
    """
    sections: dict[str, tuple[str, Callable[[RunData], Content | None]]] = {
        "cycles": ("Cycles", _cycles),
        "label-efficiency": ("Label efficiency", _curves),
        "froc": ("Sensitivity and false positives (FROC)", _froc),
        "queries": ("Queried images", queries),
        "corrections": ("Corrections", _corrections),
        "finds": ("What the criterion finds on validation", _finds),
        "bought": ("What was bought", bought),
        "pseudo-labels": ("Pseudo-labels", pseudo_labelled),
        "calibration": ("Calibration", _calibration),
        "time": ("Time per stage", _time),
        "reproduce": ("How to reproduce", lambda run: {}),
    }
    made = {
        name: (heading, content)
        for name, (heading, make) in sections.items()
        if (run.rows or name in ("time", "reproduce")) and (content := make(run)) is not None
    }
    title, metrics = str(run.config["name"]), headline_metrics(run.rows)
    page = render("run.html.j2", title=title, run=run, metrics=metrics, sections=made)
    return write_page(run.folder.report, page)


def headline_metrics(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Key and name of the metrics that stand for a run: two of ours, or the first of a user's."""
    known = [("test_sens_mean", "mean sensitivity"), ("test_AP50", "AP50")]
    found = [(key, name) for key, name in known if any(key in row for row in rows)]
    others = [key for row in rows for key in row if key.startswith("test_") and key != "test_loss"]
    return found or [(key, key.removeprefix("test_")) for key in others[:1]]


def _cycles(run: RunData) -> Content:
    """Keys and headings of the marks of FROC."""
    return {"marks": [(f"test_sens_{mark:g}fp", f"{mark:g} FP") for mark in MARKS]}


def _curves(run: RunData) -> Content:
    colour, dashes = colour_of(run.strategy), ("", "6 3")
    metrics = headline_metrics(run.rows)
    scores = [Score(*metric, colour, dash) for metric, dash in zip(metrics, dashes, strict=False)]
    charts = []
    for unit in ("images", "boxes"):
        chart = learning_curve(run.rows, scores, f"labelled_{unit}")
        svg = to_svg(chart, f"Metrics of the test images against labelled {unit}")
        charts.append((svg, f"Against labelled {unit}."))
    return {
        "charts": charts,
        "legend": [look for _, *look in scores],
        "has_mean": "test_sens_mean" in dict(metrics),
    }


def _froc(run: RunData) -> Content | None:
    """FROC per class, the last cycle emphasised; None where it was not measured."""
    measured = {
        cycle.number: froc_lines(cycle.test)
        for cycle in run.cycles
        if cycle.test is not None and FROC in cycle.test["details"]
    }
    if not measured:
        return None
    colour = colour_of(run.strategy)
    classes = list(dict.fromkeys(name for lines in measured.values() for name in lines))
    charts = []
    for name in classes[:MAX_CHARTS]:
        lines = [lines[name] for lines in measured.values() if name in lines]
        svg = to_svg(froc_over_cycles(lines, colour), f"FROC of {name} per cycle")
        charts.append((svg, f"{name}." if len(classes) > 1 else ""))
    *earlier, last = measured
    legend = [(f"cycle {last}", colour, "")]
    if earlier:
        many = f"cycles {earlier[0]} to {earlier[-1]}, later ones stronger"
        legend.append((many if len(earlier) > 1 else f"cycle {earlier[0]}", FAINT, ""))
    return {"charts": charts, "legend": legend, "n_classes": len(classes)}


def _calibration(run: RunData) -> Content | None:
    """Scores against hits on the test images; None without data set or predictions."""
    measured = [cycle for cycle in run.cycles if cycle.predictions_file is not None]
    if run.dataset is None or not measured:
        return None
    labels, splits = run.dataset.labels, run.dataset.images.splits
    details = measured[-1].test["details"] if measured[-1].test else {}
    # IoU where FROC was not measured.
    overlap = details.get(FROC, {}).get("overlap", "iou")
    truth, infos, names = labels.of(splits["test"]), run.dataset.images.infos, labels.class_names
    found = [
        (cycle.number, reliability(cycle.predictions(names), truth, infos, names, overlap))
        for cycle in measured
    ]
    chart = reliability_chart(found[-1][1], colour_of(run.strategy))
    return {
        "chart": to_svg(chart, "Reliability of scores"),
        "found": found,
        "rule": "IoBB" if overlap == "iobb" else "IoU",
    }


def _corrections(run: RunData) -> Content | None:
    """What readers did with each query that is answered; None where none is."""
    queries = {
        cycle.number: cycle.corrections.to_json()
        for cycle in run.cycles
        if cycle.corrections is not None
    }
    return {"queries": queries} if queries else None


def _finds(run: RunData) -> Content | None:
    """The kinds of mistakes; None where no cycle's criterion was looked at."""
    return {"mistakes": MISTAKES} if any(cycle.finds for cycle in run.cycles) else None


def _time(run: RunData) -> Content | None:
    """Seconds per stage; None where nothing was measured yet."""
    totals = [sum(cycle.seconds.values()) for cycle in run.cycles if cycle.seconds]
    return {"longest": max(totals) or 1.0, "stages": STAGES} if totals else None
