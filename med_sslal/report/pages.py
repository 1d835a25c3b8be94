"""Pages: templates of this folder, filled; every text is escaped on its way in."""

import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from med_sslal.config.values import show
from med_sslal.report.colours import THEME
from med_sslal.utils.errors import UserError
from med_sslal.utils.util import atomic_write

MAX_BYTES = 15_000_000
"""No page may be larger: it is sent by mail and opened on phones."""


def render(template: str, **content: Any) -> str:
    """A whole page that needs no other file, of a file in `templates/`.

    Of the `content` that it shows, only `Markup` of this program enters as it is.
    """
    environment = Environment(
        loader=PackageLoader("med_sslal.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "duration": duration,
        "show": show,
        # Lengths in pictures.
        "px": lambda length: f"{length:.6g}",
        "css": lambda colour: THEME.get(colour, colour),
    }
    return environment.get_template(template).render(content)


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
    atomic_write(path, content)
    return path


def number(value: float | None, digits: int = 3, *, signed: bool = False) -> str:
    """A number as text, a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "\N{EN DASH}"
    return f"{value:{'+' if signed else ''}.{digits}f}"


def duration(seconds: float | None) -> str:
    """Seconds in the unit that a person would use."""
    if seconds is None:
        return "\N{EN DASH}"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 60 else f"{minutes / 60:.1f} h"
