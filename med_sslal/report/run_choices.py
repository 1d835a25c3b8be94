"""The parts of a run's report about its choices: queried images, what was bought, pseudo-labels."""

from collections.abc import Mapping, Sequence

import numpy as np

from med_sslal.base.base_dataset import BaseDataset
from med_sslal.base.types import Annotation
from med_sslal.report.gallery import MAX_PICTURES, Picture, gallery, key
from med_sslal.report.html import Content, Section, table, tag
from med_sslal.report.run_data import CycleData, RunData
from med_sslal.report.run_sections import number
from med_sslal.utils.errors import DataError
from med_sslal.utils.util import python_generator

# Pictures of each query: by rank, those of them that are not folded away, and left ones.
N_QUERIED, N_OPEN, N_CONTRAST = 30, 10, 5

# Sizes of the box-count bias from which a criterion leans on the number of boxes, or counts them.
_LEANS, _COUNTS = 0.3, 0.8


def queries_section(run: RunData) -> Section:
    """The images of each query by rank, and some that were left."""
    queried = [cycle for cycle in run.cycles if cycle.selection is not None]
    lead = "What each query took, best rank first, and some images that it left, drawn at random."
    if not queried:
        text = "No image has been queried." if run.n_cycles else "The run asks for no query."
        return Section("queries", "Queried images", text, None)
    if run.dataset is None:
        return Section("queries", "Queried images", lead, [_query_table(c) for c in queried])
    # Beyond that many queries the newest are worth the room.
    drawn = queried[-MAX_PICTURES:]
    room = min(1.0, MAX_PICTURES / len(drawn) / (N_QUERIED + N_CONTRAST))
    counts = max(1, int(N_QUERIED * room)), int(N_CONTRAST * room)
    body: list[Content] = [key(with_detections=any(cycle.detections for cycle in drawn))]
    if not all(cycle.detections for cycle in drawn):
        text = "Predictions of some queries were not kept; their pictures show the truth alone."
        body.append(tag("p", text, class_="aside"))
    for cycle in drawn:
        body += _query(run.dataset, cycle, *counts)
    return Section("queries", "Queried images", lead, body)


def _query(
    dataset: BaseDataset, cycle: CycleData, n_queried: int, n_contrast: int
) -> list[Content]:
    """Headings and galleries of one query."""
    selection = cycle.selection
    assert selection is not None
    taken = selection.items[:n_queried]
    n_more = len(selection.items) - len(taken)
    heading = f"After cycle {cycle.number}: {len(selection.items)} images by "
    heading += ", then ".join(selection.criteria)
    bias = selection.box_count_bias
    facts = []
    if n_more:
        facts.append(f"The first {len(taken)} by rank are shown; {n_more} more were taken.")
    if bias is not None:
        facts.append(
            f"The rank correlation of score and number of detections is {bias:.2f}: "
            f"{_bias_in_words(bias)}."
        )
    parts: list[Content] = [tag("h3", heading), facts and tag("p", " ".join(facts), class_="aside")]
    pictures = [
        _picture(dataset, cycle, item.image_id, f"{item.rank}", item.values, item.reason)
        for item in taken
    ]
    parts.append(gallery(pictures[:N_OPEN], dataset.labels.class_names))
    if pictures[N_OPEN:]:
        summary = tag("summary", f"ranks {N_OPEN + 1} to {len(pictures)}")
        parts.append(
            tag("details", summary, gallery(pictures[N_OPEN:], dataset.labels.class_names))
        )
    others = _contrast(cycle)[:n_contrast]
    if others:
        pictures = [
            _picture(dataset, cycle, name, None, _values(cycle, name), "not taken")
            for name in others
        ]
        parts.append(
            tag(
                "p",
                "For contrast, images that it left, drawn at random; truth is shown of those alone "
                "whose labels were bought later:",
                class_="aside",
            )
        )
        parts.append(gallery(pictures, dataset.labels.class_names))
    return parts


def _bias_in_words(bias: float) -> str:
    """What a rank correlation of a criterion's value and the number of detections means."""
    kind = "many" if bias > 0 else "few"
    if abs(bias) >= _COUNTS:
        return f"the criterion hardly does more than count boxes, and prefers images with {kind}"
    if abs(bias) >= _LEANS:
        return f"images with {kind} detections tend to score higher"
    return "the score depends little on how many boxes were found"


