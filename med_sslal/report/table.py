"""The table that a run ends with: one line per cycle."""

from collections.abc import Mapping, Sequence
from typing import Any

from med_sslal.utils.text_table import text_table

_COLUMNS = {
    "cycle": ("cycle", "d"),
    "images": ("labelled_images", "d"),
    "boxes": ("labelled_boxes", "d"),
    "pseudo": ("pseudo_images", "d"),
    "sens@0.5": ("test_sens_0.5fp", ".3f"),
    "@1": ("test_sens_1fp", ".3f"),
    "@2": ("test_sens_2fp", ".3f"),
    "@4": ("test_sens_4fp", ".3f"),
}


def cycle_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The cycles of a run as aligned text: a heading, a rule and one line per row.

    What is missing or None is "-". With several classes a column of AP50 per class follows.

    Args:
        rows: One mapping per cycle: `cycle`, `labelled_images`, `labelled_boxes`,
            `pseudo_images`, `minutes`, and metrics of the test images, among them
            `test_sens_mean_low` and `test_sens_mean_high` (the 95 % interval) where known.
    """
    per_class = [key for row in rows for key in row if key.startswith("test_AP50/")]
    scores = dict.fromkeys(["test_AP50", *per_class])
    names = [key.removeprefix("test_") for key in scores]
    body = []
    for row in rows:
        cells = [_cell(row.get(key), form) for key, form in _COLUMNS.values()]
        mean = _cell(row.get("test_sens_mean"), ".3f")
        low, high = row.get("test_sens_mean_low"), row.get("test_sens_mean_high")
        if low is not None and high is not None:
            mean += f" ({low:.3f}-{high:.3f})"
        cells += [mean, *(_cell(row.get(key), ".3f") for key in scores)]
        body.append([*cells, _cell(row.get("minutes"), ".1f")])
    return text_table([[*_COLUMNS, "mean (95 %)", *names, "minutes"], *body], ">")


def metric_table(evaluation: Mapping[str, Any]) -> str:
    """One line per metric: name, value, 95 % interval where there is one.

    Args:
        evaluation: What `eval.metric.evaluate` returned.
    """
    rows = []
    for name, value in evaluation["values"].items():
        pair = evaluation["intervals"].get(name)
        rows.append([name, _cell(value, ".3f"), "({:.3f}-{:.3f})".format(*pair) if pair else ""])
    return text_table(rows, rule=False)


def _cell(value: float | int | None, form: str) -> str:
    """A number as text, "-" where there is none."""
    return "-" if value is None else format(value, form)
