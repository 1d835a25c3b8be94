"""Every criterion against a slow literal reference, and its rules on hand-worked cases."""

import math

import numpy as np
import pytest
import torch
from records import ALL_VIEWS, detections, random_images, write_full_record, write_record

from med_sslal.al.al_criteria import CRITERIA, describe
from med_sslal.al.criteria import base, unexplained_objectness
from med_sslal.al.criteria.aggregate import aggregate_boxes, fill_empty
from med_sslal.al.criteria.base import Criterion
from med_sslal.al.criteria.random import Random
from med_sslal.utils.boxes import paired_iou
from med_sslal.utils.errors import DataError
from med_sslal.utils.util import stable_hash

# Those of one pass and of detections alone; the others have a file of their own.
BOX_CRITERIA = {
    "prediction_uncertainty": ("prediction_uncertainty", {}),
    "entropy": ("entropy", {}),
    "margin": ("margin", {}),
    "localization_tightness": ("localization_tightness", {}),
    "boxes alone": ("localization_tightness", {"classification": False}),
    "box_self_consistency": ("box_self_consistency", {}),
    "without confidence": ("box_self_consistency", {"confidence": False}),
}
# Aggregate and floor of those that have their own.
DEFAULTS = {
    "localization_tightness": ("score_weighted", 0.0),
    "boxes alone": ("score_weighted", 0.3),
    "box_self_consistency": ("top_3", 0.05),
    "without confidence": ("score_weighted", 0.3),
}
AGGREGATES = ("max", "mean", "sum", "top_k", "top_3", "score_weighted")
N_RECORDS = 100


def at_1e4(value):
    """Round a number, halves to even, after its last bits are gone."""
    return float(np.round(np.round(np.float64(value), 10), 4))


def literal_iou(a, b):
    a, b = [float(x) for x in a], [float(x) for x in b]
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def literal_box_value(name, probs, box, proposal, refined):
    best = at_1e4(max(float(p) for p in probs[1:]))
    if name == "prediction_uncertainty":
        return at_1e4(1 - best)
    if name == "entropy":
        return at_1e4(-sum(float(p) * math.log(float(p)) for p in probs if p > 0))
    if name == "margin":
        first, second = sorted((float(p) for p in probs), reverse=True)[:2]
        return at_1e4(-(first - second))
    tightness, again = (at_1e4(literal_iou(box, other)) for other in (proposal, refined))
    values = {
        "localization_tightness": 1 - abs(tightness + best - 1),
        "boxes alone": 1 - tightness,
        "box_self_consistency": best * (1 - again),
        "without confidence": 1 - again,
    }
    return at_1e4(values[name])


def literal_aggregate(how, values, weights):
    if how == "max":
        return max(values)
    if how == "sum":
        return sum(values)
    if how == "mean":
        return sum(values) / len(values)
    if how in ("top_k", "top_3"):
        best = sorted(values, reverse=True)[: 5 if how == "top_k" else 3]
        return sum(best) / len(best)
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


def literal_image_values(name, how, images, floor=0.0):
    """One value per image in the order of ids; images without a detection get the median."""
    result = []
    for image_id in sorted(images):
        found = images[image_id]
        probs = found.class_probs
        rows = [
            row
            for row in range(len(found.scores))
            if found.scores[row] >= 0.05 and at_1e4(max(float(p) for p in probs[row][1:])) >= floor
        ]
        if not rows:
            result.append(None)
            continue
        values = [
            literal_box_value(
                name, probs[row], found.boxes[row], found.proposals[row], found.refined_boxes[row]
            )
            for row in rows
        ]
        weights = [at_1e4(max(float(p) for p in probs[row][1:])) for row in rows]
        result.append(at_1e4(literal_aggregate(how, values, weights)))
    known = [value for value in result if value is not None]
    fill = at_1e4(np.median(known)) if known else 0.0
    return np.array([fill if value is None else value for value in result])


