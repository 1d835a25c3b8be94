"""What criteria find on images whose truth is known, as a table for a terminal."""

from collections.abc import Mapping

from med_sslal.al.finds import MISTAKES, Finds
from med_sslal.utils.text_table import text_table


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
