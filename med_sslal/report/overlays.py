"""Sheets of pictures with boxes: how one evaluation went, and what a query took."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from med_sslal.base.base_dataset import Images
from med_sslal.base.types import Annotation, Prediction
from med_sslal.eval.drawing import MAX_BOXES, PREDICTED, TRUTH, above, draw_boxes, text_font
from med_sslal.eval.eval_utils import Columns, on_columns
from med_sslal.eval.hits import match
from med_sslal.report.colours import FAINT, INK, PAPER
from med_sslal.report.plots import froc_lines, plot_froc
from med_sslal.trainer.run_folder import ResultFolder
from med_sslal.utils.util import atomic_write

# In pixels.
_PER_ROW, _CELL, _GAP, _MARGIN = 4, 390, 16, 24
_WIDTH = _PER_ROW * (_CELL + _GAP) + _GAP
_TRUTH = (TRUTH, 36, "truth")
# On white paper the near-white of an ignore region would not show.
_IGNORED = (FAINT, 3, "ignore region")


class View(NamedTuple):
    """A picture on a sheet of views."""

    name: str
    picture: np.ndarray  # float [H, W, 3] in [0, 1]
    label: Annotation | None  # in its pixels; None where it is not labelled


class RankedImage(NamedTuple):
    """How well one image went, at the score floor of the ranking."""

    image_id: str
    # Mean over the lesions of the best score on each (0 where missed), minus the highest score of a
    # false positive; from -1 to 1.
    quality: float
    n_found: int
    n_lesions: int
    worst_score: float | None  # Highest score of a false positive, None without one.

    @property
    def caption(self) -> str:
        """The same in words."""
        found = f"{self.n_found} of {self.n_lesions} found" if self.n_lesions else "no lesion"
        false = "none false" if self.worst_score is None else f"false {self.worst_score:.2f}"
        return f"{found}, {false}"


@on_columns
def best_and_worst(
    table: Columns, *, n: int = 8, min_score: float = 0.3
) -> tuple[list[RankedImage], list[RankedImage]]:
    """The images that went best and those that went worst, `n` of each at most and none in both.

    Detections below `min_score` are taken as not made. The best (at most half of those with a
    lesion, each with one found) come best first, the worst worst first; equal ones in the order of
    their ids.
    """
    matches = match(table)
    n_images = len(table.image_ids)
    lesion = ~table.gt_ignore
    found = lesion & (matches.found_score >= min_score)
    n_lesions = np.bincount(table.gt_image[lesion], minlength=n_images)
    n_found = np.bincount(table.gt_image[found], minlength=n_images)
    score = np.bincount(table.gt_image[found], matches.found_score[found], n_images)
    false = np.full(n_images, -np.inf)
    wrong = matches.false_positive & (table.det_scores >= min_score)
    np.maximum.at(false, table.det_image[wrong], table.det_scores[wrong])
    quality = score / np.maximum(n_lesions, 1) - np.maximum(false, 0)
    worst_score = [score if np.isfinite(score) else None for score in false.tolist()]
    measures = (quality.tolist(), n_found.tolist(), n_lesions.tolist(), worst_score)
    ranked = [RankedImage(*row) for row in zip(table.image_ids, *measures, strict=True)]
    # A sort is stable, and `ranked` is in the order of the ids.
    half = (int((n_lesions > 0).sum()) + 1) // 2
    best = sorted((r for r in ranked if r.n_found), key=lambda r: -r.quality)[: min(n, half)]
    taken = {r.image_id for r in best}
    worst = sorted((r for r in ranked if r.image_id not in taken), key=lambda r: r.quality)
    return best, worst[:n]


def write_evaluation_pictures(
    folder: ResultFolder,
    evaluation: Mapping[str, Any],
    predictions: Mapping[str, Prediction],
    annotations: Mapping[str, Annotation],
    images: Images,
    class_names: Sequence[str],
    title: str,
) -> None:
    """Write `froc.png` (where FROC was measured) and `overlays.png` of the best and worst images.

    `evaluation` is what `eval.metric.evaluate` returned, and `title` the heading of both.

    Raises:
        UserError: The folder cannot be written.
    """
    if "sensitivity_k_fps" in evaluation["details"]:
        plot_froc(froc_lines(evaluation), folder.froc, title, images.note)
    best, worst = best_and_worst(predictions, annotations, images.infos, class_names)
    groups = {"Best (at least one object found)": best, "Worst": worst}
    contact_sheet(
        {name: {r.image_id: r.caption for r in whole_rows(own)} for name, own in groups.items()},
        images.picture,
        predictions,
        annotations,
        class_names,
        folder.overlays,
        title=title,
        note=images.note,
    )


def whole_rows(images: list[RankedImage]) -> list[RankedImage]:
    """The first images, so many that no row of a sheet but the only one is begun."""
    n = len(images)
    return images if n < _PER_ROW else images[: n - n % _PER_ROW]


def contact_sheet(
    groups: Mapping[str, Mapping[str, str]],
    read: Callable[[str], np.ndarray],
    predictions: Mapping[str, Prediction],
    annotations: Mapping[str, Annotation] | None,
    class_names: Sequence[str],
    path: Path,
    *,
    title: str,
    min_score: float = 0.3,
    note: str | None = None,
) -> None:
    """Draw groups of images with their labels and their MAX_BOXES best detections on one sheet.

    `groups` are heading to (image id to caption), for example best and worst. `read` gives float
    [H, W, 3], or [H, W] for grey, in [0, 1]; `annotations` are None where labels are not to be
    seen. Boxes are in ORIGINAL pixels, and detections below `min_score` are not drawn. The folder
    of the PNG `path` must exist; the `note` is printed at the foot.
    """

    def drawn(image_id: str) -> np.ndarray:
        truth = None if annotations is None else annotations[image_id]
        found = above(predictions[image_id], min_score)
        return draw_boxes(read(image_id), truth, found, class_names, width=_CELL)

    strips = []
    for heading, captions in groups.items():
        strips.append(_line(heading if captions else f"{heading}: none", 20, 44))
        entries = list(captions.items())
        for first in range(0, len(entries), _PER_ROW):
            row = entries[first : first + _PER_ROW]
            strips.append(_row([(drawn(name), short_name(name), text) for name, text in row]))
    found = f"prediction: the {MAX_BOXES} best, score {min_score:.2f} or more"
    lines = [_TRUTH, (PREDICTED, 9, found), _IGNORED]
    _write(path, title, strips, lines if annotations is not None else lines[1:2], note)


def view_sheet(
    rows: Sequence[Sequence[View]],
    path: Path,
    *,
    title: str,
    note: str | None = None,
) -> None:
    """Draw images, each in a row of up to four views.

    `path` and `note` are as in `contact_sheet`.
    """
    strips = [
        _row(
            [
                (draw_boxes(picture, label, None, (), width=_CELL), name, _contents(label))
                for name, picture, label in views
            ]
        )
        for views in rows
    ]
    _write(path, title, strips, [_TRUTH, _IGNORED], note)


def _contents(label: Annotation | None) -> str:
    """What a label holds, in words."""
    if label is None:
        return "not labelled"
    n_ignored = len(label.labels) - label.n_objects
    boxes = f"{label.n_objects} box{'' if label.n_objects == 1 else 'es'}"
    return f"{boxes}, {n_ignored} ignored" if n_ignored else boxes


def _write(
    path: Path,
    title: str,
    strips: Sequence[np.ndarray],
    lines: Sequence[tuple[str, int, str]],
    note: str | None,
) -> None:
    """Write a sheet of strips, with a title above and what its lines mean at its foot."""
    parts = [_line(title, 25, 60, bold=True), *strips, _legend(lines, note)]
    sheet = Image.fromarray(np.concatenate(parts))
    atomic_write(path, lambda stream: sheet.save(stream, "PNG"))


def _paper(height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    paper = Image.new("RGB", (_WIDTH, height), PAPER)
    return paper, ImageDraw.Draw(paper)


def _line(text: str, size: int, height: int, *, bold: bool = False) -> np.ndarray:
    paper, draw = _paper(height)
    draw.text((_GAP, height / 2), text, INK, text_font(size, bold=bold), anchor="lm")
    return np.asarray(paper)


def _row(entries: Sequence[tuple[np.ndarray, str, str]]) -> np.ndarray:
    """Pictures side by side, each with two lines below."""
    tall = max(len(picture) for picture, _, _ in entries)
    paper, draw = _paper(tall + 56)
    font = text_font(15)
    for place, (picture, *lines) in enumerate(entries):
        left = _GAP + place * (_CELL + _GAP)
        paper.paste(Image.fromarray(picture), (left, 0))
        for text, top in zip(lines, (6, 27), strict=True):
            draw.text((left + _CELL / 2, tall + top), text, INK, font, anchor="ma")
    return np.asarray(paper)


def _legend(lines: Sequence[tuple[str, int, str]], note: str | None) -> np.ndarray:
    """The foot of a sheet: colour, dash and meaning of each line, and the note on the data."""
    paper, draw = _paper(2 * _MARGIN)
    font, x = text_font(18), float(_GAP)
    for colour, dash, text in lines:
        for start in range(0, 36, dash + 5):
            draw.line((x + start, _MARGIN, x + min(start + dash, 36), _MARGIN), colour, 3)
        draw.text((x + 46, _MARGIN), text, INK, font, anchor="lm")
        x += 46 + font.getlength(text) + 30
    if note:
        draw.text((_WIDTH - _GAP, _MARGIN), note, FAINT, font, anchor="rm")
    return np.asarray(paper)


def short_name(text: str, n: int = 36) -> str:
    """The end of a long name: that is where names differ."""
    return text if len(text) <= n else "..." + text[3 - n :]
