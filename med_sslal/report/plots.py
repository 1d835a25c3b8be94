"""Curves as PNG: FROC of one evaluation, and what was learned from how many labels."""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from med_sslal.utils.util import atomic_write

# Okabe and Ito's colours, told apart with every kind of colour vision; dark ones first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
INK, FAINT = "#222222", "#8A8A8A"

MARKS = (0.5, 1.0, 2.0, 4.0)
"""False positives per image that are marked on a FROC, the terms of `sens_mean`."""

_FPS_RANGE = (0.1, 20.0)
_FPS_TICKS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
# Sensitivity down to which there is room for a value below its point.
_LOW = 0.07


@dataclass(frozen=True)
class FrocLine:
    """One curve of a FROC plot.

    Attributes:
        fps: False positives per image at the corners, rising.
        sensitivity: Sensitivity at these.
        reach: False positives per image where the curve ends.
        marks: Sensitivity at each of MARKS, None where undefined.
        intervals: Their 95 % intervals, None where there is none.
        mean: Mean over the marks.
        mean_interval: Its 95 % interval.
    """

    fps: Sequence[float]
    sensitivity: Sequence[float]
    reach: float
    marks: Sequence[float | None]
    intervals: Sequence[Sequence[float] | None]
    mean: float | None
    mean_interval: Sequence[float] | None


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
            mean = f"sens_mean{suffix}"
            lines[name] = FrocLine(
                content["curve"]["fps_per_image"],
                content["curve"]["sensitivity"],
                content["max_fps_per_image"],
                [values[key] for key in keys],
                [intervals[key] for key in keys],
                values[mean],
                intervals[mean],
            )
    return lines


