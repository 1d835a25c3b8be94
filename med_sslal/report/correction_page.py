"""The correction report of a query: what readers did with its boxes, as JSON and as a page."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from med_sslal.base.types import Annotation, Prediction
from med_sslal.data.pictures import read_picture
from med_sslal.eval.hits import MIN_OVERLAP
from med_sslal.practice.answers import Answer, Query
from med_sslal.practice.corrections import (
    KINDS,
    MAX_SECONDS,
    SAME_CORNERS,
    Change,
    Corrections,
    corrections,
)
from med_sslal.practice.query_folder import QueryFolder
from med_sslal.report.pages import render, write_page
from med_sslal.report.run_choices import draw_pixels
from med_sslal.utils.errors import DataError
from med_sslal.utils.util import write_versioned

FORMAT_VERSION = 1
N_PICTURES = 24


def write_corrections(folder: Path, query: Query, answers: Mapping[str, Answer]) -> Path:
    """Write the report of a query into its folder, over an earlier one; returns the page's path.

    Its pictures are the query's own copies. `answers` are those to this query that hold, by image
    id: what was answered to another query was about other boxes.

    Raises:
        DataError: A shown box is none.
        UserError: The folder cannot be written.
    """
    files, found = QueryFolder(folder), corrections(query, answers)
    content = found.to_json()
    write_versioned(files.corrections, FORMAT_VERSION, content)
    several = len(content["readers"]) > 1
    readers = {name or "not named": own for name, own in content["readers"].items() if several}
    sections: dict[str, tuple[str, Any]] = {
        "boxes": ("Boxes", {"corners": SAME_CORNERS, "least": MIN_OVERLAP}),
        "reading": (
            "Blind and shown",
            {"groups": readers | {"all": content}, "max_seconds": MAX_SECONDS},
        ),
        "pictures": ("Corrected most", _pictures(files, query, found)),
    }
    page = render(
        "corrections.html.j2",
        title=f"Corrections of query {query.query_id}",
        found=content,
        sections=sections,
    )
    return write_page(files.correction_page, page)


def _pictures(folder: QueryFolder, query: Query, found: Corrections) -> dict[str, Any]:
    """The images with the most corrections, and how many have any."""
    by_image: dict[str, list[Change]] = defaultdict(list)
    for change in found.changes:
        if change.kind != "untouched":
            by_image[change.image_id].append(change)
    images = {image.image_id: image for image in query.images}
    # A sort is stable, and the changes are by rank.
    order = sorted(by_image, key=lambda name: -sum(map(_weight, by_image[name])))
    pictures = []
    for name in order[:N_PICTURES]:
        image, own = images[name], by_image[name]
        try:
            pixels = read_picture(folder.images / image.file_name, (image.height, image.width))
        except DataError:
            # The figures need no copy, and the page counts what is left out.
            continue
        # Untouched boxes would hide the others.
        shown = Prediction(*_columns([(c.box, c.label, c.score) for c in own if c.box]))
        given = _columns([(c.answered_box, c.answered_label, 1) for c in own if c.answered_box])
        label = Annotation(*given[:2], np.zeros(len(given[1]), bool))
        item = {"image_id": name, "rank": 0, "reason": _caption(own, query.class_names)}
        drawn = draw_pixels(pixels, label, shown, query.class_names)
        pictures.append({"item": item, "others": {}, **drawn})
    return {"pictures": pictures, "n_changed": len(order)}


def _columns(rows: Sequence[tuple[Any, ...]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of box, label and score as columns."""
    return (
        np.array([box for box, _, _ in rows], np.float32).reshape(-1, 4),
        np.array([label for _, label, _ in rows], np.int64),
        np.array([score for _, _, score in rows], np.float32),
    )


def _weight(change: Change) -> float:
    """How much of a correction it is: 1, and of a moved box by how far."""
    return 1 - change.iou if change.kind == "moved" and change.iou is not None else 1


def _caption(changes: Sequence[Change], class_names: Sequence[str]) -> str:
    """How many boxes of each kind, with the IoU of moved and the classes of relabelled ones."""
    counts = Counter(change.kind for change in changes)
    overlaps = [c.iou for c in changes if c.kind == "moved" and c.iou is not None]
    turns = [
        f"{class_names[c.label - 1]} to {class_names[c.answered_label - 1]}"
        for c in changes
        if c.kind == "relabelled" and c.label and c.answered_label
    ]
    details = {"relabelled": ", ".join(dict.fromkeys(turns))}
    if overlaps:
        details["moved"] = f"{'mean ' * (len(overlaps) > 1)}IoU {fmean(overlaps):.2f}"
    return ", ".join(
        f"{counts[kind]} {kind}" + (f" ({details[kind]})" if kind in details else "")
        for kind in KINDS
        if counts[kind]
    )