def _contrast(cycle: CycleData) -> list[str]:
    """Images that were not taken: those with detections kept, or as many drawn by the seed."""
    assert cycle.selection is not None
    taken = set(cycle.selection.image_ids)
    kept = [name for name in cycle.detections if name not in taken]
    if cycle.detections:
        return kept
    rest = [name for name in cycle.pool.unlabelled if name not in taken]
    generator = python_generator(cycle.selection.seed, "contrast", cycle.number)
    return generator.sample(rest, min(N_CONTRAST, len(rest)))


def _values(cycle: CycleData, image_id: str) -> dict[str, float]:
    """The criteria's values of any pool image."""
    assert cycle.selection is not None
    scores = cycle.selection.scores
    return {name: values[image_id] for name, values in scores.items() if image_id in values}


def _picture(
    dataset: BaseDataset,
    cycle: CycleData,
    image_id: str,
    rank: str | None,
    values: Mapping[str, float],
    reason: str,
) -> Picture:
    """One picture with its caption.

    Raises:
        DataError: The data set has no such image, or its file is missing or damaged.
    """
    if image_id not in dataset.images.infos:
        raise DataError(
            f"image '{image_id}' of cycle {cycle.number} is not in the data set: give the run the "
            "data it was made on"
        )
    # A reason names the criterion that decided; the others' values stand before it.
    scores = ", ".join(f"{n} {value:.3f}" for n, value in values.items() if n not in reason)
    caption = [
        tag("span", rank and tag("b", f"{rank}. "), tag("b", image_id)),
        tag("span", scores) if scores else None,
        tag("span", reason),
    ]
    return Picture(
        dataset.images.picture(image_id),
        dataset.labels.annotations.get(image_id, Annotation.empty()),
        cycle.detections.get(image_id),
        caption,
    )


def _query_table(cycle: CycleData) -> list[Content]:
    """A query without its pictures."""
    assert cycle.selection is not None
    rows: list[list[Content]] = [
        [item.rank, item.image_id, tag("span", item.reason, class_="wrap")]
        for item in cycle.selection.items[:N_QUERIED]
    ]
    heading = f"After cycle {cycle.number}: {len(cycle.selection.items)} images"
    return [
        tag("h3", heading),
        table(["Rank", "Image", "Reason"], rows, text_columns=3),
    ]


def bought_section(run: RunData) -> Section | None:
    """What the labels were spent on, against the pool; None without data set or cycle."""
    dataset = run.dataset
    if dataset is None or not run.cycles:
        return None
    splits = dataset.images.splits
    held_out = (*splits["val"], *splits["test"])
    sizes = _sizes(dataset, held_out)
    limits = np.quantile(sizes, [1 / 3, 2 / 3]) if len(sizes) else np.zeros(2)
    groups: list[tuple[str, Sequence[str]]] = [("initial set", run.cycles[0].pool.labelled)]
    groups += [
        (f"query after cycle {cycle.number}", cycle.selection.image_ids)
        for cycle in run.cycles
        if cycle.selection is not None
    ]
    groups.append(("validation and test", held_out))
    has_patients = any(dataset.images.infos[name].group_id != name for name in dataset.images.infos)
    several = len(dataset.labels.class_names) > 1
    headings: list[Content] = ["", "Images"]
    headings += ["Patients"] if has_patients else []
    headings += ["Boxes", "Boxes per image", "Without object"]
    headings += list(dataset.labels.class_names) if several else []
    headings += [f"Up to {limits[0]:.0f} px", "Between", f"From {limits[1]:.0f} px"]
    rows: list[list[Content]] = []
    for name, ids in groups:
        labels = list(dataset.labels.of(ids).values())
        cells: list[Content] = [name, len(ids)]
        if has_patients:
            cells.append(len({dataset.images.infos[image_id].group_id for image_id in ids}))
        n_boxes = sum(label.n_objects for label in labels)
        cells += [n_boxes, number(n_boxes / len(ids) if ids else None, 2)]
        cells.append(_share(sum(label.n_objects == 0 for label in labels), len(ids)))
        if several:
            classes = range(1, len(dataset.labels.class_names) + 1)
            cells += [_share(_count(labels, i), n_boxes) for i in classes]
        third = np.searchsorted(limits, _sizes(dataset, ids), "right")
        cells += [_share(int((third == i).sum()), n_boxes) for i in range(3)]
        rows.append(cells)
    lead = (
        "What the labels were spent on, against images that nobody chose: where a share differs "
        "from the last line, the criterion prefers that kind of image. The labels of the rest of "
        "the pool are not looked at."
    )
    aside = (
        "A box's size is the square root of its area; the two limits part the boxes of "
        "validation and test in three equal parts. Shares of classes and sizes are of boxes."
    )
    body = [table(headings, rows), tag("p", aside, class_="aside")]
    return Section("bought", "What was bought", lead, body)


