"""The rules of offline pseudo-labels, one by one, on cases worked by hand."""

import json

import numpy as np
import pytest
import torch
from records import detections, write_record

from med_sslal.al.pool import Pool
from med_sslal.base.types import Annotation, Prediction
from med_sslal.ssl.pseudo_labels import ClassStats, PseudoLabeller, PseudoLabels
from med_sslal.ssl.quality import Quality, hidden_truth_quality, unmatched
from med_sslal.utils.errors import ConfigError, DataError

NAMES = ("class1",)
BOX = [10.0, 10.0, 30.0, 30.0]
ELSEWHERE = [50.0, 50.0, 60.0, 60.0]


def label(n=1, labels=None, ignore=None, boxes=None):
    labels = [1] * n if labels is None else labels
    n = len(labels)
    boxes = [BOX] * n if boxes is None else boxes
    return Annotation(
        np.array(boxes, dtype=np.float32).reshape(n, 4),
        np.array(labels, dtype=np.int64),
        np.array([False] * n if ignore is None else ignore, dtype=bool),
    )


def prediction(boxes, scores, labels=None):
    return Prediction(
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.array([1] * len(scores) if labels is None else labels, dtype=np.int64),
        np.array(scores, dtype=np.float32),
    )


def validation(hits, misses):
    """One image per score: a detection on its object, or one beside it."""
    predictions = {f"hit{i}": prediction([BOX], [score]) for i, score in enumerate(hits)}
    predictions |= {f"miss{i}": prediction([ELSEWHERE], [s]) for i, s in enumerate(misses)}
    return predictions, dict.fromkeys(predictions, label())


THRESHOLDS = {
    "precise from the lowest on": ([0.6] * 20, [0.4] * 50, 0.5),
    # F1 from 0.5 on 46 / (23 + 3 + 26), from 0.7 on 40 / (20 + 26).
    "the best F1, which is not the most precise": ([0.6] * 3 + [0.9] * 20, [0.6] * 3, 0.5),
    # 42 / (21 + 5 + 26) against 40 / (20 + 26).
    "the best F1, which is not the lowest": ([0.6] + [0.9] * 20, [0.6] * 5, 0.9),
    "exactly 0.8 is enough": ([0.6] * 28, [0.6] * 7, 0.5),
    "just below 0.8 is not": ([0.6] * 27 + [0.8], [0.6] * 8, 0.8),
    "never precise": ([0.6] * 20, [0.99] * 20, 0.95),
    "too few true positives": ([0.9] * 19, [], 0.7),
    "low scores are no true positives": ([0.9] * 19 + [0.49] * 10, [], 0.7),
    "nothing detected": ([], [], 0.7),
}


@pytest.mark.parametrize(("hits", "misses", "expected"), THRESHOLDS.values(), ids=THRESHOLDS)
def test_threshold_has_the_best_f1_of_those_precise_on_validation(hits, misses, expected):
    found = PseudoLabeller().thresholds(*validation(hits, misses), NAMES)
    assert found == {"class1": pytest.approx(expected, abs=1e-6)}


def test_a_fixed_threshold_asks_no_validation():
    labeller = PseudoLabeller(threshold=0.7)
    assert labeller.thresholds({}, {}, ("a", "b")) == {"a": 0.7, "b": 0.7}


def test_no_validation_images_give_the_fallback():
    assert PseudoLabeller().thresholds({}, {}, ("a", "b")) == {"a": 0.7, "b": 0.7}


def test_ignore_regions_and_repeats_count_as_neither():
    predictions, truth = validation([0.6] * 20, [])
    for number in range(15):
        predictions[f"region{number}"] = prediction([ELSEWHERE], [0.9])
        truth[f"region{number}"] = label(labels=[1], ignore=[True], boxes=[ELSEWHERE])
        predictions[f"hit{number}"] = prediction([BOX, BOX], [0.6, 0.55])
    assert PseudoLabeller().thresholds(predictions, truth, NAMES) == {"class1": 0.5}


def test_thresholds_are_per_class():
    predictions, truth = validation([0.7] * 20, [])
    for number in range(30):
        predictions[f"b{number}"] = prediction([BOX], [0.9], [2])
        truth[f"b{number}"] = label(labels=[1])
    found = PseudoLabeller().thresholds(predictions, truth, ("class1", "class2"))
    assert found == {"class1": 0.5, "class2": 0.7}, "a wrong class is no hit of either"


