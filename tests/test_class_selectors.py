"""Second stages that look at classes, against slow literal references and on worked cases."""

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from records import detections, random_images, write_record
from test_criteria import at_1e4
from test_selectors import query

from med_sslal.al.al_criteria import SELECTORS
from med_sslal.al.selectors import class_conditional_similarity as similarity
from med_sslal.utils.errors import DataError

SIMILAR, BALANCE = "class_conditional_similarity", "class_balance"


class Box(NamedTuple):
    label: int
    best: float
    probs: list
    feature: list


def boxes_of(found):
    """The boxes of an image that the record holds."""
    return [
        Box(
            int(found.labels[row]),
            max(at_1e4(max(found.class_probs[row][1:].tolist())), 1e-4),
            found.class_probs[row].tolist(),
            found.roi_features[row].tolist(),
        )
        for row in range(len(found.scores))
        if found.scores[row] >= 0.05
    ]


def cosine(a, b):
    norms = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / norms if norms else 0.0


def one_way(first, second):
    """S(a -> b) of two images with detections."""
    total = 0.0
    for box in first:
        same = [cosine(box.feature, other.feature) for other in second if other.label == box.label]
        total += box.best * max([0.0, *same])
    return total / sum(box.best for box in first)


def literal_distance(first, second):
    if not first or not second:
        return 10_000 * (bool(first) != bool(second))
    return round((1 - (one_way(first, second) + one_way(second, first)) / 2) * 10_000)


def literal_k_medoids(distances, budget, seed):
    """Places of the medoids, in order."""
    generator, places = np.random.default_rng(seed), range(len(distances))
    medoids = [0]
    while len(medoids) < budget:
        nearest = [min(distances[place][m] ** 2 for m in medoids) for place in places]
        if sum(nearest) == 0:
            medoids.append(next(place for place in places if place not in medoids))
            continue
        mark, passed = int(generator.integers(sum(nearest))), 0
        for place in places:
            passed += nearest[place]
            if passed > mark:
                medoids.append(place)
                break
    while True:
        medoids.sort()
        clusters = {medoid: [] for medoid in medoids}
        for place in places:
            home = place if place in medoids else min(medoids, key=lambda m: distances[place][m])
            clusters[home].append(place)
        moved = []
        for medoid, members in clusters.items():
            cost = {m: sum(distances[m][other] for other in members) for m in members}
            best = min(members, key=lambda m: cost[m])
            moved.append(best if cost[best] < cost[medoid] else medoid)
        if moved == medoids:
            return medoids
        medoids = moved


@pytest.fixture(scope="module", params=[1, 3, 10], ids=["1 class", "3 classes", "10 classes"])
def cases(request, tmp_path_factory):
    """Records, and the boxes of their images in the order of ids; often there are none."""
    generator = np.random.default_rng(request.param)
    images = random_images(generator, 120, request.param)
    path = tmp_path_factory.mktemp("records") / "record"
    record = write_record(path, images, columns=("roi_features",), n_classes=request.param)
    parts = [part for size in (2, 6, 20) for part in record.blocks(size)]
    boxes = {name: boxes_of(found) for name, found in images.items()}
    return [(part, [boxes[name] for name in part.image_ids.tolist()]) for part in parts]