def plot_froc(
    lines: Mapping[str, FrocLine], path: Path, title: str, note: str | None = None
) -> None:
    """Draw FROC curves with marks and bootstrap intervals at 0.5, 1, 2 and 4 FPs per image.

    A dotted continuation and hollow marks show where a curve has ended for want of detections.

    Args:
        lines: Label to curve.
        path: The PNG; its folder must exist.
        title: Heading.
        note: Printed in the figure, for example that the data is a phantom.
    """
    figure, axes = _figure(title, note)
    labels = []
    for i, (name, line) in enumerate(lines.items()):
        colour = COLOURS[i % len(COLOURS)]
        _draw_curve(axes, line, colour)
        # Side by side, so that the intervals of several curves do not hide each other.
        shift = 1.035 ** (i - (len(lines) - 1) / 2)
        _draw_marks(axes, line, colour, shift, with_values=len(lines) == 1)
        end = line.sensitivity[-1] if len(line.sensitivity) else 0.0
        labels.append((end, _label(name, line, brief=len(lines) > 5), colour))
    axes.set_xscale("log")
    axes.set_xlim(*_FPS_RANGE)
    axes.xaxis.set_major_locator(FixedLocator(_FPS_TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("false positives per image (log scale)", color=INK)
    axes.set_ylabel("sensitivity", color=INK)
    axes.set_ylim(0, 1.04)
    _label_ends(axes, labels)
    save_png(figure, path)


def plot_learning_curve(
    rows: Sequence[Mapping[str, Any]],
    path: Path,
    title: str,
    note: str | None = None,
    prefix: str = "test_",
) -> None:
    """Draw mean sensitivity (with its 95 % interval) and AP50 against labelled images.

    Args:
        rows: One mapping per cycle, as `report.table.cycle_table` takes them.
        path: The PNG; its folder must exist.
        title: Heading.
        note: Printed in the figure.
        prefix: `test_` or `val_`.
    """
    figure, axes = _figure(title, note)
    labels = []
    for key, name, colour in (
        ("sens_mean", "mean sensitivity\nat 0.5 to 4 FPs", COLOURS[0]),
        ("AP50", "AP50", COLOURS[1]),
    ):
        known = [row for row in rows if row.get(prefix + key) is not None]
        if not known:
            continue
        x = [row["labelled_images"] for row in known]
        y = [row[prefix + key] for row in known]
        axes.plot(x, y, color=colour, linewidth=2, marker="o", markersize=6, zorder=3)
        low, high = f"{prefix}{key}_low", f"{prefix}{key}_high"
        spread = [row for row in known if row.get(low) is not None and row.get(high) is not None]
        axes.fill_between(
            [row["labelled_images"] for row in spread],
            [row[low] for row in spread],
            [row[high] for row in spread],
            color=colour,
            alpha=0.16,
            linewidth=0,
        )
        if spread:
            name += "\n(band: 95 % interval)"
        labels.append((y[-1], f"{name}\n{y[-1]:.3f}", colour))
    counts = [row["labelled_images"] for row in rows]
    if 1 < len(counts) <= 8:
        axes.xaxis.set_major_locator(FixedLocator(counts))
    axes.set_xlabel("labelled images", color=INK)
    axes.set_ylim(0, 1.04)
    _label_ends(axes, labels)
    save_png(figure, path)


def new_figure(width: float, height: float) -> Figure:
    """A figure of its own (inches): matplotlib's global state is neither read nor changed."""
    figure = Figure(figsize=(width, height), dpi=130, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure whole or not at all.

    Raises:
        UserError: The folder cannot be written.
    """
    stream = io.BytesIO()
    # Without the version of matplotlib in the file, equal pictures are equal bytes.
    figure.savefig(stream, format="png", metadata={"Software": None})
    atomic_write(path, lambda target: target.write(stream.getvalue()))


def _figure(title: str, note: str | None) -> tuple[Figure, Axes]:
    """A figure with one plot and room for labels on its right."""
    figure = new_figure(7.6, 4.6)
    axes = figure.add_axes((0.09, 0.15, 0.66, 0.73))
    figure.text(0.09, 0.93, title, fontsize=12.5, fontweight="bold", color=INK)
    if note:
        figure.text(0.985, 0.025, note, fontsize=8.5, color=FAINT, style="italic", ha="right")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9, color=FAINT)
    axes.grid(color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _draw_curve(axes: Axes, line: FrocLine, colour: str) -> None:
    """The staircase, solid as far as it was measured and dotted beyond."""
    # From the left edge on; a log axis has no zero.
    fps = np.maximum([0.0, *line.fps, line.reach], _FPS_RANGE[0] / 10)
    ends = line.sensitivity[-1] if len(line.sensitivity) else 0.0
    sensitivity = [0.0, *line.sensitivity, ends]
    axes.step(fps, sensitivity, where="post", color=colour, linewidth=2, zorder=3)
    if line.reach < _FPS_RANGE[1]:
        beyond = [max(line.reach, fps[0]), _FPS_RANGE[1]]
        axes.plot(beyond, [ends, ends], color=colour, linewidth=1.2, linestyle=":", zorder=2)


def _draw_marks(
    axes: Axes, line: FrocLine, colour: str, shift: float, *, with_values: bool
) -> None:
    """The reported points with their intervals."""
    for limit, value, interval in zip(MARKS, line.marks, line.intervals, strict=True):
        if value is None:
            continue
        x = limit * shift
        if interval is not None:
            axes.plot([x, x], interval, color=colour, linewidth=1.4, alpha=0.75, zorder=4)
        axes.plot(
            [x],
            [value],
            marker="o",
            markersize=7,
            # Hollow where the value is that of the curve's end.
            markerfacecolor=colour if limit <= line.reach else "white",
            markeredgecolor="white" if limit <= line.reach else colour,
            markeredgewidth=1.3,
            zorder=5,
        )
        if with_values:
            axes.annotate(
                f"{value:.2f}",
                (x, value),
                # Below the lowest points the axis has its own numbers.
                xytext=(6, -12 if value > _LOW else 5),
                path_effects=[withStroke(linewidth=2.5, foreground="white")],
                textcoords="offset points",
                fontsize=9,
                color=INK,
                zorder=6,
            )


def _label(name: str, line: FrocLine, *, brief: bool) -> str:
    """What is written at the end of a curve; `brief` where many curves share the plot."""
    if line.mean is None or brief:
        return f"{name}  {'-' if line.mean is None else format(line.mean, '.2f')}"
    text = f"{name}\nmean {line.mean:.2f}"
    if line.mean_interval is not None:
        text += " ({:.2f} to {:.2f})".format(*line.mean_interval)
    return text + (f"\nends at {line.reach:.1f} FPs" if line.reach < _FPS_TICKS[-1] else "")


def _label_ends(axes: Axes, labels: Iterable[tuple[float, str, str]]) -> None:
    """Write each label at the height of its curve's end, moved apart where they would collide.

    Args:
        axes: The plot; its y range must be set.
        labels: Height, text and colour of each.
    """
    line_height = 0.047 * (axes.get_ylim()[1] - axes.get_ylim()[0])
    placed = sorted(labels, key=lambda label: -label[0])
    heights = [(text.count("\n") + 1.6) * line_height for _, text, _ in placed]
    top = axes.get_ylim()[1] + 0.3 * line_height
    for (end, text, colour), height in zip(placed, heights, strict=True):
        middle = min(end, top - height / 2)
        top = middle - height / 2
        axes.annotate(
            text,
            (1.0, middle),
            xycoords=("axes fraction", "data"),
            xytext=(9, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=colour,
            fontweight="bold",
            annotation_clip=False,
        )
