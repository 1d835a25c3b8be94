"""Tables as aligned text, for terminals and logs."""

from collections.abc import Sequence


def text_table(rows: Sequence[Sequence[str]], align: str = "<", *, rule: bool = True) -> str:
    """Put cells one below the other, columns two spaces apart, without spaces at the lines' ends.

    Args:
        rows: Equally long lines of cells, the headings first.
        align: `<` or `>` for each column; the last one counts for all that follow.
        rule: Whether a line of hyphens parts the headings from the rest.

    Example:
        >>> print(text_table([["arm", "area"], ["random", "0.4"]], "<>"))
        arm     area
        ------  ----
        random   0.4
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = align.ljust(len(widths), align[-1])
    lines = [rows[0], ["-" * width for width in widths], *rows[1:]] if rule else rows
    return "\n".join(
        "  ".join(
            f"{cell:{side}{width}}" for cell, side, width in zip(line, sides, widths, strict=True)
        ).rstrip()
        for line in lines
    )