def test_similarity_equals_the_literal_reference(cases, monkeypatch):
    # Small blocks, so that one class of one image can lie in several.
    monkeypatch.setattr(similarity, "BLOCK_VALUES", 10)
    generator = np.random.default_rng(7)
    moved = 0
    for seed, (record, images) in enumerate(cases):
        candidates = generator.permutation(len(images))[: int(generator.integers(1, 21))]
        found = [images[row] for row in candidates]
        distances = [[literal_distance(a, b) if a is not b else 0 for b in found] for a in found]
        budget = min(len(found), int(generator.integers(1, len(found) // 2 + 2)))
        expected = candidates[literal_k_medoids(distances, budget, seed)].tolist()
        choices = SELECTORS[SIMILAR]().select(record, candidates, {}, budget, seed)
        assert [choice.row for choice in choices] == expected
        moved += expected[0] != candidates[0]
    assert moved > 5, "the medoids must have moved from where they started"


def kinds(*images):
    """Images of boxes given as (label, feature), with a confidence of 0.5 each."""
    return {
        letter: detections(
            [0.5] * len(boxes),
            [label for label, _ in boxes],
            roi_features=torch.tensor([feature for _, feature in boxes]).reshape(-1, 2),
            n_classes=2,
        )
        for letter, boxes in zip("abcdefgh", images, strict=False)
    }


RIGHT, UP, SLANT = [1.0, 0.0], [0.0, 2.0], [3.0, 4.0]


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [
        ([(1, RIGHT)], [(1, [5.0, 0.0])], 0),
        ([(1, RIGHT)], [(1, UP)], 10_000),
        ([(1, RIGHT)], [(1, [-1.0, 0.0])], 10_000),
        ([(1, RIGHT)], [(2, RIGHT)], 10_000),
        ([(1, RIGHT)], [(1, SLANT)], 4_000),
        ([(1, RIGHT)], [(1, UP), (1, SLANT)], 5_500),
        ([(1, RIGHT)], [(1, RIGHT), (2, RIGHT)], 2_500),
        ([], [(1, RIGHT)], 10_000),
    ],
    ids=["scaled", "square", "opposite", "another class", "slanted", "best of two", "one of two",
         "empty"],
)  # fmt: skip
def test_distances_of_worked_pairs(tmp_path, first, second, distance):
    record = write_record(
        tmp_path / "r", kinds(first, second, second), columns=("roi_features",), n_classes=2
    )
    found = similarity._distances(
        record.section("plain"), record.column("roi_features"), np.arange(3)
    )
    assert found.tolist() == [[0, distance, distance], [distance, 0, 0], [distance, 0, 0]]


def test_images_without_a_detection_are_alike(tmp_path):
    images = kinds([], [], [], [(1, RIGHT)], [(2, RIGHT)], [(1, RIGHT)])
    record = write_record(tmp_path / "r", images, columns=("roi_features",), n_classes=2)
    for seed in range(5):
        selection = query(record, ["random", SIMILAR], 3, seed=seed, candidate_factor=None)
        one_each = {("a", "b", "c").count(name) for name in selection.image_ids}
        assert one_each == {0, 1} and "e" in selection.image_ids
        assert sum(name in "abc" for name in selection.image_ids) == 1
        sizes = sorted(item.reason.split("stands for ")[1] for item in selection.items)
        assert sizes == [f"{size} of 6 candidates" for size in (1, 2, 3)]


def test_similarity_without_roi_features_is_refused_in_words(tmp_path):
    record = write_record(tmp_path / "r", {"a": detections([0.5]), "b": detections([0.4])})
    with pytest.raises(DataError, match="has no roi_features: score the pool again"):
        query(record, ["entropy", SIMILAR], 1)


def test_class_balance_equals_the_literal_reference(cases):
    generator = np.random.default_rng(3)
    for record, images in cases:
        labelled = list(record.header.class_counts.values())
        candidates = generator.permutation(len(images))
        values = []
        for row in candidates:
            sums = [
                sum(box.probs[label] for box in images[row])
                for label in range(1, len(labelled) + 1)
            ]
            if not sum(sums):
                values.append(0.0)
                continue
            p, q = [x / sum(sums) for x in sums], [x / sum(labelled) for x in labelled]
            middle = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
            parts = [
                x * math.log2(x / m)
                for side in (p, q)
                for x, m in zip(side, middle, strict=True)
                if x
            ]
            values.append(at_1e4(sum(parts) / 2))
        order = sorted(range(len(candidates)), key=lambda place: -values[place])
        budget = int(generator.integers(1, len(images) + 1))
        choices = SELECTORS[BALANCE]().select(record, candidates, {}, budget, 0)
        assert [choice.row for choice in choices] == candidates[order][:budget].tolist()


@pytest.mark.parametrize(
    ("counts", "chosen"),
    [
        ({"class1": 9, "class2": 1}, "bc"),
        ({"class1": 1, "class2": 9}, "ac"),
        ({}, "ab"),
        ({"class1": 0, "class2": 0}, "ab"),
    ],
    ids=["much of class 1", "much of class 2", "nothing known", "no labelled box"],
)
def test_class_balance_asks_for_what_is_rare(tmp_path, counts, chosen):
    # By uncertainty the order is a, b, c.
    images = {
        "a": detections([0.1], [1], n_classes=2),
        "b": detections([0.2], [2], n_classes=2),
        "c": detections([0.4, 0.3], [1, 2], n_classes=2),
    }
    record = write_record(tmp_path / "r", images, n_classes=2, class_counts=counts)
    names = ["prediction_uncertainty", BALANCE]
    selection = query(record, names, 2, candidate_factor=None)
    assert "".join(selection.image_ids) == chosen
    assert "bits from the labelled set's, place 1 of 3 candidates" in selection.items[0].reason
