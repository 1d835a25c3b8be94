"""The tables of a run in a terminal: its cycles, metrics, and what criteria find."""

from collections.abc import Mapping, Sequence
from typing import Any

from med_sslal.al.finds import MISTAKES, Finds
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
    """The cycles of a run (rows of its summary) as aligned text, below a heading and a rule.

    What is missing or None is "-". With several classes a column of AP50 per class follows.
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
    """What `evaluate` returned, a line per metric: name, value, 95 % interval if there is one."""
    rows = []
    for name, value in evaluation["values"].items():
        pair = evaluation["intervals"].get(name)
        rows.append([name, _cell(value, ".3f"), "({:.3f}-{:.3f})".format(*pair) if pair else ""])
    return text_table(rows, rule=False)


def finds_table(found: Mapping[str, Finds], cycle: int) -> str:
    """Compare what criteria find, by name, on the same images with the model of `cycle`."""
    first = next(iter(found.values()))
    rows = [["criterion", *MISTAKES.values()]]
    rows.append(["all images", *(f"{each.all:.2f}" for each in first.findings.values())])
    notes = []
    for name, one in found.items():
        cells = []
        for each in one.findings.values():
            sign = "-" if each.correlation is None else f"{each.correlation:+.2f}"
            cells.append(f"{each.top:.2f} ({sign})")
            notes += [] if each.undefined is None else [f"undefined, {each.undefined}"]
        rows.append([name, *cells])
    head = (
        f"cycle {cycle}: an image of the best {first.n_top} of {first.n_images} validation images "
        "by each criterion has (rank correlation of value and mistake):"
    )
    return "\n".join([head, text_table(rows, "<>"), *dict.fromkeys(notes)])


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
