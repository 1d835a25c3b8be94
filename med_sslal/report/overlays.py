"""Sheets of pictures with boxes: how one evaluation went, and what a query took."""

import io
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

    strips = [_line(title, 25, 60, bold=True)]
    for heading, captions in groups.items():
        strips.append(_line(heading if captions else f"{heading}: none", 20, 44))
        entries = list(captions.items())
        for first in range(0, len(entries), _PER_ROW):
            row = entries[first : first + _PER_ROW]
            strips.append(_row([(drawn(name), _short(name), text) for name, text in row]))
    strips.append(_legend(min_score, note, with_truth=annotations is not None))
    sheet, stream = Image.fromarray(np.concatenate(strips)), io.BytesIO()
    sheet.save(stream, "PNG")
    atomic_write(path, lambda target: target.write(stream.getvalue()))


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


def _legend(min_score: float, note: str | None, *, with_truth: bool) -> np.ndarray:
    """The foot of a sheet: what the lines mean, and the note on the data."""
    paper, draw = _paper(2 * _MARGIN)
    font, x = text_font(18), float(_GAP)
    found = f"prediction: the {MAX_BOXES} best, score {min_score:.2f} or more"
    entries = [(PREDICTED, 9, found)]
    if with_truth:
        # On white paper the near-white of an ignore region would not show.
        entries = [(TRUTH, 36, "truth"), *entries, (FAINT, 3, "ignore region")]
    for colour, dash, text in entries:
        for start in range(0, 36, dash + 5):
            draw.line((x + start, _MARGIN, x + min(start + dash, 36), _MARGIN), colour, 3)
        draw.text((x + 46, _MARGIN), text, INK, font, anchor="lm")
        x += 46 + font.getlength(text) + 30
    if note:
        draw.text((_WIDTH - _GAP, _MARGIN), note, FAINT, font, anchor="rm")
    return np.asarray(paper)


def _short(text: str, n: int = 36) -> str:
    """The end of a long name: that is where names differ."""
    return text if len(text) <= n else "..." + text[3 - n :]