@pytest.fixture
def make(tmp_path):
    """Make pseudo-labels of images given as scores or Detections."""

    def run(
        images,
        *,
        labelled=None,
        threshold=0.5,
        n_classes=1,
        args=None,
        pool=None,
        columns=(),
        **more,
    ):
        found = {
            name: detections(value, n_classes=n_classes) if isinstance(value, list) else value
            for name, value in images.items()
        }
        path = tmp_path / "record"
        record = write_record(path, found, n_classes=n_classes, columns=columns)
        labelled = {"l": label(10)} if labelled is None else labelled
        pool = pool or Pool(tuple(labelled), tuple(images))
        names = record.header.class_names
        labeller = PseudoLabeller(**(args or {}))
        return labeller.make(record, pool, dict.fromkeys(names, threshold), labelled, **more)

    return run


def test_boxes_are_labels_ignore_regions_or_background_by_score(make):
    pseudo = make({"a": [0.9, 0.5, 0.49, 0.2, 0.19, 0.06], "b": [0.4]})
    assert list(pseudo.labels) == ["a"], "an image with ignore regions only is not used"
    found = pseudo.labels["a"]
    assert found.ignore.tolist() == [False, False, True, True]
    assert found.boxes[:, 0].tolist() == [0, 40, 80, 120], "original pixels, best first"
    assert found.labels.tolist() == [1, 1, 1, 1]
    assert not found.regress.any(), "a record without refined boxes teaches none"
    assert pseudo.stats == {"class1": ClassStats(2, 0.7, 0.5)}


def test_a_box_teaches_regression_where_the_box_head_keeps_it(make):
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]])
    # IoU with what they become: 0.9, 0.8 and 1, the last one only an ignore region.
    refined = boxes - torch.tensor([[0.0, 0, 0, 1], [0, 0, 0, 2], [0, 0, 0, 0]])
    image = detections([0.9, 0.8, 0.4], boxes=boxes, refined_boxes=refined)
    for least, wanted in ((0.85, [True, False, False]), (0.75, [True, True, False])):
        made = make({"a": image}, args={"regress_iou": least}, columns=["refined_boxes"])
        assert made.labels["a"].regress.tolist() == wanted
        assert made.labels["a"].ignore.tolist() == [False, False, True]
    made = make({"a": image}, args={"regress_iou": None}, columns=["refined_boxes"])
    assert not made.labels["a"].regress.any()


def test_confident_detections_beside_the_labels_are_ignore_regions():
    found = {
        "a": prediction([BOX, ELSEWHERE, ELSEWHERE], [0.9, 0.8, 0.6]),
        "b": prediction([ELSEWHERE], [0.7], [2]),
        "c": prediction([BOX], [0.9]),
    }
    truth = {**dict.fromkeys("ac", label()), "b": Annotation.empty()}
    regions = unmatched(found, truth, {"class1": 0.7, "class2": 0.6})
    assert regions.keys() == {"a", "b"}
    assert regions["a"].boxes.tolist() == [ELSEWHERE] and regions["b"].labels.tolist() == [2]
    beside = PseudoLabels({}, {}, regions).beside(truth)
    assert beside["a"].boxes.tolist() == [BOX, ELSEWHERE]
    assert beside["a"].ignore.tolist() == [False, True] and beside["a"].n_objects == 1
    assert beside["c"] is truth["c"]


def test_band_negatives_and_cap_can_be_left_out(make):
    off = {"ignore_floor": None, "negative_floor": None, "density_cap": None}
    images = {"a": [0.9, 0.8, 0.7, 0.4], "b": [0.9], "n": []}
    pseudo = make(images, args=off, labelled={"l": label(1), "e": Annotation.empty()})
    assert {name: label.ignore.tolist() for name, label in pseudo.labels.items()} == {
        "a": [False] * 3,
        "b": [False],
    }


def test_each_class_has_its_own_threshold(tmp_path):
    found = detections([0.9, 0.7, 0.6], [1, 2, 1], n_classes=2)
    record = write_record(tmp_path / "record", {"a": found}, n_classes=2)
    thresholds = {"class1": 0.65, "class2": 0.75}
    labelled = {"l": label(labels=[1, 2])}
    pseudo = PseudoLabeller().make(record, Pool(("l",), ("a",)), thresholds, labelled)
    assert pseudo.labels["a"].labels.tolist() == [1, 2, 1]
    assert pseudo.labels["a"].ignore.tolist() == [False, True, True]
    assert pseudo.stats["class2"] == ClassStats(0, None, 0.75)


def test_density_cap_raises_the_threshold(make):
    # One box per labelled image and 5 unlabelled images: at most 1.2 * 1 * 5 = 6 boxes.
    images = {name: [0.9, 0.8 - 0.01 * number] for number, name in enumerate("abcde")}
    pseudo = make(images, labelled={"l": label(1)})
    assert pseudo.stats["class1"] == ClassStats(6, pytest.approx(5.3 / 6, abs=1e-4), 0.7901)
    assert pseudo.labels["a"].ignore.tolist() == [False, False]
    assert pseudo.labels["b"].ignore.tolist() == [False, True], "what the cap drops is ignored"


