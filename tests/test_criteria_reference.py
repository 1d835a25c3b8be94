"""Criteria over several views, and those weighed by class, against slow literal references."""

import math
import time
from typing import NamedTuple

import numpy as np
import pytest
import torch
from records import detections, random_images, views_of, write_record
from test_criteria import AGGREGATES, BOX_CRITERIA, at_1e4, literal_aggregate, literal_iou

from med_sslal.al import view_matches
from med_sslal.al.al_criteria import CRITERIA
from med_sslal.al.al_helpers import ActiveLearningHelper
from med_sslal.al.criteria import base
from med_sslal.al.view_matches import best_matches
from med_sslal.utils.errors import ConfigError, DataError

N_RECORDS = 100
NOISE = tuple(f"noise_{number}" for number in range(1, 4))
DROPOUT = tuple(f"dropout_{number}" for number in range(1, 4))
CALD = ("flip", "cutout", "downsize", "rotate")
VIEWS = (*NOISE, *DROPOUT, *CALD)


class Box(NamedTuple):
    edges: list
    label: int
    probs: list
    best: float


class Case(NamedTuple):
    """A record, and what it holds as lists: one list of boxes per image, in the order of ids."""

    record: object
    plain: list
    views: dict


def boxes_of(found, floor_of=None):
    """The boxes of an image that the record holds; those of a view of the heads follow `plain`."""
    scores = (floor_of or found).scores
    return [
        Box(
            found.boxes[row].tolist(),
            int(found.labels[row]),
            found.class_probs[row].tolist(),
            at_1e4(max(found.class_probs[row][1:].tolist())),
        )
        for row in range(len(scores))
        if scores[row] >= 0.05
    ]


def cases_of(path, images, n_classes, names, size):
    """One record, cut into records of `size` images: much faster than to write as many."""
    views = views_of(images, names)
    record = write_record(path, images, views=views, n_classes=n_classes)
    cases = []
    for part in record.blocks(size):
        ids = part.image_ids.tolist()
        lists = {
            view: [boxes_of(found[i], images[i] if view in DROPOUT else None) for i in ids]
            for view, found in views.items()
        }
        cases.append(Case(part, [boxes_of(images[i]) for i in ids], lists))
    return cases


