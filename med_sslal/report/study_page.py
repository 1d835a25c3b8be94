"""The report of a study: does choosing images save labels, how many, and how sure is that."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from med_sslal.report.charts import band, line, new_chart, to_svg
from med_sslal.report.colours import INK, styles
from med_sslal.report.pages import render, write_page
from med_sslal.report.study_data import StudyData
from med_sslal.study.study_folder import UNITS, run_folder
from med_sslal.trainer.run_folder import REPORT

Content = Mapping[str, Any]
Looks = Mapping[str, tuple[str, str]]

_FULL_DASH = "1 4"


def write_study_report(study: StudyData) -> Path:
    """Write the report into the study folder, with links to its runs' own; returns its path.

    Raises:
        UserError: The folder cannot be written.
    """
    sections: dict[str, tuple[str, Content]] = {
        "label-efficiency": ("Label efficiency", _curves(study)),
        "images": ("The arms against labelled images", _comparison(study, "images")),
        "boxes": ("The arms against labelled boxes", _comparison(study, "boxes")),
        "matrix": ("Win, tie, loss", {}),
        "runs": ("Runs", {"reports": _reports(study)}),
        "reproduce": ("How to reproduce", {}),
    }
    if not study.results:
        for name in (*UNITS, "matrix"):
            del sections[name]
    page = render("study.html.j2", title=study.name, study=study, sections=sections)
    return write_page(study.folder / REPORT, page)


def _curves(study: StudyData) -> Content:
    """Label-efficiency curves against images and boxes."""
    looks, charts = styles(study.arms), []
    for unit, column in UNITS.items():
        charts.append((_curve_chart(study, unit, column, looks), f"Against labelled {unit}."))
    legend = [(arm, *looks[arm]) for arm in study.arms]
    if study.full is not None and study.rows[study.full]:
        legend.append((f"{study.full} supervision, mean", INK, _FULL_DASH))
    notes = [note for result in study.results.values() for note in result["notes"]]
    sentences = [text if text[-1:] == "." else f"{text[:1].upper()}{text[1:]}." for text in notes]
    return {"charts": charts, "legend": legend, "notes": list(dict.fromkeys(sentences))}


def _curve_chart(study: StudyData, unit: str, column: str, looks: Looks) -> Markup:
    figure, axes = new_chart(f"labelled {unit}", _spoken(study.metric))
    full = _full_mean(study, study.metric)
    if full is not None:
        axes.axhline(full, color=INK, linewidth=1.4, linestyle=(0, (1, 3)))
    for arm, rows in [(name, own) for name in study.arms for own in study.rows[name].values()]:
        if known := [row for row in rows if row.get(study.metric) is not None]:
            x, y = ([row[key] for row in known] for key in (column, study.metric))
            line(axes, x, y, looks[arm][0], width=1, alpha=0.3)
    means = study.results[unit]["arms"] if unit in study.results else {}
    for arm, result in means.items():
        colour, dash = looks[arm]
        x, y, low, high = (result["curve"][key] for key in ("labels", "values", "low", "high"))
        if low is not None:
            band(axes, x, low, high, colour)
        tips = [f"{arm}: {top:.3f} with {at:g} {unit}" for at, top in zip(x, y, strict=True)]
        # Counted in boxes, every seed has points of its own, and none is measured for all.
        measured = len(x) <= max(map(len, study.rows[arm].values()), default=0)
        line(axes, x, y, colour, width=2.4, dash=dash, tips=tips if measured else ())
    return to_svg(figure, f"{study.metric} of every arm against labelled {unit}")


def _spoken(metric: str) -> str:
    return "mean sensitivity, test" if metric == "test_sens_mean" else metric


def _full_mean(study: StudyData, metric: str) -> float | None:
    """Mean score of full supervision over its seeds, None where it was not measured."""
    if study.full is None:
        return None
    scores = [rows[-1].get(metric) for rows in study.rows[study.full].values() if rows]
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if known else None


def _comparison(study: StudyData, unit: str) -> Content:
    """What the tables of one axis need for each metric: results by baseline, scale and ceiling."""
    tables = []
    for metric, families in study.families.items():
        results = {baseline: family[unit] for baseline, family in families.items()}
        first = next(iter(results.values()))
        goals = next(iter(first["arms"].values()))["goals"]
        table = {"metric": metric, "name": _spoken(metric), "results": results, "first": first}
        table |= {"scale": _scale(results), "full": _full_mean(study, metric)}
        tables.append({**table, "fractions": [goal["fraction"] for goal in goals]})
    return {"unit": unit, "tables": tables}


def _scale(results: Mapping[str, Mapping[str, Any]]) -> tuple[float, float]:
    """Ends of one scale for all differences of a table, with 0 in it."""
    arms = [arm for result in results.values() for arm in result["arms"].values()]
    areas = [arm["comparison"]["area"] for arm in arms if arm["comparison"]]
    values = [0.0, *(end for own in areas for end in (own["value"], *(own["interval"] or ())))]
    low, high = min(values), max(values)
    margin = 0.04 * (high - low) or 0.5
    return low - margin, high + margin


def _reports(study: StudyData) -> dict[tuple[str, int], str]:
    """Arm and seed to the address of the run's own report, where there is one."""
    return {
        (arm, seed): f"{arm}/s{seed}/{REPORT}"
        for arm in study.strategies
        for seed in study.seeds
        if run_folder(study.folder, arm, seed).report.is_file()
    }
