"""What a criterion finds, against a literal count box by box and SciPy's rank correlation."""

import math

import numpy as np
import pytest
from records import detections, info, random_images, write_record
from scipy.stats import spearmanr

from med_sslal.al.al_helpers import ActiveLearningHelper
from med_sslal.al.finds import finds, read_finds, record_mistakes, write_finds
from med_sslal.al.pool import Pool
from med_sslal.base.types import Annotation
from med_sslal.utils.errors import DataError

CRITERIA = [["random"], ["entropy"], [["margin", {"type": "localization_tightness", "weight": 2}]]]


def iou(a, b):
    shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    whole = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - shared
    return shared / whole


def hidden(box, regions):
    """Whether half of a box or more lies in one region."""
    for region in regions:
        sides = [min(box[i + 2], region[i + 2]) - max(box[i], region[i]) for i in (0, 1)]
        area = (box[2] - box[0]) * (box[3] - box[1])
        if min(sides) > 0 and sides[0] * sides[1] >= 0.5 * area:
            return True
    return False


def counted(found, label):
    """The four mistakes on one image, as the words of the page say them."""
    boxes = [
        box for box, score in zip(found.boxes.tolist(), found.scores, strict=True) if score >= 0.3
    ]
    objects = label.boxes[~label.ignore].tolist()
    best = [max((iou(box, each) for box in boxes), default=0) for each in objects]
    false = [
        box
        for box in boxes
        if max((iou(box, each) for each in objects), default=0) < 0.1
        and not hidden(box, label.boxes[label.ignore].tolist())
    ]
    losses = [1 - overlap for overlap in best if overlap >= 0.1]
    return {
        "missed": sum(overlap < 0.1 for overlap in best),
        "false_positives": len(false),
        "loose_boxes": sum(0.1 <= overlap < 0.5 for overlap in best),
        "box_loss": sum(losses) / len(losses) if losses else 0,
    }


def random_label(generator, found):
    """Boxes at places of their own or close to detections, some of them to be ignored."""
    corners = generator.integers(0, 60, (int(generator.integers(0, 4)), 2))
    own = np.concatenate([corners, corners + generator.integers(5, 40, corners.shape)], 1)
    near = found.boxes.numpy()[: int(generator.integers(0, 4))]
    near = near + generator.integers(-3, 4, near.shape)
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
    boxes = np.concatenate([own, near]).astype(np.float32)
    labels = generator.integers(1, 3, len(boxes))
    return Annotation(boxes, labels, generator.random(len(boxes)) < 0.25)


def made(path, seed, n_images=30):
    generator = np.random.default_rng(seed)
    images = random_images(generator, n_images, 2)
    truth = {name: random_label(generator, found) for name, found in images.items()}
    return images, truth, write_record(path, images, n_classes=2)


@pytest.mark.parametrize("seed", range(8))
def test_mistakes_and_finds_are_those_of_a_literal_count(tmp_path, seed):
    images, truth, record = made(tmp_path / "record", seed)
    infos = {name: info(name) for name in images}
    wanted = {name: counted(images[name], truth[name]) for name in images}
    got = record_mistakes(record, truth, infos)
    ids = sorted(images)
    for kind in wanted[ids[0]]:
        expected = [wanted[name][kind] for name in ids]
        assert np.allclose(getattr(got, kind), expected), kind
        assert len(set(expected)) > 1, f"{kind}: nothing to tell apart"
    for stages in CRITERIA:
        helper = ActiveLearningHelper(1, 8, stages, seed=seed)
        rating, values = helper.rate(record, cycle=2), rating_of(helper, record)
        best = sorted(range(len(ids)), key=lambda row: -values[row])[: math.ceil(len(ids) / 4)]
        result = finds(rating, got)
        assert (result.criterion, result.n_images, result.n_top) == (rating.criterion, 30, 8)
        for kind, finding in result.findings.items():
            amounts = np.array([wanted[name][kind] for name in ids], dtype=float)
            assert finding.undefined is None
            assert finding.correlation == pytest.approx(spearmanr(values, amounts)[0], abs=6e-5)
            assert finding.all == pytest.approx(amounts.mean(), abs=6e-5)
            if values[best[-1]] > sorted(values)[-len(best) - 1]:  # No tie at the edge.
                assert finding.top == pytest.approx(amounts[best].mean(), abs=6e-5)


def rating_of(helper, record):
    """The values that the cycle's own query would write down."""
    pool = Pool((), tuple(record.image_ids.tolist()))
    scores = helper.query(record, pool, helper.budget_num, 2).scores
    own = scores[helper.rate(record, 2).criterion]
    return np.array([own[name] for name in pool.unlabelled])


def test_without_any_object_nothing_is_missed(tmp_path):
    images = {name: detections([0.9], n_classes=2) for name in ("a", "b")}
    record = write_record(tmp_path / "record", images, n_classes=2)
    empty = Annotation(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool))
    found = record_mistakes(record, dict.fromkeys(images, empty), {n: info(n) for n in images})
    assert found.false_positives.tolist() == [1.0, 1.0]
    for amounts in (found.missed, found.loose_boxes, found.box_loss):
        assert amounts.dtype == np.float64 and amounts.tolist() == [0.0, 0.0]


def test_what_is_the_same_for_all_has_no_correlation(tmp_path):
    """Without a detection every object is missed, no box is false, and entropy sees one value."""
    images, truth, _ = made(tmp_path / "first", 0, n_images=5)
    nothing = {name: detections([], n_classes=2) for name in images}
    record = write_record(tmp_path / "record", nothing, n_classes=2)
    found = record_mistakes(record, truth, {name: info(name) for name in images})
    helper = ActiveLearningHelper(1, 1, ["random"], seed=1)
    told = finds(helper.rate(record, 0), found).findings
    assert told["missed"].correlation is not None and told["missed"].all > 0
    assert told["false_positives"].undefined == "false positives: the same for all images"
    flat = ActiveLearningHelper(1, 1, ["entropy"], seed=1)
    assert finds(flat.rate(record, 0), found).findings["missed"].undefined == (
        "entropy: the same for all images"
    )
    result = finds(flat.rate(record, 0), found)
    write_finds(tmp_path / "finds.json", result, 3, record.header)
    assert read_finds(tmp_path / "finds.json") == result
    (tmp_path / "finds.json").write_text('{"format_version": 1}')
    with pytest.raises(DataError, match="does not say what a criterion finds"):
        read_finds(tmp_path / "finds.json")
