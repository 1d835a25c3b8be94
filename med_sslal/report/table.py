"""The table that a run ends with: one line per cycle."""

from collections.abc import Mapping, Sequence
from typing import Any

from med_sslal.utils.text_table import text_table

_COUNTS = (
    ("cycle", "cycle"),
    ("images", "labelled_images"),
    ("boxes", "labelled_boxes"),
    ("pseudo", "pseudo_images"),
)
_SENSITIVITIES = (
    ("sens@0.5", "sens_0.5fp"),
    ("@1", "sens_1fp"),
    ("@2", "sens_2fp"),
    ("@4", "sens_4fp"),
)


def cycle_table(rows: Sequence[Mapping[str, Any]], prefix: str = "test_") -> str:
    """The cycles of a run as aligned text.

    Args:
        rows: One mapping per cycle: `cycle`, `labelled_images`, `labelled_boxes`,
            `pseudo_images`, `minutes`, and metric keys with `prefix`, among them
            `sens_mean_low` and `sens_mean_high` (the 95 % interval) where known.
        prefix: `test_` or `val_`.

    Returns:
        A heading, a rule and one line per row; what is missing or None is "-". With several
        classes a column of AP50 per class follows.
    """
    per_class = list(
        dict.fromkeys(key for row in rows for key in row if key.startswith(f"{prefix}AP50/"))
    )
    headings = [title for title, _ in (*_COUNTS, *_SENSITIVITIES)]
    headings += ["mean (95 %)", "AP50", *(key.removeprefix(prefix) for key in per_class), "minutes"]
    body = []
    for row in rows:
        cells = [_cell(row.get(key), "d") for _, key in _COUNTS]
        cells += [_cell(row.get(prefix + key), ".3f") for _, key in _SENSITIVITIES]
        cells.append(_mean(row, f"{prefix}sens_mean"))
        cells += [_cell(row.get(key), ".3f") for key in (f"{prefix}AP50", *per_class)]
        body.append([*cells, _cell(row.get("minutes"), ".1f")])
    return text_table([headings, *body], ">")


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


def _mean(row: Mapping[str, Any], key: str) -> str:
    """The mean sensitivity with its interval, where there is one."""
    text = _cell(row.get(key), ".3f")
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    return text if low is None or high is None else f"{text} ({low:.3f}-{high:.3f})"


def _cell(value: float | int | None, form: str) -> str:
    """A number as text, "-" where there is none."""
    return "-" if value is None else format(value, form)
