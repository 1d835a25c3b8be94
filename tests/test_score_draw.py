"""The second stage score_draw, against a slow literal reference and by what it draws."""

import math
from collections import Counter

import numpy as np
import pytest
from records import detections, random_images, write_record
from test_criteria import at_1e4

from med_sslal.al.al_criteria import SELECTORS
from med_sslal.al.al_helpers import ActiveLearningHelper
from med_sslal.al.pool import Pool

NAME = "score_draw"


@pytest.fixture(scope="module", params=[1, 10], ids=["1 class", "10 classes"])
def cases(request, tmp_path_factory):
    """Records, and (label, score, size) of the boxes of their images, often none, and with ties."""
    images = random_images(np.random.default_rng(request.param), 500, request.param)
    path = tmp_path_factory.mktemp("records") / "record"
    record = write_record(path, images, n_classes=request.param)
    boxes = {}
    for name, found in images.items():
        sides = (found.boxes[:, 2:] - found.boxes[:, :2]).tolist()
        columns = zip(found.labels.tolist(), found.scores.tolist(), sides, strict=True)
        boxes[name] = [
            (label, at_1e4(score), round(math.sqrt(width * height), 1))
            for label, score, (width, height) in columns
            if score >= 0.05
        ]
    parts = [part for size in (5, 20) for part in record.blocks(size)][:100]
    return [(part, [boxes[name] for name in part.image_ids.tolist()]) for part in parts]


def literal_strata(images, n_classes):
    """Place to p of each stratum that has an image."""
    if n_classes > 1:
        classes = range(1, n_classes + 1)
        strata = [
            {
                place: max(score for label, score, _ in boxes if label == number)
                for place, boxes in enumerate(images)
                if any(label == number for label, _, _ in boxes)
            }
            for number in classes
        ]
        return [stratum for stratum in strata if stratum]
    best = {p: max(score for _, score, _ in boxes) for p, boxes in enumerate(images) if boxes}
    sizes = {p: max(size for _, score, size in images[p] if score == best[p]) for p in best}
    if not best:
        return []
    known, strata = sorted(sizes.values()), [{}, {}, {}]
    limits = [known[math.floor((len(known) - 1) * share)] for share in (1 / 3, 2 / 3)]
    for place in best:
        strata[sum(sizes[place] > limit for limit in limits)][place] = best[place]
    return [stratum for stratum in strata if stratum]


def literal_score_draw(images, rows, n_rows, own, n_classes, budget, seed, beta):
    """Places of the candidates that are taken, whatever their order."""
    generator, n = np.random.default_rng(seed), len(rows)
    shares = [(sum(s < x for s in own) + 1 + sum(s <= x for s in own)) / 2 / n for x in own]
    taken = []

    def draw(worth, n_images):
        noise = generator.gumbel(size=n_rows)
        keys = {p: math.log(x) + noise[rows[p]] / beta for p, x in worth.items() if p not in taken}
        taken.extend(sorted(keys, key=lambda p: -keys[p])[:n_images])

    strata = literal_strata(images, n_classes)
    order, n_split = generator.permutation(len(strata)), 2 * budget // 3
    for turn, number in enumerate(order):
        n_images = n_split // len(strata) + (turn < n_split % len(strata))
        draw({place: p * shares[place] for place, p in strata[number].items()}, n_images)
    draw(dict(enumerate(shares)), budget - len(taken))
    return taken


def test_score_draw_equals_the_literal_reference(cases):
    generator, kinds = np.random.default_rng(5), Counter()
    for seed, (record, images) in enumerate(cases):
        n_classes = len(record.header.class_names)
        candidates = generator.permutation(len(images))[: int(generator.integers(1, 21))]
        scores = generator.integers(-3, 3, len(images)).astype(float)
        budget = int(generator.integers(1, len(candidates) + 1))
        cycle = seed % 4
        own = [images[row] for row in candidates]
        places = literal_score_draw(
            own, candidates, len(images), scores[candidates].tolist(), n_classes, budget, seed,
            100 ** (cycle / 3),
        )  # fmt: skip
        selector = SELECTORS[NAME]().at(cycle, 4)
        chosen = selector.select(record, candidates, {"any": scores}, budget, seed)
        assert sorted(choice.row for choice in chosen) == sorted(candidates[places].tolist())
        kinds[any(own), all(own)] += 1
    assert len(kinds) == 3, "some, all and none of the candidates without a detection"


@pytest.mark.parametrize(
    ("cycle", "num_cycles", "low", "high"),
    [
        (0, 5, 0.6, 0.73),
        (2, 5, 0.88, 0.94),
        (4, 5, 0.97, 1.0),
        (9, 5, 0.97, 1.0),
        (0, 1, 0.6, 0.73),
    ],
    ids=["first", "in the middle", "last", "past the last", "the only one"],
)
def test_draws_go_from_chance_to_the_best(tmp_path, cycle, num_cycles, low, high):
    # The chance of rank share s goes with s^beta: its mean is (beta + 1) / (beta + 2).
    images = {f"image{number:03d}": detections([]) for number in range(400)}
    record = write_record(tmp_path / "r", images)
    order, shares = np.arange(400), []
    for seed in range(60):
        selector = SELECTORS[NAME]().at(cycle, num_cycles)
        chosen = selector.select(record, order, {"any": order.astype(float)}, 5, seed)
        shares += [(choice.row + 1) / 400 for choice in chosen]
    assert low < np.mean(shares) < high


def test_two_thirds_are_split_over_the_predicted_classes(tmp_path):
    # Of the third class there is one image, and of the fourth none.
    labels = {f"image{n:03d}": 1 + (n % 10 > 7) for n in range(60)} | {"image060": 3}
    images = {
        name: detections([0.5 + number / 200], [label], n_classes=4)
        for number, (name, label) in enumerate(labels.items())
    }
    record = write_record(tmp_path / "r", images, n_classes=4)
    pool = Pool((), tuple(record.image_ids.tolist()))
    helper = ActiveLearningHelper(1, 18, ["entropy", NAME], seed=4)
    first, last = (helper.at(cycle, 3).query(record, pool, 18, 0) for cycle in (0, 2))
    assert first.image_ids != last.image_ids
    assert helper.query(record, pool, 18, 0) == first, "untold, it is the first query"
    for selection, beta in ((first, 1), (last, 100)):
        parts = Counter(item.reason.split("; ")[1] for item in selection.items)
        words = "drawn by score among {}, beta {}".format
        assert parts == {
            words("images of class1", beta): 4,
            words("images of class2", beta): 4,
            words("images of class3", beta): 1,
            # Six, and what the third class could not fill.
            words("all", beta): 9,
        }
        for item in selection.items:
            if "of class" in item.reason:
                assert f"class{labels[item.image_id]}" in item.reason


def test_one_class_is_split_by_predicted_size(tmp_path):
    sides = [5, 6, 7, 8, 20, 21, 22, 23, 60, 61, 62, 63]
    images = {
        f"image{n:02d}": detections([0.9, 0.2], boxes=[[0, 0, side, side], [0, 0, 90, 90]])
        for n, side in enumerate(sides)
    }
    record = write_record(tmp_path / "r", images)
    pool = Pool((), tuple(record.image_ids.tolist()))
    chosen = ActiveLearningHelper(1, 9, ["entropy", NAME], seed=0).query(record, pool, 9, 0)
    thirds = {"small": range(4), "medium": range(4, 8), "large": range(8, 12)}
    for third, numbers in thirds.items():
        own = [item for item in chosen.items if f"images of {third} objects" in item.reason]
        assert len(own) == 2
        assert all(int(item.image_id[-2:]) in numbers for item in own)