def literal_unexplained(found):
    kept = [found.boxes[row] for row in range(len(found.scores)) if found.scores[row] >= 0.05]
    missed = [
        at_1e4(objectness)
        for box, objectness in zip(found.top_proposals, found.top_objectness, strict=True)
        if all(at_1e4(literal_iou(box, other)) < 0.3 for other in kept)
    ]
    return at_1e4(sum(sorted(missed, reverse=True)[:5]))


@pytest.fixture(scope="module", params=[1, 10], ids=["1 class", "10 classes"])
def cases(request, tmp_path_factory):
    """Records with their images: random ones, with images without a detection, and ties."""
    folder = tmp_path_factory.mktemp("records")
    generator = np.random.default_rng(request.param)
    cases = []
    for number in range(N_RECORDS // 2):
        images = random_images(generator, int(generator.integers(1, 9)), request.param)
        record = write_record(
            folder / str(number), images, columns=("refined_boxes",), n_classes=request.param
        )
        cases.append((images, record))
    return cases


@pytest.mark.parametrize("how", AGGREGATES)
@pytest.mark.parametrize("which", BOX_CRITERIA)
def test_box_criteria_equal_the_literal_reference(cases, which, how, monkeypatch):
    # Small blocks, so that records of a few images have several.
    monkeypatch.setattr(base, "BLOCK_IMAGES", 3)
    name, args = BOX_CRITERIA[which]
    for images, record in cases:
        expected = literal_image_values(which, how, images)
        values = CRITERIA[name](aggregate=how, floor=0.0, **args)(record, seed=1)
        np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("floor", [None, 0.2, 1.0])
@pytest.mark.parametrize("which", BOX_CRITERIA)
def test_boxes_below_the_floor_do_not_count(cases, which, floor):
    differ, (name, args) = 0, BOX_CRITERIA[which]
    how, own = DEFAULTS.get(which, ("mean", 0.0))
    for images, record in cases:
        values = CRITERIA[name](floor=floor, **args)(record, seed=1)
        expected = literal_image_values(which, how, images, own if floor is None else floor)
        np.testing.assert_array_equal(values, expected)
        differ += not np.array_equal(values, CRITERIA[name](floor=0.0, **args)(record, seed=1))
    # No box of a record lies below 0.05.
    assert bool(differ) == ((own if floor is None else floor) > 0.05)


def test_representativeness_equals_the_literal_reference(cases):
    for images, record in cases:
        vectors = [images[name].embedding.numpy().astype(float).round(3) for name in sorted(images)]
        expected = [
            sum(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for b in vectors) / len(vectors)
            for a in vectors
        ]
        values = CRITERIA["representativeness"]()(record, 1)
        np.testing.assert_allclose(values, expected, atol=0.51e-4, rtol=0)


def test_unexplained_objectness_equals_the_literal_reference(cases, monkeypatch):
    monkeypatch.setattr(unexplained_objectness, "BLOCK_IMAGES", 3)
    partly = 0
    for images, record in cases:
        expected = [literal_unexplained(images[name]) for name in sorted(images)]
        criterion = CRITERIA["unexplained_objectness"]()
        if not any(len(found.top_objectness) for found in images.values()):
            with pytest.raises(DataError, match="holds no proposals"):
                criterion(record, 1)
            continue
        np.testing.assert_array_equal(criterion(record, 1), expected)
        everything = [at_1e4(found.top_objectness.sum()) for _, found in sorted(images.items())]
        partly += any(0 < some < whole for some, whole in zip(expected, everything, strict=True))
    assert partly > 20, "most records must have explained proposals beside others"


@pytest.mark.parametrize(
    ("boxes", "value"),
    [
        ([], 2.0),
        ([[0, 0, 10, 3]], 1.3),
        ([[0, 0, 10, 2.9]], 2.0),
        ([[100, 0, 110, 10]], 1.7),
        ([[0, 0, 10, 10], [100, 0, 110, 10], [300, 0, 310, 10]], 0.7),
    ],
    ids=["no detection", "IoU 0.3 explains", "IoU 0.29 does not", "another", "all but three"],
)
def test_only_proposals_without_a_detection_count(tmp_path, boxes, value):
    found = detections(
        [0.9] * len(boxes),
        boxes=boxes,
        top_proposals=[[x, 0, x + 10, 10] for x in (0, 100, 200, 300, 400, 500, 600)],
        top_objectness=[0.8, 0.4, 0.3, 0.3, 0.2, 0.1, 0.1],
    )
    record = write_record(tmp_path / "record", {"a": found})
    assert CRITERIA["unexplained_objectness"]()(record, 0).tolist() == [value]


def test_margin_counts_background_as_a_class(tmp_path):
    images = {
        "sure": detections([1.0], class_probs=torch.tensor([[0.0, 1, 0]]), n_classes=2),
        "torn by background": detections([0.5], class_probs=torch.tensor([[0.5, 0.5, 0]])),
        "torn by class": detections([0.4], class_probs=torch.tensor([[0.2, 0.4, 0.4]])),
    }
    record = write_record(tmp_path / "record", images, n_classes=2)
    assert CRITERIA["margin"]()(record, 0).tolist() == [-1.0, 0.0, 0.0]


def test_random_is_a_hash_of_seed_and_id(cases):
    for images, record in cases[:10]:
        expected = [stable_hash("random", 7, name) / 2**63 for name in sorted(images)]
        np.testing.assert_allclose(CRITERIA["random"]()(record, 7), expected, atol=0.51e-4, rtol=0)
    record = cases[0][1]
    other = CRITERIA["random"]()(record, 8)
    assert (CRITERIA["random"]()(record, 7) != other).any()


def literal_foreground_random(images, seed):
    """Ids, best first."""

    def drawn(names, *words):
        return sorted(names, key=lambda name: stable_hash(*words, seed, name))

    scores = {name: [at_1e4(s) for s in found.scores] for name, found in images.items()}
    first = drawn([n for n in images if max(scores[n], default=0) >= 0.3],
                  "foreground_random", "foreground")  # fmt: skip
    everything, order = drawn(images, "foreground_random"), []
    while len(order) < len(images):
        kind = first if len(order) % 2 == 0 else everything
        left = [name for name in kind if name not in order]
        if not left:
            left = [name for name in everything if name not in order]
            order += left
            break
        order.append(left[0])
    return order


def test_foreground_random_equals_the_literal_reference(cases):
    kinds = set()
    for seed, (images, record) in enumerate(cases):
        values = CRITERIA["foreground_random"]()(record, seed)
        order = [record.image_ids[row] for row in np.argsort(-values)]
        assert order == literal_foreground_random(images, seed)
        assert sorted(values, reverse=True) == [-1.0 - place for place in range(len(images))]
        sure = [bool((found.scores >= 0.3).any()) for found in images.values()]
        kinds.add((any(sure), all(sure)))
    # Ten classes share the probability, and none gets so much of it.
    several = len(cases[0][1].header.class_names) > 1
    assert kinds == {(False, False), *({(True, False), (True, True)} if not several else ())}


def test_foreground_random_takes_a_detection_every_other_time(tmp_path):
    images = {f"image{n:03d}": detections([0.31] if n < 60 else [0.29]) for n in range(400)}
    record = write_record(tmp_path / "record", images)
    best = np.argsort(-CRITERIA["foreground_random"]()(record, 3))
    assert (best[:100:2] < 60).all(), "each of these ranks asks for a detection"
    assert 0 < (best[1:100:2] < 60).sum() < 20, "the others fall on any image"


def test_a_box_and_itself_have_iou_1():
    widths = np.arange(1, 201, dtype=np.float32)
    corners = np.full_like(widths, 3.25), np.full_like(widths, 7.5)
    boxes = np.stack([*corners, corners[0] + widths, corners[1] + widths / 3], axis=1)
    np.testing.assert_array_equal(paired_iou(boxes, boxes), np.ones(200))


@pytest.mark.parametrize(
    ("a", "b", "iou"),
    [
        ([0, 0, 2, 2], [1, 0, 3, 2], 1 / 3),
        ([0, 0, 2, 2], [2, 0, 4, 2], 0.0),
        ([0, 0, 1, 1], [5, 5, 6, 6], 0.0),
        ([0, 0, 0, 0], [0, 0, 0, 0], 0.0),
        ([0, 0, 4, 4], [1, 1, 3, 3], 0.25),
    ],
    ids=["half shifted", "touching", "apart", "no area", "inside"],
)
def test_iou_in_continuous_coordinates(a, b, iou):
    assert paired_iou(np.array([a]), np.array([b]))[0] == pytest.approx(iou)


@pytest.mark.parametrize(
    ("score", "proposal", "value"),
    [
        (1.0, [0, 0, 20, 20], 0.0),
        (1.0, [0, 0, 20, 10], 0.5),
        (0.2, [0, 0, 20, 20], 0.8),
        (0.5, [0, 0, 20, 10], 1.0),
        (0.1, [30, 30, 40, 40], 0.1),
    ],
    ids=[
        "sure and tight",
        "sure and loose",
        "unsure and tight",
        "halfway",
        "unsure and elsewhere",
    ],
)
def test_tightness_rewards_disagreement_of_box_and_class(tmp_path, score, proposal, value):
    found = detections([score], boxes=[[0, 0, 20, 20]], proposals=[[float(x) for x in proposal]])
    record = write_record(tmp_path / "record", {"a": found})
    assert CRITERIA["localization_tightness"]()(record, 0).tolist() == [value]


@pytest.mark.parametrize(
    ("score", "refined", "values"),
    [
        (1.0, [0, 0, 20, 20], [0.0, 0.0]),
        (0.8, [0, 0, 20, 10], [0.4, 0.5]),
        (0.5, [30, 30, 40, 40], [0.5, 1.0]),
    ],
    ids=["settled", "half", "elsewhere"],
)
def test_a_box_that_the_head_would_move_again_is_not_settled(tmp_path, score, refined, values):
    found = detections([score], boxes=[[0, 0, 20, 20]], refined_boxes=[[float(x) for x in refined]])
    record = write_record(tmp_path / "record", {"a": found}, columns=("refined_boxes",))
    criterion = CRITERIA["box_self_consistency"]
    rated = [criterion(confidence=confidence)(record, 0).tolist() for confidence in (True, False)]
    assert rated == [[value] for value in values]


def test_tightness_weights_boxes_by_score_unless_told_otherwise(tmp_path):
    found = detections(
        [0.8, 0.2],
        boxes=[[0, 0, 20, 20], [0, 0, 20, 20]],
        proposals=[[0.0, 0, 20, 20], [0.0, 0, 20, 20]],
    )
    record = write_record(tmp_path / "record", {"a": found})
    # s = 0.2 and 0.8, P = 0.8 and 0.2.
    assert CRITERIA["localization_tightness"]()(record, 0).tolist() == [0.32]
    assert CRITERIA["localization_tightness"](aggregate="max")(record, 0).tolist() == [0.8]


def test_entropy_is_in_nats_with_background(tmp_path):
    images = {
        "even": detections([0.25], class_probs=torch.full((1, 4), 0.25), n_classes=3),
        "sure": detections([1.0], class_probs=torch.tensor([[0.0, 1, 0, 0]]), n_classes=3),
    }
    record = write_record(tmp_path / "record", images, n_classes=3)
    assert CRITERIA["entropy"]()(record, 0).tolist() == [round(math.log(4), 4), 0.0]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("first", [1.2, 0.1, 1.2, 0.2]),
        ("last", [-0.9, 0.1, -0.9, 0.2]),
        ("median", [0.15, 0.1, 0.15, 0.2]),
    ],
    ids=["first", "last", "median"],
)
def test_images_without_a_detection_follow_the_policy(policy, expected):
    values = np.array([np.nan, 0.1, np.nan, 0.2])
    filled = fill_empty(values, np.array(list("abcd")), policy, seed=0)
    np.testing.assert_allclose(filled, expected)


