"""What is drawn of a run: FROC, learning curves and the reliability of scores."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from med_sslal.eval.calibration import N_BINS, Reliability
from med_sslal.report.charts import band, extent, legend, line, new_chart, point, save_png, value
from med_sslal.report.colours import BLUE, FAINT, INK, PALETTE, VERMILLION

MARKS = (0.5, 1.0, 2.0, 4.0)
"""False positives per image that are marked on a FROC, the terms of `sens_mean`."""

_FPS_RANGE = (0.1, 20.0)
_FPS_TICKS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)

_COLOURS = (*PALETTE, INK)

_BAND = "\n(band: 95 % interval)"


class FrocLine(NamedTuple):
    """One curve of a FROC plot."""

    fps: Sequence[float]  # False positives per image at the corners, rising.
    sensitivity: Sequence[float]  # At these.
    reach: float  # False positives per image where the curve ends.
    marks: Sequence[float | None]  # Sensitivity at each of MARKS, None where undefined.
    intervals: Sequence[Sequence[float] | None]  # Of these, 95 %; None where there is none.
    mean: float | None  # Over the marks.
    mean_interval: Sequence[float] | None

    @property
    def end(self) -> float:
        """Sensitivity where the curve ends."""
        return self.sensitivity[-1] if len(self.sensitivity) else 0.0


def froc_lines(evaluation: Mapping[str, Any]) -> dict[str, FrocLine]:
    """The curves in what `eval.metric.evaluate` returned (or in metrics.json): class to line.

    Classes without lesions, which have no curve, are left out.
    """
    values, intervals = evaluation["values"], evaluation["intervals"]
    classes = evaluation["details"]["sensitivity_k_fps"]["classes"]
    lines = {}
    for name, content in classes.items():
        suffix = f"/{name}" if len(classes) > 1 else ""
        if content["n_lesions"]:
            keys = [f"sens_{limit:g}fp{suffix}" for limit in MARKS]
            shape, mean = content["curve"], f"sens_mean{suffix}"
            ends = (shape["fps_per_image"], shape["sensitivity"], content["max_fps_per_image"])
            marks = ([values[key] for key in keys], [intervals[key] for key in keys])
            lines[name] = FrocLine(*ends, *marks, values[mean], intervals[mean])
    return lines


def plot_froc(
    lines: Mapping[str, FrocLine], path: Path, title: str, note: str | None = None
) -> None:
    """Draw FROC curves, label to line, with marks and intervals at 0.5, 1, 2 and 4 FPs per image.

    A dotted continuation and hollow marks show where a curve has ended for want of detections;
    `note` is printed at the foot.

    Raises:
        UserError: The folder cannot be written.
    """
    figure, axes = _froc_chart(title, note)
    # In the order of their ends, as the curves lie at the legend.
    order = sorted(enumerate(lines.items()), key=lambda entry: -entry[1][1].end)
    for i, (name, curve) in order:
        colour = _COLOURS[i % len(_COLOURS)]
        _draw_curve(axes, curve, colour, label=_label(name, curve, brief=len(lines) > 5))
        # Side by side, so that the intervals of several curves do not hide each other.
        shift = 1.035 ** (i - (len(lines) - 1) / 2)
        _draw_marks(axes, curve, colour, shift, with_values=len(lines) == 1)
    if lines:
        legend(axes)
    save_png(figure, path)


def froc_over_cycles(lines: Sequence[FrocLine], colour: str) -> Figure:
    """FROC of one class in each cycle (one or more), the last in `colour`, earlier ones faint."""
    figure, axes = _froc_chart()
    for place, earlier in enumerate(lines[:-1]):
        shade = 0.35 + 0.5 * place / max(1, len(lines) - 1)
        _draw_curve(axes, earlier, FAINT, width=1.5, alpha=shade)
    _draw_curve(axes, lines[-1], colour)
    _draw_marks(axes, lines[-1], colour)
    return figure


def _froc_chart(title: str = "", note: str | None = None) -> tuple[Figure, Axes]:
    x, y = "false positives per image (log scale)", "sensitivity"
    figure, axes = new_chart(x, y, title=title, note=note)
    axes.set_xscale("log")
    axes.set_xlim(*_FPS_RANGE)
    axes.set_ylim(0, 1.04)
    axes.xaxis.set_major_locator(FixedLocator(_FPS_TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
    return figure, axes


def _draw_curve(
    axes: Axes,
    curve: FrocLine,
    colour: str,
    *,
    width: float = 2.2,
    alpha: float = 1,
    label: str | None = None,
) -> None:
    """The staircase, solid as far as it was measured and dotted beyond."""
    # From the left edge on; a log axis has no zero.
    fps = np.maximum([0.0, *curve.fps, curve.reach], _FPS_RANGE[0] / 10).tolist()
    heights = [0.0, *curve.sensitivity, curve.end]
    line(axes, fps, heights, colour, width=width, alpha=alpha, steps=True, label=label)
    if curve.reach < _FPS_RANGE[1]:
        beyond = [max(curve.reach, fps[0]), _FPS_RANGE[1]]
        line(axes, beyond, [curve.end] * 2, colour, width=1.3, dash="2 3", alpha=alpha)


def _draw_marks(
    axes: Axes, curve: FrocLine, colour: str, shift: float = 1, *, with_values: bool = True
) -> None:
    """The reported points with their intervals; hollow where the value is the curve's end."""
    for limit, height, interval in zip(MARKS, curve.marks, curve.intervals, strict=True):
        if height is None:
            continue
        if interval is not None:
            band(axes, [limit * shift], interval[:1], interval[1:], colour)
        tip = f"{height:.3f} at {limit:g} FPs per image"
        point(axes, limit * shift, height, colour, tip, hollow=limit > curve.reach)
        if with_values:
            value(axes, limit * shift, height, f"{height:.2f}")