def test_examples_are_the_surest_and_the_least_sure_images(make, tmp_path):
    images = {f"i{n:02d}": [0.95, 0.9 - 0.02 * n] for n in range(12)} | {"left": [0.4]}
    pseudo = make(images)
    surest, least = [f"i{n:02d}" for n in range(5)], [f"i{n:02d}" for n in range(7, 12)]
    assert list(pseudo.examples) == surest + least
    assert pseudo.examples["i11"] == pytest.approx([0.95, 0.68])
    pseudo.write(tmp_path / "made.json")
    assert PseudoLabels.read(tmp_path / "made.json").examples == pseudo.examples
    assert list(make({"a": [0.9], "b": [0.8]}).examples) == ["a", "b"]


def test_density_cap_drops_ties_together(make):
    pseudo = make({name: [0.9, 0.7] for name in "abcde"}, labelled={"l": label(1)})
    assert pseudo.stats["class1"].count == 5
    assert pseudo.stats["class1"].threshold == 0.7001


def test_density_counts_objects_of_the_class_only(make):
    labelled = {"l": label(labels=[1, 2, 2], ignore=[False, True, True])}
    images = {"a": detections([0.9, 0.8], [1, 2], n_classes=2)}
    pseudo = make(images, labelled=labelled, n_classes=2)
    assert pseudo.stats["class1"].count == 1
    assert pseudo.stats["class2"].count == 0, "no label of the class, no pseudo-label"


def test_density_cap_can_be_wider(make):
    images = {name: [0.9, 0.8] for name in "abcde"}
    pseudo = make(images, labelled={"l": label(1)}, args={"density_cap": 2.0})
    assert pseudo.stats["class1"] == ClassStats(10, 0.85, 0.5)


@pytest.mark.parametrize(
    ("n_empty", "n_filled", "expected"),
    [(0, 4, 0), (1, 3, 2), (2, 2, 6), (3, 1, 8), (4, 0, 0)],
    ids=["none", "a quarter", "half", "all there are", "nothing but empty images"],
)
def test_negatives_are_no_more_frequent_than_in_the_labelled_set(make, n_empty, n_filled, expected):
    labelled = {f"e{i}": Annotation.empty() for i in range(n_empty)}
    labelled |= {f"f{i}": label(10) for i in range(n_filled)}
    images = {f"sure{i}": [0.9] for i in range(6)} | {f"none{i}": [] for i in range(8)}
    images["unsure"] = [0.06]
    pseudo = make(images, labelled=labelled)
    negatives = [name for name, found in pseudo.labels.items() if not len(found.labels)]
    assert len(negatives) == expected
    assert "unsure" not in pseudo.labels
    assert list(pseudo.labels) == sorted(pseudo.labels)


def test_which_images_are_negatives_follows_the_seed_and_not_the_order(make):
    labelled = {"e": Annotation.empty(), "f": label(10)}
    images = {f"sure{i}": [0.9] for i in range(3)} | {f"none{i}": [] for i in range(20)}

    def negatives(seed, given):
        made = make(given, labelled=labelled, seed=seed)
        return {name for name in made.labels if name.startswith("none")}

    assert negatives(0, images) == negatives(0, dict(reversed(images.items())))
    assert len({frozenset(negatives(seed, images)) for seed in range(4)}) > 1


def test_images_labelled_since_are_left_out(make):
    pool = Pool(("l", "b"), ("a",))
    pseudo = make({"a": [0.9], "b": [0.95]}, pool=pool)
    assert list(pseudo.labels) == ["a"]
    assert pseudo.stats["class1"].count == 1


def test_a_record_without_an_unlabelled_image_is_refused(make):
    with pytest.raises(DataError, match="lacks 1 unlabelled image"):
        make({"a": [0.9]}, pool=Pool(("l",), ("a", "b")))


def test_a_record_without_low_scores_is_refused(tmp_path):
    record = write_record(tmp_path / "record", {"a": detections([0.9])}, record_floor=0.3)
    with pytest.raises(DataError, match=r"keeps scores from 0\.3 on"):
        PseudoLabeller().make(record, Pool(("l",), ("a",)), {"class1": 0.5}, {"l": label()})


def test_boxes_without_area_are_dropped_and_coordinates_rounded(make):
    boxes = [[1.2345678, 2, 30, 30], [5, 5, 5.004, 9], [60, 60, 70, 70.001]]
    pseudo = make({"a": detections([0.9, 0.8, 0.7], boxes=boxes)})
    expected = np.array([[1.23, 2, 30, 30], [60, 60, 70, 70]], dtype=np.float32)
    np.testing.assert_array_equal(pseudo.labels["a"].boxes, expected)


