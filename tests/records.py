"""Made-up detections, written as real pool records: shared by the tests of selection."""

from dataclasses import replace

import numpy as np
import torch

from med_sslal.al.al_criteria import CRITERIA
from med_sslal.al.record import OPTIONAL_COLUMNS, PLAIN, RecordHeader, is_aligned
from med_sslal.al.record_writer import RecordWriter
from med_sslal.base.types import Detections, ImageInfo
from med_sslal.utils.util import stable_hash

# Every section that a criterion reads.
ALL_VIEWS = tuple(dict.fromkeys(view for cls in CRITERIA.values() for view in cls().views))


def info(image_id, group=None):
    return ImageInfo(image_id, group or f"patient_{image_id}", f"{image_id}.png", (64, 80))


def header(n_classes=1, **changes):
    names = tuple(f"class{number}" for number in range(1, n_classes + 1))
    return RecordHeader(
        "data",
        "model",
        "config",
        names,
        **{
            "class_counts": {name: 10 * place for place, name in enumerate(names, start=1)},
            "class_difficulty": {name: place / n_classes for place, name in enumerate(names)},
            **changes,
        },
    )


def detections(
    scores,
    labels=None,
    *,
    boxes=None,
    proposals=None,
    class_probs=None,
    n_classes=1,
    embedding=None,
    top_proposals=((0, 0, 10, 10),),
    top_objectness=(0.5,),
    roi_features=None,
    refined_boxes=None,
):
    """Detections of one image; what is left out is filled so that it fits the scores."""
    n = len(scores)
    scores = torch.tensor(scores, dtype=torch.float32)
    labels = torch.ones(n, dtype=torch.int64) if labels is None else torch.tensor(labels).long()
    if boxes is None:
        start = torch.arange(n, dtype=torch.float32)[:, None] * 40
        boxes = torch.cat([start, start * 0, start + 20, start * 0 + 20], 1)
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(n, 4)
    if class_probs is None:
        class_probs = torch.zeros(n, n_classes + 1)
        class_probs[torch.arange(n), labels] = scores
        class_probs[:, 0] = 1 - scores
    return Detections(
        boxes=boxes,
        labels=labels,
        scores=scores,
        class_probs=class_probs,
        proposals=boxes if proposals is None else torch.as_tensor(proposals).reshape(n, 4),
        embedding=torch.tensor([1.0, 0.0] if embedding is None else embedding),
        top_proposals=torch.tensor(top_proposals, dtype=torch.float32).reshape(-1, 4),
        top_objectness=torch.tensor(top_objectness, dtype=torch.float32),
        roi_features=scores[:, None] if roi_features is None else roi_features,
        refined_boxes=boxes
        if refined_boxes is None
        else torch.as_tensor(refined_boxes).reshape(n, 4),
    )


def random_detections(generator, n_classes, *, n=None, dims=6):
    """Detections of one image, often none, with scores on a coarse grid so that ties occur."""
    counts = (0, 0, 1, 2, 3, 7, 12)
    n = counts[int(generator.integers(len(counts)))] if n is None else n
    n_top = int(generator.integers(0, 9))

    def boxes(rows):
        corners = torch.as_tensor(generator.integers(0, 60, (rows, 2)), dtype=torch.float32)
        sizes = torch.as_tensor(generator.integers(1, 40, (rows, 2)), dtype=torch.float32)
        return torch.cat([corners, corners + sizes], 1)

    raw = torch.as_tensor(generator.integers(1, 9, (n, n_classes + 1)), dtype=torch.float32)
    probs = raw / raw.sum(1, keepdim=True)
    scores, labels = probs[:, 1:].max(1) if n else (torch.zeros(0), torch.zeros(0))
    order = scores.argsort(descending=True, stable=True)
    found = boxes(n)[order]
    shift = torch.as_tensor(generator.integers(-4, 5, (n, 4)), dtype=torch.float32)
    return Detections(
        boxes=found,
        labels=labels.to(torch.int64)[order] + 1,
        scores=scores[order],
        class_probs=probs[order],
        proposals=found + shift,
        embedding=torch.as_tensor(generator.normal(size=dims), dtype=torch.float32),
        top_proposals=boxes(n_top),
        top_objectness=torch.as_tensor(generator.random(n_top), dtype=torch.float32),
        roi_features=torch.cos(found),
        refined_boxes=found + shift[:, [2, 3, 0, 1]],
    )


def seen_again(generator, found, view):
    """What another view could give: for the heads the same rows, else boxes moved and others."""
    n = len(found.scores)
    if not is_aligned(view):
        rows = torch.as_tensor(generator.integers(0, max(n, 1), int(generator.integers(0, n + 2))))
        rows = rows[: n and len(rows)]
        found = replace(
            found,
            **{
                name: getattr(found, name)[rows]
                for name in ("boxes", "labels", "scores", "class_probs", "proposals")
            },
        )
    moved = torch.as_tensor(generator.integers(-2, 3, (len(found.boxes), 2)).repeat(2, axis=1))
    again = found.class_probs[:, torch.as_tensor(generator.permutation(found.class_probs.shape[1]))]
    same = torch.as_tensor(generator.random(len(found.boxes)) < 0.5)[:, None]
    probs = torch.where(same, found.class_probs, again)
    return replace(
        found, boxes=found.boxes + moved, class_probs=probs, **dict.fromkeys(OPTIONAL_COLUMNS)
    )


def views_of(images, views=ALL_VIEWS):
    """View name to (image id to detections), which follow from id and plain detections alone."""
    return {
        view: {
            image_id: seen_again(np.random.default_rng(stable_hash(view, image_id)), found, view)
            for image_id, found in images.items()
        }
        for view in views
        if view != PLAIN
    }


def write_record(
    path,
    images,
    *,
    labelled=(),
    groups=(),
    views=(),
    columns=(),
    shard_size=512,
    **header_changes,
):
    """A record of `images` (id to Detections), in their order.

    `groups` maps ids to patients, `views` each further view to its own (id to Detections).
    """
    groups, views = dict(groups), dict(views)
    with RecordWriter(
        path,
        header(**header_changes),
        views=tuple(views),
        columns=columns,
        shard_size=shard_size,
    ) as writer:
        for image_id, found in images.items():
            others = {view: found_there[image_id] for view, found_there in views.items()}
            writer.add(info(image_id, groups.get(image_id)), found, others)
        for image_id, found in dict(labelled).items():
            writer.add_labelled(info(image_id), found)
        return writer.close()


def write_full_record(path, images, **more):
    """A record with every section and column that a criterion or second stage reads."""
    return write_record(
        path, images, views=views_of(images), columns=tuple(OPTIONAL_COLUMNS), **more
    )


def random_images(generator, n_images, n_classes, **more):
    names = [f"image{number:03d}" for number in range(n_images)]
    return {name: random_detections(generator, n_classes, **more) for name in names}