def _sizes(dataset: BaseDataset, ids: Sequence[str]) -> np.ndarray:
    """Square root of the area of every object on some images, in ORIGINAL pixels."""
    labels = list(dataset.labels.of(ids).values())
    boxes = [label.boxes[~label.ignore] for label in labels]
    sides = np.concatenate([np.zeros((0, 4), np.float32), *boxes])
    return np.sqrt((sides[:, 2] - sides[:, 0]) * (sides[:, 3] - sides[:, 1]))


def _count(labels: Sequence[Annotation], label: int) -> int:
    """Objects of one class."""
    return sum(int(((each.labels == label) & ~each.ignore).sum()) for each in labels)


def _share(part: int, whole: int) -> Content:
    """A share as a percentage and a small bar."""
    if not whole:
        return "\N{EN DASH}"
    percent = 100 * part / whole
    bar = tag("span", tag("i", style=f"width:{percent:.1f}%"), class_="share", aria_hidden="true")
    return [f"{percent:.0f} %", bar]


def pseudo_section(run: RunData) -> Section:
    """Pseudo-labels per cycle and class."""
    heading = "Pseudo-labels"
    made = [cycle for cycle in run.cycles if cycle.pseudo is not None]
    if not made:
        asked = run.config.get("ssl_settings", {}).get("include_pseudolabels")
        text = "None have been made yet." if asked else "The run uses no pseudo-labels."
        return Section("pseudo-labels", heading, text, None)
    rows = [row for cycle in made for row in _pseudo_rows(run, cycle)]
    headings = ["For cycle", "Class", "Images", "Boxes", "Threshold", "Mean score", "Precision",
                "Recall"]  # fmt: skip
    lead = (
        "Confident detections on unlabelled images that the next training takes as labels, and "
        "how many of them are right by the truth, which nothing else in the run sees."
    )
    aside = (
        "Precision: objects met over objects met plus boxes that meet none. Recall: objects met "
        "over all objects of the images used."
    )
    if any(stats.threshold > 1 for c in made if c.pseudo for stats in c.pseudo.stats.values()):
        aside += (
            " None passes: more boxes than the density cap allows have the highest score, so that "
            "the threshold lies above it."
        )
    body = [table(headings, rows, text_columns=2), tag("p", aside, class_="aside")]
    return Section("pseudo-labels", heading, lead, body)


def _threshold(threshold: float) -> str:
    """A threshold of scores as text; two decimals must not make a 1 of what is none."""
    if threshold > 1:
        return "none passes"
    return number(threshold, 2 if threshold < 0.995 else 4)


def _pseudo_rows(run: RunData, cycle: CycleData) -> list[list[Content]]:
    """One line per class."""
    pseudo = cycle.pseudo
    assert pseudo is not None
    graded = next((c.pseudo_quality for c in run.cycles if c.number == cycle.number + 1), {})
    rows: list[list[Content]] = []
    for name, stats in pseudo.stats.items():
        quality = graded.get(name, {})
        rows.append(
            [
                str(cycle.number + 1),
                name,
                len(pseudo.labels),
                stats.count,
                _threshold(stats.threshold),
                number(stats.mean_score, 2),
                number(quality.get("precision"), 2),
                number(quality.get("recall"), 2),
            ]
        )
    return rows
