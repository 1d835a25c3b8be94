"""The pictures of one evaluation."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from med_sslal.base.base_dataset import Images
from med_sslal.base.types import Annotation, Prediction
from med_sslal.report.overlays import best_and_worst, contact_sheet, whole_rows
from med_sslal.report.plots import froc_lines, plot_froc


def write_evaluation_pictures(
    folder: Path,
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
        plot_froc(froc_lines(evaluation), folder / "froc.png", title, images.note)
    best, worst = best_and_worst(predictions, annotations, images.infos, class_names)
    groups = {"Best (at least one object found)": best, "Worst": worst}
    contact_sheet(
        {
            heading: {ranked.image_id: ranked.caption for ranked in whole_rows(group)}
            for heading, group in groups.items()
        },
        images.picture,
        predictions,
        annotations,
        class_names,
        folder / "overlays.png",
        title=title,
        note=images.note,
    )
