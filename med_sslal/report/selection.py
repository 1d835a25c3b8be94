"""A query as a person sees it: a table with reasons, and pictures without labels."""

from pathlib import Path

from med_sslal.al.record import PoolRecord
from med_sslal.al.selection_io import detections_of
from med_sslal.base.base_dataset import Images
from med_sslal.base.types import Selection
from med_sslal.report.overlays import contact_sheet
from med_sslal.utils.text_table import text_table


def selection_table(
    selection: Selection, record: PoolRecord, cycle: int, own: Selection | None
) -> str:
    """Explain a selection as aligned text.

    One line per image: rank, image, patient, value by each criterion, rank in the run's `own`
    selection where that is known, and reason; before them what was asked, after them the box-count
    bias and the overlap with the run's own. The `cycle` is part of the query's seed.
    """
    theirs = {} if own is None else {item.image_id: str(item.rank) for item in own.items}
    head = ["rank", "image", "patient", *selection.scores, *(["run's"] if own else []), "reason"]
    rows = [head]
    for item in selection.items:
        values = [f"{item.values[name]:.4f}" for name in selection.scores]
        rank = [theirs.get(item.image_id, "-")] if own else []
        rows.append([str(item.rank), item.image_id, item.group_id, *values, *rank, item.reason])
    bias = selection.box_count_bias
    lines = [
        f"{', '.join(selection.criteria)}: {len(selection.items)} of {len(record.image_ids)} "
        f"unlabelled images, seed {selection.seed}, cycle {cycle}",
        text_table(rows, rule=False),
        "rank correlation of the value and the number of detections: "
        + ("undefined" if bias is None else f"{bias:.2f}"),
    ]
    return "\n".join([*lines, *([_overlap(selection, own)] if own else [])])


def draw_selection(
    selection: Selection, record: PoolRecord, images: Images, path: Path, *, first: int
) -> None:
    """Draw the `first` images of a selection with the record's detections; labels stay hidden.

    Raises:
        UserError: An image cannot be read, or the file not be written.
    """
    criterion = next(iter(selection.scores))
    captions = {
        item.image_id: f"{item.rank}: {criterion} {item.values[criterion]:.4f}"
        for item in selection.items[:first]
    }
    contact_sheet(
        {f"The first {len(captions)} of {len(selection.items)}, without their labels": captions},
        images.picture,
        detections_of(record, captions, 0.0),
        None,
        record.header.class_names,
        path,
        title=", ".join(selection.criteria),
        min_score=record.header.record_floor,
        note=images.note,
    )


def _overlap(selection: Selection, own: Selection) -> str:
    if selection.image_ids == own.image_ids:
        return "these are the run's own images, in its order"
    both = len(set(selection.image_ids) & set(own.image_ids))
    return (
        f"{both} of these {len(selection.items)} are among the {len(own.items)} that the run took "
        f"({', '.join(own.criteria)})"
    )