def test_overlapping_boxes_of_two_classes_both_stay(make):
    found = detections([0.9, 0.8], [1, 2], boxes=[BOX, BOX], n_classes=2)
    pseudo = make({"a": found}, n_classes=2, labelled={"l": label(labels=[1, 2])})
    assert pseudo.labels["a"].labels.tolist() == [1, 2]
    assert not pseudo.labels["a"].ignore.any()


def test_an_empty_pool_gives_no_pseudo_labels(make):
    pseudo = make({})
    assert pseudo.labels == {}
    assert pseudo.stats == {"class1": ClassStats(0, None, 0.5)}


def test_pseudo_labels_come_back_from_the_file_bit_for_bit(make, tmp_path):
    boxes = [[0.1, 0.2, 30.33, 40.07], [1, 2, 3, 4], [7, 7, 9, 9]]
    labelled = {"e": Annotation.empty(), "f": label(10)}
    images = {"a": detections([0.9, 0.8, 0.3], boxes=boxes), "b": []}
    pseudo = make(images, labelled=labelled)
    pseudo.write(tmp_path / "pseudo.json")
    again = PseudoLabels.read(tmp_path / "pseudo.json")
    assert again.stats == pseudo.stats
    assert list(again.labels) == list(pseudo.labels) == ["a", "b"]
    for name, found in pseudo.labels.items():
        for column in ("boxes", "labels", "ignore", "regress"):
            mine, other = getattr(found, column), getattr(again.labels[name], column)
            np.testing.assert_array_equal(mine, other)
            assert mine.dtype == other.dtype


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format_version": 99}, "format_version 99"),
        ({"labels": {"a": {"boxes": [[0, 0, 1, 1]], "labels": [1]}}}, "holds no pseudo-labels"),
        ({"stats": []}, "holds no pseudo-labels"),
        ({"labels": {"a": {"boxes": [[1, 1, 0, 0]], "labels": [1], "ignore": [False]}}}, "area"),
    ],
    ids=["newer", "missing entry", "wrong kind", "box without area"],
)
def test_a_damaged_file_is_refused(tmp_path, changes, words):
    content = {"format_version": 1, "stats": {}, "labels": {}, **changes}
    (tmp_path / "pseudo.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=words):
        PseudoLabels.read(tmp_path / "pseudo.json")


def test_hidden_truth_grades_the_images_that_are_used():
    pseudo = {
        "right": label(boxes=[BOX], labels=[1]),
        "wrong place": label(boxes=[ELSEWHERE], labels=[1]),
        "wrong class": label(boxes=[BOX], labels=[2]),
        "region": label(boxes=[BOX], labels=[1], ignore=[True]),
        "negative": Annotation.empty(),
    }
    truth = {**dict.fromkeys(pseudo, label()), "unused": label(50)}
    quality = hidden_truth_quality(pseudo, truth, ("class1", "class2", "class3"))
    assert quality == {
        "class1": Quality(1 / 2, 1 / 5, 1.0),
        "class2": Quality(0.0, None, None),
        "class3": Quality(None, None, None),
    }


WRONG = {
    "threshold above 1": ({"threshold": 1.5}, "threshold"),
    "threshold under the ignore floor": ({"threshold": 0.1}, "threshold"),
    "threshold 0": ({"threshold": 0.0, "ignore_floor": None}, "threshold"),
    "fallback 0": ({"fallback_threshold": 0.0, "ignore_floor": None}, "fallback_threshold"),
    "negatives above the ignore floor": ({"negative_floor": 0.3}, "negative_floor"),
    "negatives above the threshold": (
        {"negative_floor": 0.6, "ignore_floor": None, "threshold": 0.5},
        "negative_floor",
    ),
    "bounds crossed": ({"min_threshold": 0.9, "max_threshold": 0.6}, "min_threshold"),
    "ignore floor under the record's": ({"ignore_floor": 0.01}, "ignore_floor"),
    "negative floor under the record's": ({"negative_floor": 0.0}, "negative_floor"),
    "precision above 1": ({"target_precision": 90.0}, "target_precision"),
    "no true positive": ({"min_true_positives": 0}, "min_true_positives"),
    "no density": ({"density_cap": 0.0}, "density_cap"),
    "density not a number": ({"density_cap": float("nan")}, "density_cap"),
}


@pytest.mark.parametrize(("changes", "name"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_named(changes, name):
    with pytest.raises(ConfigError, match=f"^{name}: found"):
        PseudoLabeller(**changes)
