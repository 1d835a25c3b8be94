"""HTML by functions: text is escaped unless it was made here, so nothing foreign becomes markup."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from med_sslal.report.style import CSS
from med_sslal.utils.errors import UserError
from med_sslal.utils.util import atomic_write

MAX_BYTES = 15_000_000
"""No page may be larger: it is sent by mail and opened on phones."""


class Html(str):
    """Text that is markup already; any other text is escaped where it enters a page."""

    __slots__ = ()


Content = str | int | Iterable["Content"] | None
"""What an element may hold: text, numbers, elements, and nests of these; None is nothing."""


def join(content: Content) -> Html:
    """Markup of what an element holds, foreign text escaped."""
    if content is None:
        return Html()
    if isinstance(content, Html):
        return content
    if isinstance(content, str | int):
        return Html(escape(str(content)))
    return Html("".join(join(part) for part in content))


def tag(name: str, *content: Content, **attributes: str | float | None) -> Html:
    """One element.

    Args:
        name: Its name.
        *content: What it holds.
        **attributes: Values, escaped; `class_` is class, `view_box` stays as it is, any other `_`
            is a hyphen, and None leaves the attribute out.
    """
    words = "".join(
        f' {_attribute(key)}="{escape(_plain(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{words}>{join(content)}</{name}>")


def _attribute(key: str) -> str:
    """The attribute that a keyword names; two of SVG's are written in camel case."""
    camel = {"view_box": "viewBox", "preserve_aspect_ratio": "preserveAspectRatio"}
    return camel.get(key) or key.rstrip("_").replace("_", "-")


def _plain(value: str | float) -> str:
    """An attribute's value as text, numbers short."""
    return value if isinstance(value, str) else f"{value:.6g}"


@dataclass(frozen=True)
class Section:
    """One part of a page.

    Attributes:
        name: Its anchor, for the list of contents: lower-case letters and hyphens.
        heading: Its title.
        lead: One plain sentence that says what one sees.
        body: The rest.
    """

    name: str
    heading: str
    lead: Content
    body: Content


def page(
    title: str,
    *,
    kicker: str,
    facts: Sequence[Content],
    notices: Sequence[Content],
    intro: Content,
    sections: Sequence[Section],
) -> str:
    """A whole page that needs no other file.

    Args:
        title: Its title.
        kicker: Words above the title.
        facts: Short facts below it.
        notices: What every reader must know, each in a box of its own.
        intro: What comes before the sections.
        sections: The sections; a list of contents is made of them.
    """
    contents = tag(
        "nav",
        tag("ol", [tag("li", tag("a", s.heading, href=f"#{s.name}")) for s in sections]),
        aria_label="Contents",
    )
    body = tag(
        "main",
        tag(
            "header",
            tag("p", kicker, class_="kicker"),
            tag("h1", title),
            tag("p", [tag("span", fact) for fact in facts], class_="facts"),
        ),
        [tag("p", notice, class_="notice") for notice in notices],
        intro,
        contents,
        [
            tag("section", tag("h2", s.heading), tag("p", s.lead, class_="lead"), s.body, id=s.name)
            for s in sections
        ],
        tag("footer", "Made by med_sslal. Research software, not a medical device."),
    )
    head = (
        '<meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}{tag("title", title)}'
        f"<style>{CSS}</style></head><body>{body}</body></html>\n"
    )


def write_page(path: Path, text: str) -> Path:
    """Write a page whole or not at all; returns `path`.

    Raises:
        UserError: The page is larger than MAX_BYTES, or the folder cannot be written.
    """
    # A name read from a file can hold half a surrogate pair, which UTF-8 has no bytes for.
    content = text.encode("utf-8", errors="replace")
    if len(content) > MAX_BYTES:
        raise UserError(
            f"the report {path} would have {len(content) / 1e6:.1f} MB, more than "
            f"{MAX_BYTES / 1e6:.0f} MB: report on fewer runs or arms at once"
        )
    atomic_write(path, lambda stream: stream.write(content))
    return path


def table(
    headings: Sequence[Content],
    rows: Iterable[Sequence[Content]],
    *,
    caption: Content = None,
    text_columns: int = 1,
    stacked: bool = False,
) -> Html:
    """A table in a box of its own, which scrolls where the page is narrow.

    Args:
        headings: One for each column.
        rows: Cells; those that are markup already may be whole `td` elements.
        caption: What it shows.
        text_columns: So many first columns are text, set left; numbers stand right.
        stacked: Whether a phone shows the cells of a line one below the other, with the heading
            (plain text) before each but the first: for long values that cannot be broken.
    """

    def cells(name: str, row: Sequence[Content]) -> list[Html]:
        labels = [str(heading) if stacked and name == "td" else None for heading in headings]
        return [
            tag(name, cell, class_="text" if i < text_columns else None, data_label=labels[i])
            for i, cell in enumerate(row)
        ]

    return tag(
        "div",
        tag(
            "table",
            caption and tag("caption", caption),
            tag("thead", tag("tr", cells("th", headings))),
            tag("tbody", [tag("tr", cells("td", row)) for row in rows]),
            class_="stacked" if stacked else None,
        ),
        class_="scroll",
        # So that the keyboard can scroll it.
        tabindex="0",
        role="group",
    )


def figures(parts: Iterable[Content], *, wide: bool = False) -> Html:
    """Charts side by side, one below the other where the page is narrow."""
    return tag("div", list(parts), class_="figures wide" if wide else "figures")


def chart_figure(chart: Content, caption: Content, legend: Content = None) -> Html:
    """A chart with its legend and caption."""
    return tag("figure", chart, legend, tag("figcaption", caption), class_="chart")


def legend(entries: Iterable[tuple[str, str, str]]) -> Html:
    """The meaning of lines.

    Args:
        entries: Name, CSS colour and dash pattern ("" = solid) of each.
    """

    def swatch(colour: str, dash: str) -> Html:
        style = f"stroke:{colour};stroke-dasharray:{dash or 'none'}"
        stroke = tag("line", x1=0, y1=5, x2=26, y2=5, style=style)
        return tag("svg", stroke, view_box="0 0 26 10", class_="swatch", aria_hidden="true")

    items = [tag("li", swatch(colour, dash), name) for name, colour, dash in entries]
    return tag("ul", items, class_="legend")


def definitions(entries: Mapping[str, Content]) -> Html:
    """Names and values, one below the other."""
    return tag(
        "dl",
        [(tag("dt", name), tag("dd", value)) for name, value in entries.items()],
    )


def tiles(entries: Iterable[tuple[str, Content, Content]]) -> Html:
    """Key figures: label, value and a small remark each."""
    return tag(
        "dl",
        [
            tag(
                "div",
                tag("dt", name),
                tag("dd", value),
                tag("dd", remark, class_="remark") if remark else None,
            )
            for name, value, remark in entries
        ],
        class_="tiles",
    )


def data_uri(content: bytes, kind: str) -> str:
    """A file's bytes as an address that needs no network.

    Args:
        content: The bytes.
        kind: Its media type, such as `image/jpeg`.
    """
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
