"""Pictures with boxes: truth solid, predictions dashed with their score, ignore regions dotted."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from med_sslal.base.types import Annotation, ImageInfo, Prediction
from med_sslal.eval.eval_utils import columns
from med_sslal.eval.matching import match
from med_sslal.report.labels import label_text, place_labels
from med_sslal.report.plots import FAINT, INK, new_figure, save_png

TRUTH, PREDICTED, IGNORED = "#2CD5A5", "#FFB000", "#F0F0F0"

MAX_BOXES = 10
"""Drawn on one image at most, best first: a weak detector finds a hundred boxes everywhere."""

_PER_ROW = 4
_CELL, _GAP = 3.0, 0.12

_FONT, _LETTER = 6.5, 0.6


class Captioned(Protocol):
    """What a contact sheet needs of an image besides its pixels and boxes."""

    @property
    def image_id(self) -> str:
        """The image."""
        ...

    @property
    def caption(self) -> str:
        """A line below its name."""
        ...


@dataclass(frozen=True)
class RankedImage:
    """How well one image went, at the score floor of the ranking.

    Attributes:
        image_id: The image.
        quality: Mean over the lesions of the best score on each (0 where missed), minus the
            highest score of a false positive; from -1 to 1.
        n_found: Lesions found.
        n_lesions: Lesions.
        worst_score: Highest score of a false positive, None without one.
    """

    image_id: str
    quality: float
    n_found: int
    n_lesions: int
    worst_score: float | None

    @property
    def caption(self) -> str:
        """The same in words."""
        found = f"{self.n_found} of {self.n_lesions} found" if self.n_lesions else "no lesion"
        false = "none false" if self.worst_score is None else f"false {self.worst_score:.2f}"
        return f"{found}, {false}"


def best_and_worst(
    predictions: Mapping[str, Prediction],
    annotations: Mapping[str, Annotation],
    infos: Mapping[str, ImageInfo],
    class_names: Sequence[str],
    *,
    n: int = 8,
    min_score: float = 0.3,
) -> tuple[list[RankedImage], list[RankedImage]]:
    """The images that went best and those that went worst.

    Args:
        predictions: Image id to detections in ORIGINAL pixels.
        annotations: Image id to label.
        infos: Image id to info.
        class_names: Names without background.
        n: Images of each kind at most; no image is in both lists.
        min_score: Detections below are taken as not made.

    Returns:
        The best (at most half of those with a lesion, each with one found), best first, and the
        worst, worst first. Equal ones are in the order of their ids.

    Raises:
        DataError: The inputs do not fit (see `eval_utils.columns`).
    """
    kept = {image_id: above(found, min_score) for image_id, found in predictions.items()}
    table = columns(kept, annotations, infos, class_names)
    matches = match(table)
    n_images = len(table.image_ids)
    lesion = ~table.gt_ignore
    found = lesion & np.isfinite(matches.found_score)
    n_lesions = np.bincount(table.gt_image[lesion], minlength=n_images)
    n_found = np.bincount(table.gt_image[found], minlength=n_images)
    score = np.bincount(table.gt_image[found], matches.found_score[found], n_images)
    false = np.full(n_images, -np.inf)
    wrong = matches.false_positive
    np.maximum.at(false, table.det_image[wrong], table.det_scores[wrong])
    quality = score / np.maximum(n_lesions, 1) - np.maximum(false, 0)
    ranked = [
        RankedImage(
            image_id,
            float(quality[i]),
            int(n_found[i]),
            int(n_lesions[i]),
            float(false[i]) if np.isfinite(false[i]) else None,
        )
        for i, image_id in enumerate(table.image_ids)
    ]
    # A sort is stable, and `ranked` is in the order of the ids.
    half = (int((n_lesions > 0).sum()) + 1) // 2
    best = sorted((r for r in ranked if r.n_found), key=lambda r: -r.quality)[: min(n, half)]
    taken = {r.image_id for r in best}
    worst = sorted((r for r in ranked if r.image_id not in taken), key=lambda r: r.quality)
    return best, worst[:n]


def whole_rows(images: list[RankedImage]) -> list[RankedImage]:
    """The first images, so many that no row of a sheet but the only one is begun."""
    n = len(images)
    return images if n < _PER_ROW else images[: n - n % _PER_ROW]


def above(prediction: Prediction, min_score: float) -> Prediction:
    """The detections with a score of `min_score` or more, in their order."""
    keep = prediction.scores >= min_score
    return Prediction(prediction.boxes[keep], prediction.labels[keep], prediction.scores[keep])


def _best(prediction: Prediction, n: int) -> Prediction:
    """The `n` detections with the highest scores, best first; equal ones in their order."""
    order = np.argsort(-prediction.scores, kind="stable")[:n]
    return Prediction(prediction.boxes[order], prediction.labels[order], prediction.scores[order])


def contact_sheet(
    groups: Mapping[str, Sequence[Captioned]],
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

    Args:
        groups: Heading to images, for example best and worst.
        read: Image id to float [H, W, 3], or [H, W] for grey, in [0, 1],
            ORIGINAL pixels.
        predictions: Image id to detections in ORIGINAL pixels.
        annotations: Image id to label; None where labels are not to be seen.
        class_names: Names without background; written beside the score when there are several.
        path: The PNG; its folder must exist.
        title: Heading of the sheet.
        min_score: Lower detections are not drawn.
        note: Printed on the sheet, for example that the data is a phantom.
    """
    pictures = {item.image_id: read(item.image_id) for items in groups.values() for item in items}
    # Cells are as high as the tallest picture needs, captions below.
    tall = max((image.shape[0] / image.shape[1] for image in pictures.values()), default=1.0)
    picture, caption, heading, margin = _CELL * tall, 0.45, 0.36, 0.55
    n_rows = [ceil(len(items) / _PER_ROW) for items in groups.values()]
    width = _PER_ROW * (_CELL + _GAP) + _GAP
    height = 2 * margin + len(groups) * heading + sum(n_rows) * (picture + caption)
    figure = new_figure(width, height)
    left, y = _GAP / width, height - margin
    figure.text(left, (y + 0.2) / height, title, fontsize=14, fontweight="bold", color=INK)
    for (name, items), rows in zip(groups.items(), n_rows, strict=True):
        text = name if items else f"{name}: none"
        figure.text(left, (y - 0.24) / height, text, fontsize=11.5, color=INK)
        y -= heading
        for i, item in enumerate(items):
            row, column = divmod(i, _PER_ROW)
            x = _GAP + column * (_CELL + _GAP)
            bottom = y - row * (picture + caption) - picture
            axes = figure.add_axes(
                (x / width, bottom / height, _CELL / width, picture / height), anchor="N"
            )
            image_id = item.image_id
            kept = _best(above(predictions[image_id], min_score), MAX_BOXES)
            truth = Annotation.empty() if annotations is None else annotations[image_id]
            draw_boxes(axes, pictures[image_id], truth, kept, class_names)
            below = f"{_short(image_id)}\n{item.caption}"
            axes.set_xlabel(below, fontsize=8, color=INK, labelpad=3)
        y -= rows * (picture + caption)
    _explain(figure, min_score, with_truth=annotations is not None)
    if note:
        where = (1 - left, 0.14 / height)
        figure.text(*where, note, fontsize=10, color=FAINT, style="italic", ha="right")
    save_png(figure, path)