def test_random_policy_draws_values_of_other_images_by_id():
    ids = np.array([f"image{number}" for number in range(60)])
    values = np.where(np.arange(60) % 2, np.arange(60.0), np.nan)
    filled = fill_empty(values, ids, "random", seed=0)
    assert set(filled) <= set(values[1::2])
    assert len(set(filled[::2])) > 5
    order = np.random.default_rng(0).permutation(60)
    np.testing.assert_array_equal(fill_empty(values[order], ids[order], "random", 0), filled[order])
    assert (fill_empty(values, ids, "random", seed=1) != filled).any()


@pytest.mark.parametrize("how", AGGREGATES)
def test_aggregation_of_nothing(how):
    none = np.zeros(0)
    assert aggregate_boxes(none, none, np.array([0]), how).tolist() == []
    assert np.isnan(aggregate_boxes(none, none, np.array([0, 0, 0]), how)).all()


def test_weights_of_zero_count_alike():
    values, scores = np.array([0.2, 0.6]), np.zeros(2)
    result = aggregate_boxes(values, scores, np.array([0, 2]), "score_weighted")
    np.testing.assert_allclose(result, [0.4])


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Records with every section: a pool forth and back, none, and one without a detection."""
    folder = tmp_path_factory.mktemp("full")
    images = random_images(np.random.default_rng(4), 30, 3)
    backwards = dict(reversed(images.items()))
    nothing = {"a": detections([]), "b": detections([])}
    return {
        "forth": write_full_record(folder / "forth", images, n_classes=3),
        "back": write_full_record(folder / "back", backwards, n_classes=3, shard_size=4),
        "no image": write_full_record(folder / "none", {}),
        "no detection": write_full_record(folder / "nothing", nothing),
    }


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize(("empty", "n_images"), [("no image", 0), ("no detection", 2)])
def test_criteria_take_empty_records(full, name, empty, n_images):
    values = CRITERIA[name]()(full[empty], 0)
    assert values.shape == (n_images,)
    assert np.isfinite(values).all()


@pytest.mark.parametrize("name", CRITERIA)
def test_order_of_files_plays_no_part(full, name):
    values = [CRITERIA[name]()(full[order], 5) for order in ("forth", "back")]
    assert len(np.unique(values[0])) > 5
    np.testing.assert_array_equal(*values)


def test_noise_of_batch_sizes_is_rounded_away(tmp_path):
    found = detections([0.70001], boxes=[[0, 0, 20, 20]], proposals=[[0.0, 0, 20, 15]])
    noisy = detections(
        [0.70001 + 5e-7],
        boxes=[[0, 0, 20 + 2e-6, 20]],
        proposals=[[0.0, 0, 20, 15 + 2e-6]],
        embedding=[1.0 + 5e-7, 5e-7],
    )
    images = {"a": found, "b": noisy}
    views = {view: images for view in ALL_VIEWS if view != "plain"}
    record = write_record(tmp_path / "record", images, views=views, columns=("refined_boxes",))
    for name, cls in CRITERIA.items():
        if not issubclass(cls, Random):
            assert len(set(cls()(record, 0).tolist())) == 1, name


def test_a_criterion_must_return_finite_values(tmp_path):
    class Broken(Criterion):
        name = "broken"

        def image_values(self, record, seed):
            return np.array([1.0, np.nan])

    record = write_record(tmp_path / "record", {"a": detections([]), "b": detections([])})
    with pytest.raises(ValueError, match="broken must return 2 finite values"):
        Broken()(record, 0)


def test_every_criterion_is_described_in_one_line():
    lines = describe(CRITERIA)
    assert len(set(lines.values())) == len(CRITERIA)
    assert all(20 < len(line) < 100 for line in lines.values())
