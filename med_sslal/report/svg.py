"""Charts as inline SVG: small, sharp at any size, and readable on light and on dark paper."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from med_sslal.report.html import Html, tag

_WIDTH, _HEIGHT = 480.0, 310.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 48.0, 14.0, 14.0, 46.0


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        label: What it measures, with its unit.
        low: Where it starts.
        high: Where it ends, above `low`.
        ticks: Where it is marked; found from the range when empty.
        log: Whether it is logarithmic; `low` is above 0 then.
    """

    label: str
    low: float
    high: float
    ticks: tuple[float, ...] = ()
    log: bool = False

    def place(self, value: float) -> float:
        """Where a value lies, 0 at `low` and 1 at `high`."""
        if self.log:
            floor = self.low / 10
            return math.log(max(value, floor) / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def axis_for(label: str, values: Sequence[float], *, from_zero: bool = False) -> Axis:
    """A linear axis that holds all values, with round ticks.

    Args:
        label: What it measures.
        values: Finite numbers; none at all gives 0 to 1.
        from_zero: Whether it starts at 0 in any case.
    """
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if from_zero:
        low = min(0.0, low)
    if high == low:
        low, high = (low - 0.5, high + 0.5) if not from_zero or low < 0 else (0.0, high or 1.0)
    margin = 0.04 * (high - low)
    low, high = low if from_zero and low == 0 else low - margin, high + margin
    return Axis(label, low, high, round_ticks(low, high))


def round_ticks(low: float, high: float, at_most: int = 7) -> tuple[float, ...]:
    """Multiples of 1, 2 or 5 times a power of ten between two values."""
    rough = (high - low) / at_most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(round(number * step, 12) for number in range(first, last + 1))


class Chart:
    """A chart that is drawn from back to front; `to_html` gives the finished picture."""

    def __init__(self, x: Axis, y: Axis, title: str) -> None:
        """Draw the frame.

        Args:
            x: Horizontal axis.
            y: Vertical axis.
            title: What the chart shows, read to those who do not see it.
        """
        self._x, self._y, self._title = x, y, title
        self._parts: list[Html] = []
        self._frame()

    def _px(self, value: float) -> float:
        return _LEFT + self._x.place(value) * (_WIDTH - _LEFT - _RIGHT)

    def _py(self, value: float) -> float:
        bottom = _HEIGHT - _BOTTOM
        return bottom - self._y.place(value) * (bottom - _TOP)

    def _frame(self) -> None:
        """Grid, axes, ticks and labels."""
        bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
        for value in self._y.ticks or round_ticks(self._y.low, self._y.high):
            y = self._py(value)
            self._stroke("grid", _LEFT, y, right, y)
            self._text(_LEFT - 7, y + 4, f"{value:g}", anchor="end")
        for value in self._x.ticks or round_ticks(self._x.low, self._x.high):
            x = self._px(value)
            self._stroke("axis", x, bottom, x, bottom + 5)
            self._text(x, bottom + 19, f"{value:g}", anchor="middle")
        self._stroke("axis", _LEFT, bottom, right, bottom)
        self._text((_LEFT + right) / 2, _HEIGHT - 8, self._x.label, anchor="middle")
        middle = (_TOP + bottom) / 2
        self._text(
            13, middle, self._y.label, anchor="middle", transform=f"rotate(-90 13 {middle:g})"
        )

    def line(
        self,
        x: Sequence[float],
        y: Sequence[float],
        colour: str,
        *,
        width: float = 2,
        dash: str = "",
        opacity: float = 1,
        steps: bool = False,
    ) -> None:
        """Draw a line.

        Args:
            x: Values along the horizontal axis, rising.
            y: The others.
            colour: A CSS colour.
            width: In the chart's own pixels, as all lengths.
            dash: Dash pattern, "" = solid.
            opacity: 0 to 1.
            steps: Whether the line is a staircase that keeps its height up to the next x.
        """
        points = [(self._px(a), self._py(b)) for a, b in zip(x, y, strict=True)]
        if steps:
            points = [
                corner
                for i, (a, b) in enumerate(points)
                for corner in ([(a, points[i - 1][1])] if i else []) + [(a, b)]
            ]
        style = f"fill:none;stroke:{colour};stroke-width:{width:g};stroke-linejoin:round"
        style += f";stroke-dasharray:{dash}" if dash else ""
        # Not `opacity`: each such layer is rounded, and many of them tint the paper below.
        style += f";stroke-opacity:{opacity:g}" if opacity < 1 else ""
        self._inside(tag("polyline", points=_coordinates(points), style=style))

    def band(
        self, x: Sequence[float], low: Sequence[float], high: Sequence[float], colour: str
    ) -> None:
        """Fill the area between two lines."""
        edge = [*zip(x, high, strict=True), *reversed(list(zip(x, low, strict=True)))]
        points = [(self._px(a), self._py(b)) for a, b in edge]
        style = f"fill:{colour};fill-opacity:0.16"
        self._inside(tag("polygon", points=_coordinates(points), style=style))

    def point(self, x: float, y: float, colour: str, tooltip: str, *, hollow: bool = False) -> None:
        """Mark a point; its tooltip says what it is."""
        fill, rim = ("var(--paper)", colour) if hollow else (colour, "var(--paper)")
        style = f"fill:{fill};stroke:{rim};stroke-width:1.5"
        place = {"cx": self._px(x), "cy": self._py(y)}
        self._parts.append(tag("circle", tag("title", tooltip), **place, r=4.0, style=style))

    def bar(self, x: float, low: float, high: float, colour: str) -> None:
        """An upright interval at one x."""
        where = self._px(x)
        style = f"stroke:{colour};stroke-width:1.6;stroke-opacity:0.75"
        self._parts.append(
            tag("line", x1=where, y1=self._py(low), x2=where, y2=self._py(high), style=style)
        )

    def column(self, left: float, right: float, height: float, colour: str, tooltip: str) -> None:
        """A column of a histogram, from the axis' low end up to `height`."""
        x, top = self._px(left) + 1, self._py(height)
        self._parts.append(
            tag(
                "rect",
                tag("title", tooltip),
                x=x,
                y=top,
                width=max(self._px(right) - 1 - x, 0.5),
                height=max(self._py(self._y.low) - top, 0),
                style=f"fill:{colour};fill-opacity:0.35",
            )
        )

    def value(
        self, x: float, y: float, text: str, side: Literal["above", "below"] = "above"
    ) -> None:
        """Write a value beside a point; above it in any case where the axis' labels lie below."""
        lowest = self._py(y) + 17
        down = side == "below" and lowest <= _HEIGHT - _BOTTOM - 2
        self._text(self._px(x) + 5, lowest if down else lowest - 26, text, class_="value")

    def to_html(self) -> Html:
        """The finished chart."""
        return tag(
            "svg",
            tag("title", self._title),
            self._parts,
            view_box=f"0 0 {_WIDTH:g} {_HEIGHT:g}",
            class_="plot",
            role="img",
        )

    def _inside(self, shape: Html) -> None:
        """Add a shape of which only the part between the axes shows."""
        width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
        # A nested picture cuts what leaves it, without the page-wide ids of a clip path.
        self._parts.append(
            tag(
                "svg",
                shape,
                x=_LEFT,
                y=_TOP - 2,
                width=width,
                height=height + 4,
                view_box=f"{_LEFT:g} {_TOP - 2:g} {width:g} {height + 4:g}",
            )
        )

    def _stroke(self, kind: str, x1: float, y1: float, x2: float, y2: float) -> None:
        self._parts.append(tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=kind))

    def _text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        anchor: str | None = None,
        class_: str | None = None,
        transform: str | None = None,
    ) -> None:
        self._parts.append(
            tag("text", text, x=x, y=y, text_anchor=anchor, class_=class_, transform=transform)
        )


def _coordinates(points: Sequence[tuple[float, float]]) -> str:
    """Points as SVG takes them, to a tenth of a pixel."""
    rounded = np.round(np.array(points, dtype=np.float64).reshape(-1, 2), 1)
    return " ".join(f"{x:g},{y:g}" for x, y in rounded)