def _explain(figure: Figure, min_score: float, *, with_truth: bool) -> None:
    """The legend at the foot of a sheet."""
    predicted = f"prediction: the {MAX_BOXES} best, score {min_score:.2f} or more"
    true = Line2D([], [], color=TRUTH, linewidth=2, label="truth")
    found = Line2D([], [], color=PREDICTED, linewidth=2, linestyle="--", label=predicted)
    ignored = Line2D([], [], color=FAINT, linewidth=2, linestyle=":", label="ignore region")
    figure.legend(
        handles=[true, found, ignored] if with_truth else [found],
        loc="lower left",
        ncols=3,
        frameon=False,
        fontsize=10,
        borderaxespad=0.4,
    )


def draw_boxes(
    axes: Axes,
    image: np.ndarray,
    annotation: Annotation,
    prediction: Prediction,
    class_names: Sequence[str],
) -> None:
    """Show an image with its true and predicted boxes.

    Args:
        axes: Where to draw.
        image: float [H, W, 3] or [H, W] in [0, 1].
        annotation: The label, in the pixels of `image`.
        prediction: Detections, likewise.
        class_names: Names without background.
    """
    height, width = image.shape[:2]
    axes.imshow(
        image.clip(0, 1), cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0),
        interpolation="bilinear",
    )  # fmt: skip
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    for box, ignore in zip(annotation.boxes, annotation.ignore, strict=True):
        _rectangle(axes, box, IGNORED if ignore else TRUTH, ":" if ignore else "-")
    for box in prediction.boxes:
        _rectangle(axes, box, PREDICTED, "--")
    # Points to the picture's pixels: it fills the cell in one of the two directions.
    cell = axes.get_window_extent()
    point = max(width / cell.width, height / cell.height) * axes.figure.dpi / 72
    texts = [
        label_text(class_names, label, score)
        for label, score in zip(prediction.labels.tolist(), prediction.scores.tolist(), strict=True)
    ]
    widths = [(_LETTER * _FONT * len(text) + 2) * point for text in texts]
    places = place_labels(prediction.boxes, widths, 1.5 * _FONT * point, (height, width))
    for text, place in zip(texts, places, strict=True):
        if place is None:
            continue
        axes.text(
            place[0] + point,
            place[1] + point,
            text,
            fontsize=_FONT,
            color="#FFD37A",
            va="top",
            clip_on=True,
            bbox={"facecolor": (0, 0, 0, 0.55), "edgecolor": "none", "pad": 0.8},
        )


def _rectangle(axes: Axes, box: np.ndarray, colour: str, style: str) -> None:
    """A box with a dark rim, so that it shows on light and on dark pixels."""
    x1, y1, x2, y2 = (float(value) for value in box)
    axes.add_patch(
        Rectangle(
            (x1, y1),
            x2 - x1,
            y2 - y1,
            fill=False,
            edgecolor=colour,
            linewidth=1.3,
            linestyle=style,
            path_effects=[withStroke(linewidth=2.4, foreground=(0, 0, 0, 0.55))],
        )
    )


def _short(text: str, n: int = 36) -> str:
    """The end of a long name: that is where names differ."""
    return text if len(text) <= n else "..." + text[3 - n :]
