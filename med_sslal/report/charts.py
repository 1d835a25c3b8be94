"""Charts, drawn once by matplotlib: as PNG beside the results and as SVG inside a page."""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Text

from med_sslal.report.colours import FAINT, GRID, INK, MUTED, PAPER, THEME
from med_sslal.utils.util import atomic_write

# Of a page's chart, in pixels, and where its axes lie.
_WIDTH, _HEIGHT = 480, 310
_INSIDE = (0.13, 0.15, 0.85, 0.8)

# What is written beside a point; it stands out from the lines that it crosses.
_VALUE = "value"


def new_chart(x: str, y: str, *, title: str = "", note: str | None = None) -> tuple[Figure, Axes]:
    """A figure with one plot, without pyplot and the figures that it keeps.

    `x` and `y` say what the axes measure, with the unit. A `title` makes a picture that stands
    alone, with room for a legend on the right; a chart of a page has both in the page. The `note`
    is printed at the foot, for example that the data is a phantom.
    """
    figure = Figure((7.6, 4.6) if title else (_WIDTH / 72, _HEIGHT / 72), 130, facecolor=PAPER)
    axes = figure.add_axes((0.09, 0.15, 0.66, 0.73) if title else _INSIDE)
    plain: dict[str, Any] = {"parse_math": False, "color": INK if title else MUTED}
    figure.text(0.09, 0.93, title, fontsize=12.5, fontweight="bold", **plain)
    if note:
        figure.text(0.985, 0.025, note, fontsize=8.5, style="italic", ha="right", color=FAINT)
    axes.set_xlabel(x, fontsize=10 if title else 12, **plain)
    axes.set_ylabel(y, fontsize=10 if title else 12, **plain)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(FAINT)
    axes.tick_params(labelsize=9 if title else 12, labelcolor=plain["color"], color=FAINT)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", color=GRID, linewidth=1)
    axes.set_axisbelow(True)
    axes.margins(0.04)
    return figure, axes


def line(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    colour: str,
    *,
    width: float = 2,
    dash: str = "",
    alpha: float = 1,
    steps: bool = False,
    label: str | None = None,
    tips: Sequence[str] = (),
) -> None:
    """Draw a line through rising `x`, named `label` in the legend.

    Its `width` is in pixels of the page, and `dash` holds the pixels drawn and left out in turn, as
    in SVG ("" = solid). With `steps` it keeps its height up to the next x. Where there are `tips`,
    one for each x, its points are marked.
    """
    pattern = (0, [float(part) / width for part in dash.split()]) if dash else "-"
    axes.plot(
        x, y, color=colour, linewidth=width, linestyle=pattern, alpha=alpha, label=label,
        drawstyle="steps-post" if steps else "default", solid_joinstyle="round", zorder=3,
    )  # fmt: skip
    for left, height, tip in zip(x, y, tips, strict=False):
        point(axes, left, height, colour, tip)


def band(
    axes: Axes, x: Sequence[float], low: Sequence[float], high: Sequence[float], colour: str
) -> None:
    """Fill the area between two lines; of a single x, draw an upright bar."""
    if len(x) > 1:
        axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
    elif x:
        axes.plot([x[0], x[0]], [low[0], high[0]], color=colour, linewidth=1.6, alpha=0.75)


def point(axes: Axes, x: float, y: float, colour: str, tip: str, *, hollow: bool = False) -> None:
    """Mark a point, cut by no axis; on a page, `tip` shows where the mouse rests on it."""
    fill, rim = (PAPER, colour) if hollow else (colour, PAPER)
    axes.plot(
        [x], [y], marker="o", markersize=7.5, markerfacecolor=fill, markeredgecolor=rim,
        markeredgewidth=1.3, gid=f"tip:{tip}", zorder=5, clip_on=False,
    )  # fmt: skip


def value(axes: Axes, x: float, y: float, text: str) -> None:
    """Write a value below a point, or above it where the axis has its own numbers below."""
    low, high = axes.get_ylim()
    offset = (6, -13 if y - low > 0.08 * (high - low) else 5)
    axes.annotate(
        text, (x, y), offset, textcoords="offset points", fontsize=9, color=INK, gid=_VALUE,
        zorder=6,
    )  # fmt: skip


def legend(axes: Axes) -> None:
    """Name the lines on the right of a picture that stands alone."""
    names = axes.legend(
        loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9,
        labelcolor="linecolor", handlelength=1.2,
    )  # fmt: skip
    for text in names.get_texts():
        text.set_parse_math(False)


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure whole or not at all.

    Raises:
        UserError: The folder cannot be written.
    """
    for text in figure.findobj(lambda artist: artist.get_gid() == _VALUE):
        assert isinstance(text, Text)
        text.set_path_effects([withStroke(linewidth=2.5, foreground=PAPER)])
    # Without the version of matplotlib in the file, equal pictures are equal bytes.
    how: dict[str, Any] = {"format": "png", "metadata": {"Software": None}}
    atomic_write(path, lambda stream: figure.savefig(stream, **how))


def to_svg(figure: Figure, title: str) -> Markup:
    """A figure as markup for a page: equal figures and titles are equal text.

    The `title` is read to those who do not see it; no other chart of the page has it, since the ids
    inside are made from it.
    """
    stream = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    # Text stays text: it is smaller, and the page's style sheet sets its font and size.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    text = stream.getvalue()
    text = text[text.index(">", text.index("<svg")) + 1 :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r'<g id="tip:([^"]*)">', r"<g><title>\1</title>", text)
    text = text.replace(f'<g id="{_VALUE}">', f'<g class="{_VALUE}">')
    text = re.sub(r'<g id="[^"]*"/>', "", text)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"font-family: [^;]*; ", "", text)
    # A hundredth of a pixel is more than any screen shows.
    text = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), text)
    for colour, variable in THEME.items():
        text = text.replace(colour, variable)
    head = f'<svg class="plot" role="img" viewBox="0 0 {_WIDTH} {_HEIGHT}">'
    return Markup(f"{head}<title>{escape(title)}</title>" + re.sub(r"\n\s*", "\n", text))


def extent(values: Sequence[float]) -> tuple[float, float]:
    """0 to 1 where all values lie there, else from the lowest to the highest, with a margin."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if low >= 0 and high <= 1:
        # Half a line more, so that none at 1 is cut.
        return 0.0, 1.02
    margin = 0.04 * (high - low) or 0.5
    return float(low - margin), float(high + margin)