@pytest.fixture(scope="module", params=[1, 10], ids=["1 class", "10 classes"])
def cases(request, tmp_path_factory):
    """Records with images without a detection, in one view or in all, and with ties."""
    folder = tmp_path_factory.mktemp("records")
    generator = np.random.default_rng(request.param)
    cases = []
    for size in (1, 2, 4, 7, 9):
        images = random_images(generator, N_RECORDS // 10 * size, request.param)
        cases += cases_of(folder / str(size), images, request.param, VIEWS, size)
    return cases


def literal_entropy(probs):
    return -sum(p * math.log(p) for p in probs if p > 0)


def literal_js(first, second):
    """Jensen-Shannon divergence in bits."""
    total = 0.0
    for p, q in zip(first, second, strict=True):
        middle = (p + q) / 2
        total += sum(x * math.log2(x / middle) / 2 for x in (p, q) if x > 0)
    return max(total, 0.0)


def literal_matches(box, others):
    """The highest IoU, and all boxes that have it; none where nothing overlaps."""
    overlaps = [at_1e4(literal_iou(box.edges, other.edges)) for other in others]
    best = max(overlaps, default=0.0)
    ties = [other for other, iou in zip(others, overlaps, strict=True) if iou == best and best > 0]
    return best, ties


def literal_flip(case, image, boxes):
    values = []
    for box in boxes:
        iou, ties = literal_matches(box, case.views["flip"][image])
        distances = [math.sqrt(literal_js(box.probs, other.probs)) for other in ties]
        values.append(1 - iou + min(distances, default=1.0))
    return values


def literal_difficulty(case, image, boxes, alpha=0.3, beta=0.2):
    steepness = math.exp(1 / alpha) - 1
    values = []
    for box in boxes:
        name = case.record.header.class_names[box.label - 1]
        difficulty = case.record.header.class_difficulty[name]
        weight = 1 + alpha * beta * math.log(steepness * difficulty + 1)
        values.append(weight * literal_entropy([box.best, 1 - box.best]))
    return values


def literal_ensemble(case, image, boxes):
    values = []
    for row in range(len(boxes)):
        seen = [case.views[view][image][row] for view in DROPOUT]
        probs = [sum(column) / len(seen) for column in zip(*(b.probs for b in seen), strict=True)]
        mean = [sum(column) / len(seen) for column in zip(*(b.edges for b in seen), strict=True)]
        bald = literal_entropy(probs) - sum(literal_entropy(b.probs) for b in seen) / len(seen)
        iou = sum(literal_iou(b.edges, mean) for b in seen) / len(seen)
        values.append(bald + 1 - iou)
    return values


def literal_cald(case, image, boxes, beta=1.3):
    total = 0.0
    for view in CALD:
        gaps = []
        for box in boxes:
            iou, ties = literal_matches(box, case.views[view][image])
            agreements = [
                0.5 * (1 - literal_js(box.probs, other.probs)) * (box.best + other.best)
                for other in ties
            ]
            gaps.append(at_1e4(abs(iou + max(agreements, default=0.0) - beta)))
        total += min(gaps)
    return -total / len(CALD)


def literal_stability(case, image, boxes, weight=1.0):
    stabilities = []
    for box in boxes:
        total = 0.0
        for view in NOISE:
            same = [other for other in case.views[view][image] if other.label == box.label]
            total += literal_matches(box, same)[0]
        stabilities.append(at_1e4(total / len(NOISE)))
    weights = [box.best for box in boxes]
    stability = literal_aggregate("score_weighted", stabilities, weights)
    return max(1 - box.best for box in boxes) - weight * stability


def filled(values):
    """Rounded, with the median of the others where there is no value."""
    values = [None if value is None else at_1e4(value) for value in values]
    known = [value for value in values if value is not None]
    fill = at_1e4(np.median(known)) if known else 0.0
    return [fill if value is None else value for value in values]


def literal_values(case, rate):
    return filled(
        [rate(case, image, boxes) if boxes else None for image, boxes in enumerate(case.plain)]
    )


def aggregated(rate, how):
    def image_value(case, image, boxes):
        values = [at_1e4(value) for value in rate(case, image, boxes)]
        return literal_aggregate(how, values, [box.best for box in boxes])

    return image_value


BY_BOX = {
    "flip_consistency": (literal_flip, {}),
    "class_difficulty_entropy": (literal_difficulty, {}),
    "ensemble_disagreement": (literal_ensemble, {"passes": len(DROPOUT)}),
}
BY_IMAGE = {
    "cald": ("cald_consistency", literal_cald, {}),
    "cald, beta 0.7": ("cald_consistency", literal_cald, {"beta": 0.7}),
    "stability": ("localization_stability", literal_stability, {}),
    "stability, weight 0.3": ("localization_stability", literal_stability, {"weight": 0.3}),
}


@pytest.mark.parametrize("how", AGGREGATES)
@pytest.mark.parametrize("name", BY_BOX)
def test_criteria_of_boxes_equal_the_literal_reference(cases, name, how, monkeypatch):
    # Small blocks, so that records of a few images have several.
    monkeypatch.setattr(base, "BLOCK_IMAGES", 3)
    monkeypatch.setattr(view_matches, "BLOCK_PAIRS", 40)
    rate, args = BY_BOX[name]
    for case in cases:
        values = CRITERIA[name](aggregate=how, **args)(case.record, seed=1)
        np.testing.assert_array_equal(values, literal_values(case, aggregated(rate, how)))


@pytest.mark.parametrize("which", BY_IMAGE)
def test_criteria_of_images_equal_the_literal_reference(cases, which, monkeypatch):
    monkeypatch.setattr(base, "BLOCK_IMAGES", 3)
    monkeypatch.setattr(view_matches, "BLOCK_PAIRS", 40)
    name, rate, args = BY_IMAGE[which]
    copies = {"copies": len(NOISE)} if name == "localization_stability" else {}
    for case in cases:
        values = CRITERIA[name](**copies, **args)(case.record, seed=1)
        expected = literal_values(case, lambda *more: rate(*more, **args))
        np.testing.assert_array_equal(values, expected)


def test_the_records_hold_what_is_hard(cases):
    def matches(image, box, view):
        return literal_matches(box, view[image])[1]

    found = [
        len(matches(image, box, view))
        for case in cases
        for view in case.views.values()
        for image, boxes in enumerate(case.plain)
        for box in boxes
    ]
    assert min(found) == 0 and max(found) > 1, "boxes without a match, and with several"
    empty = [(not boxes, not case.views["flip"][image]) for case in cases
             for image, boxes in enumerate(case.plain)]  # fmt: skip
    assert {(True, True), (False, True), (False, False)} <= set(empty)


def test_every_criterion_has_a_reference():
    elsewhere = {*(name for name, _ in BOX_CRITERIA.values())}
    elsewhere |= {"random", "foreground_random", "representativeness", "unexplained_objectness"}
    assert {*BY_BOX, *(name for name, _, _ in BY_IMAGE.values()), *elsewhere} == set(CRITERIA)


def test_pairs_in_blocks_are_the_pairs_at_once(cases, monkeypatch):
    for case in cases:
        sections = [case.record.section(view) for view in ("plain", "flip")]
        for same_class in (False, True):
            whole = best_matches(*sections, same_class=same_class)
            monkeypatch.setattr(view_matches, "BLOCK_PAIRS", 1)
            blocks = best_matches(*sections, same_class=same_class)
            monkeypatch.undo()
            for column in ("iou", "rows", "partners"):
                np.testing.assert_array_equal(getattr(blocks, column), getattr(whole, column))


def one_box(score, box, *, probs=None, label=1):
    probs = None if probs is None else torch.tensor([probs])
    return detections([score], [label], boxes=[box], class_probs=probs, n_classes=2)


def rated(tmp_path, name, plain, views, **args):
    views = {view: {"a": found} for view, found in views.items()}
    record = write_record(tmp_path / "record", {"a": plain}, views=views, n_classes=2)
    return CRITERIA[name](**args)(record, 0).tolist()


SQUARE, HALF, AWAY = [0, 0, 20, 20], [0, 0, 20, 10], [50, 50, 60, 60]
ONE, OTHER = [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("box", "probs", "value"),
    [
        (SQUARE, ONE, 0.0),
        (HALF, ONE, 0.5),
        (SQUARE, OTHER, 1.0),
        (AWAY, ONE, 2.0),
        (None, None, 2.0),
    ],
    ids=["the same", "half the box", "another class", "elsewhere", "nothing"],
)
def test_flip_adds_box_and_class(tmp_path, box, probs, value):
    flipped = detections([], n_classes=2) if box is None else one_box(1.0, box, probs=probs)
    found = one_box(1.0, SQUARE, probs=ONE)
    assert rated(tmp_path, "flip_consistency", found, {"flip": flipped}) == [value]


@pytest.mark.parametrize(
    ("box", "probs", "value"),
    [
        # m = IoU + (1 - JS) (P + P') / 2, and the value -abs(m - 1.3).
        (SQUARE, ONE, -0.7),
        (HALF, ONE, -0.2),
        (SQUARE, OTHER, -0.3),
        (AWAY, ONE, -1.3),
    ],
    ids=["the same", "half the box", "another class", "elsewhere"],
)
def test_cald_is_nearest_to_beta_where_a_view_is_halfway(tmp_path, box, probs, value):
    views = dict.fromkeys(CALD, one_box(1.0, box, probs=probs))
    found = one_box(1.0, SQUARE, probs=ONE)
    assert rated(tmp_path, "cald_consistency", found, views) == [value]


@pytest.mark.parametrize(
    ("box", "label", "value"),
    [(SQUARE, 1, -0.8), (HALF, 1, -0.3), (SQUARE, 2, 0.2), (AWAY, 1, 0.2)],
    ids=["the same", "half the box", "another class", "elsewhere"],
)
def test_stability_matches_the_same_class(tmp_path, box, label, value):
    views = {"noise_1": one_box(0.8, box, label=label), "noise_2": one_box(0.8, box, label=label)}
    found = one_box(0.8, SQUARE)
    assert rated(tmp_path, "localization_stability", found, views, copies=2) == [value]


def test_an_ensemble_of_one_mind_does_not_disagree(tmp_path):
    sure, torn = one_box(1.0, SQUARE, probs=ONE), one_box(0.5, SQUARE, probs=[0.0, 0.5, 0.5])
    other = one_box(1.0, SQUARE, probs=OTHER)
    name = "ensemble_disagreement"

    def value(first, second):
        views = {"dropout_1": first, "dropout_2": second}
        return rated(tmp_path, name, sure, views, passes=2)

    assert value(sure, sure) == [0.0]
    # Doubt that all passes share is no disagreement.
    assert value(torn, torn) == [0.0]
    assert value(sure, other) == [round(math.log(2), 4)]
    # Mean box 20 x 15: IoU 0.75 with the one, 2/3 with the other.
    assert value(sure, one_box(1.0, HALF, probs=ONE)) == [at_1e4(1 - (0.75 + 2 / 3) / 2)]


@pytest.mark.parametrize(
    ("difficulty", "weight"), [(0.0, 1.0), (1.0, 1.2)], ids=["easy", "as hard as can be"]
)
def test_the_weight_of_a_class_runs_from_1_to_1_and_beta(tmp_path, difficulty, weight):
    record = write_record(
        tmp_path / "record",
        {"a": one_box(0.5, SQUARE)},
        n_classes=2,
        class_difficulty={"class1": difficulty, "class2": 0.3},
    )
    expected = [at_1e4(weight * math.log(2))]
    assert CRITERIA["class_difficulty_entropy"]()(record, 0).tolist() == expected


@pytest.mark.parametrize(
    ("known", "missing"),
    [({}, "class1, class2"), ({"class1": 0.5}, "class2")],
    ids=["none", "of one class only"],
)
def test_a_record_without_difficulty_is_refused_in_words(tmp_path, known, missing):
    images = {"a": one_box(0.5, SQUARE)}
    record = write_record(tmp_path / "record", images, n_classes=2, class_difficulty=known)
    sentence = f"holds no training difficulty of {missing}, which class_difficulty_entropy needs"
    with pytest.raises(DataError, match=sentence):
        CRITERIA["class_difficulty_entropy"]()(record, 0)


@pytest.mark.parametrize("n_images", [0, 1], ids=["no image", "an image"])
@pytest.mark.parametrize("name", [name for name in CRITERIA if len(CRITERIA[name]().views) > 1])
def test_a_record_without_the_views_is_refused_in_words(tmp_path, name, n_images):
    record = write_record(tmp_path / "record", {"a": detections([0.5])} if n_images else {})
    view = CRITERIA[name]().views[1]
    with pytest.raises(DataError, match=f"has no view '{view}', only plain"):
        CRITERIA[name]()(record, 0)


WRONG = {
    "no copy": ("localization_stability", {"copies": 0}, "copies: found 0; allowed: integer, 1"),
    "one pass": ("ensemble_disagreement", {"passes": 1}, "passes: found 1; allowed: integer, 2"),
    "alpha 0": (
        "class_difficulty_entropy",
        {"alpha": 0.0},
        "alpha: found 0.0; allowed: number, 0",
    ),
    "beta 3": ("cald_consistency", {"beta": 3}, "beta: found 3; allowed: number, 0 to 2"),
    "beta -1": (
        "class_difficulty_entropy",
        {"beta": -1.0},
        "beta: found -1.0; allowed: number, 0",
    ),
}


@pytest.mark.parametrize("which", WRONG)
def test_impossible_arguments_are_refused(which):
    name, args, sentence = WRONG[which]
    at = rf"^al_criterion\[0\]\.args\.{sentence}"
    with pytest.raises(ConfigError, match=at):
        ActiveLearningHelper(1, 1, [{"type": name, "args": args}], seed=0)


def test_arguments_decide_the_views():
    assert CRITERIA["localization_stability"](copies=2).views == ("plain", "noise_1", "noise_2")
    assert len(CRITERIA["localization_stability"]().views) == 7
    assert CRITERIA["ensemble_disagreement"](passes=2).views == ("plain", "dropout_1", "dropout_2")
    assert len(CRITERIA["ensemble_disagreement"]().views) == 6


def test_cald_takes_a_fifth_of_a_loop_at_most(tmp_path):
    images = random_images(np.random.default_rng(0), 60, 3, n=20)
    [case] = cases_of(tmp_path / "record", images, 3, CALD, len(images))
    criterion = CRITERIA["cald_consistency"]()
    started = time.perf_counter()
    values = criterion(case.record, 0)
    between = time.perf_counter()
    expected = literal_values(case, literal_cald)
    assert between - started < (time.perf_counter() - between) / 5
    np.testing.assert_array_equal(values, expected)