def _label(name: str, curve: FrocLine, *, brief: bool) -> str:
    """The name of a curve in the legend; `brief` where many curves share the plot."""
    if curve.mean is None or brief:
        return f"{name}  {'-' if curve.mean is None else format(curve.mean, '.2f')}"
    text = f"{name}\nmean {curve.mean:.2f}"
    if curve.mean_interval is not None:
        text += "\n({:.2f} to {:.2f})".format(*curve.mean_interval)
    return text + (f"\nends at {curve.reach:.1f} FPs" if curve.reach < _FPS_TICKS[-1] else "")


class Score(NamedTuple):
    """A metric to draw: its key in the rows, its name, and how its line looks."""

    key: str
    name: str
    colour: str
    dash: str = ""


def plot_learning_curve(
    rows: Sequence[Mapping[str, Any]], path: Path, title: str, note: str | None = None
) -> None:
    """Draw mean sensitivity (with its 95 % interval) and AP50 against labelled images.

    Raises:
        UserError: The folder cannot be written.
    """
    mean = Score("test_sens_mean", "mean sensitivity\nat 0.5 to 4 FPs", BLUE)
    scores = [mean, Score("test_AP50", "AP50", VERMILLION)]
    save_png(learning_curve(rows, scores, "labelled_images", title=title, note=note), path)


def learning_curve(
    rows: Sequence[Mapping[str, Any]],
    scores: Sequence[Score],
    count: str,
    *,
    title: str = "",
    note: str | None = None,
) -> Figure:
    """Metrics of the test images, with their 95 % intervals, against labels paid for.

    The horizontal axis is the column `count`: `labelled_images` or `labelled_boxes`. A metric KEY
    of a row may have KEY_low and KEY_high; of `scores`, what is known is drawn.
    """
    unit = count.replace("_", " ")
    figure, axes = new_chart(unit, "on the test images", title=title, note=note)
    keys = [f"{key}{end}" for key, *_ in scores for end in ("", "_low", "_high")]
    axes.set_ylim(*extent([row[key] for row in rows for key in keys if row.get(key) is not None]))
    for key, name, colour, dash in scores:
        known = [row for row in rows if row.get(key) is not None]
        low, high = f"{key}_low", f"{key}_high"
        spread = [row for row in known if row.get(low) is not None and row.get(high) is not None]
        x, y, top = ([row[each] for row in spread] for each in (count, low, high))
        band(axes, x, y, top, colour)
        if known:
            x, y = ([row[each] for row in known] for each in (count, key))
            label = f"{name}{_BAND if spread else ''}\n{y[-1]:.3f}"
            tips = [
                f"cycle {row.get('cycle')}: {name} {row[key]:.3f} with {row[count]} {unit}"
                for row in known
            ]
            line(axes, x, y, colour, dash=dash, label=label, tips=tips)
    counts = [row[count] for row in rows]
    axes.set_xlim(left=0, right=1.04 * max(counts, default=1) or 1)
    axes.locator_params(axis="x", integer=True)
    if title and axes.get_lines():
        legend(axes)
    return figure


def reliability_chart(result: Reliability, colour: str) -> Figure:
    """Hit rate against mean score, over the share of detections in each tenth of the scores."""
    figure, axes = new_chart("score", "share that is right")
    axes.set_xlim(0, 1)
    axes.set_ylim(*extent([0, 1]))
    total = max(1, int(result.counts.sum()))
    for i, count in enumerate(result.counts.tolist()):
        tip = f"{count} detections of score {i / N_BINS:.1f} to {(i + 1) / N_BINS:.1f}"
        middle, width = (i + 0.5) / N_BINS, 0.95 / N_BINS
        axes.bar(middle, count / total, width, color=FAINT, alpha=0.35, gid=f"tip:{tip}")
    line(axes, [0, 1], [0, 1], FAINT, width=1.3, dash="4 4")
    filled = result.counts > 0
    x, y = result.mean_scores[filled].tolist(), result.hit_rates[filled].tolist()
    tips = [
        f"score {score:.2f} on average, {rate:.2f} right, {count} detections"
        for score, rate, count in zip(x, y, result.counts[filled].tolist(), strict=True)
    ]
    line(axes, x, y, colour, tips=tips)
    return figure
