"""COCO AP on hand-worked cases, and predictions to COCO's form and back."""

import json
import logging
from importlib.util import find_spec

import numpy as np
import pytest

from med_sslal.base.types import Annotation, ImageInfo, Prediction
from med_sslal.eval.box_quality import box_quality
from med_sslal.eval.coco_eval import coco_ap
from med_sslal.eval.coco_utils import from_coco_predictions, to_coco_predictions
from med_sslal.utils.errors import DataError
from med_sslal.utils.util import read_json, write_json

A, B, FAR = (0, 0, 10, 10), (30, 30, 40, 40), (50, 50, 60, 60)


def truth(rows, labels=None, ignore=None):
    n = len(rows)
    return Annotation(
        np.array(rows, dtype=np.float32).reshape(-1, 4),
        np.array([1] * n if labels is None else labels, dtype=np.int64),
        np.array([False] * n if ignore is None else ignore, dtype=bool),
    )


def found(rows, scores, labels=None):
    return Prediction(
        np.array(rows, dtype=np.float32).reshape(-1, 4),
        np.array([1] * len(rows) if labels is None else labels, dtype=np.int64),
        np.array(scores, dtype=np.float32),
    )


def infos_of(ids):
    return {i: ImageInfo(i, i, f"{i}.png", (64, 64)) for i in ids}


BACKENDS = [
    "pycocotools",
    pytest.param(
        "faster_coco_eval",
        marks=pytest.mark.skipif(
            find_spec("faster_coco_eval") is None, reason="needs faster-coco-eval (optional)"
        ),
    ),
]


@pytest.fixture(params=BACKENDS)
def ap(request):
    """Values of both backends in turn."""

    def values(predictions, annotations, names=("lesion",)):
        infos = infos_of(annotations)
        return coco_ap(predictions, annotations, infos, names, backend=request.param).values

    return values


# COCO samples precision at 101 recalls: 0 to 0.5 are 51 of them, 0.51 to 1 are 50.
MIXED = (51 + 50 * 2 / 3) / 101


@pytest.mark.parametrize(
    ("name", "prediction", "annotation", "ap50", "ap_all"),  # AP75 is AP50 but where AP differs
    [
        # The first box and the first detection: with ids from 0 they would count as unmatched.
        ("one perfect", found([A], [0.9]), truth([A]), 1, 1),
        ("no prediction", Prediction.empty(), truth([A]), 0, 0),
        ("no box", found([A], [0.9]), Annotation.empty(), None, None),
        ("neither", Prediction.empty(), Annotation.empty(), None, None),
        ("only an ignored box", found([A], [0.9]), truth([A], ignore=[True]), None, None),
        ("IoU 0.72: five of ten thresholds", found([(0, 0, 10, 7.2)], [0.9]), truth([A]), 1, 0.5),
        ("IoU 0.75: six of ten", found([(0, 0, 10, 7.5)], [0.9]), truth([A]), 1, 0.6),
        ("one of two", found([A], [0.9]), truth([A, B]), 51 / 101, 51 / 101),
        ("hit, false, hit", found([A, FAR, B], [0.9, 0.8, 0.7]), truth([A, B]), MIXED, MIXED),
        ("false first", found([FAR, A], [0.9, 0.8]), truth([A]), 0.5, 0.5),
        ("a repeat is false", found([A, A, B], [0.9, 0.8, 0.7]), truth([A, B]), MIXED, MIXED),
        ("ignored", found([FAR, A], [0.9, 0.8]), truth([A, FAR], ignore=[0, 1]), 1, 1),
        # Plain COCO would ignore 0.6 of the area in a region up to the threshold 0.6 only.
        (
            "0.6 in a region, ignored at every threshold",
            found([(50, 50, 60, 60), A], [0.9, 0.8]),
            truth([A, (50, 50, 60, 56)], ignore=[0, 1]),
            1,
            1,
        ),
        (
            "0.4 in a region, false at every threshold",
            found([(50, 50, 60, 60), A], [0.9, 0.8]),
            truth([A, (50, 50, 60, 54)], ignore=[0, 1]),
            0.5,
            0.5,
        ),
        (
            "several in one region",
            found([FAR, FAR, A], [0.9, 0.85, 0.8]),
            truth([A, (45, 45, 64, 64)], ignore=[0, 1]),
            1,
            1,
        ),
        ("no area", found([(50, 50, 50, 60), A], [0.9, 0.8]), truth([A]), 0.5, 0.5),
    ],
)  # fmt: skip
def test_one_image(ap, name, prediction, annotation, ap50, ap_all):
    values = ap({"i": prediction}, {"i": annotation})
    ap75 = 0 if name.startswith("IoU 0.72") else ap50
    assert values == {
        "AP50": pytest.approx(ap50),
        "AP75": pytest.approx(ap75),
        "AP": pytest.approx(ap_all),
    }


def test_hundred_best_count_and_never_minus_one(ap):
    """With 150 detections the one at rank 120 is cut off; the one at rank 80 is not."""
    rows = [FAR] * 150
    scores = np.linspace(0.9, 0.1, 150)
    for rank, expected in ((79, 1 / 80), (119, 0.0)):
        rows_here = [*rows[:rank], A, *rows[rank + 1 :]]
        values = ap({"i": found(rows_here, scores)}, {"i": truth([A])})
        assert values["AP50"] == pytest.approx(expected)


def test_scores_are_pooled_over_images(ap):
    predictions = {"i": found([FAR], [0.9]), "j": found([A], [0.8]), "empty": Prediction.empty()}
    annotations = {"i": Annotation.empty(), "j": truth([A]), "empty": Annotation.empty()}
    assert ap(predictions, annotations)["AP50"] == pytest.approx(0.5)


def test_classes_and_their_mean(ap):
    looser = (30, 30, 40, 37)
    predictions = {"i": found([A, FAR, looser], [0.9, 0.8, 0.7], labels=[1, 2, 2])}
    annotations = {"i": truth([A, B], labels=[1, 2])}
    values = ap(predictions, annotations, ["a", "b", "never"])
    assert values == {
        "AP50": pytest.approx(0.75),
        "AP75": pytest.approx(0.5),
        "AP": pytest.approx(0.625),
        "AP50/a": pytest.approx(1.0),
        "AP50/b": pytest.approx(0.5),
        "AP50/never": None,
        "AP75/a": pytest.approx(1.0),
        "AP75/b": pytest.approx(0.0),
        "AP75/never": None,
        "AP/a": pytest.approx(1.0),
        "AP/b": pytest.approx(0.25),
        "AP/never": None,
    }


def test_region_ignores_every_class(ap):
    predictions = {"i": found([FAR, A], [0.9, 0.8], labels=[2, 2])}
    annotations = {"i": truth([A, FAR], labels=[2, 1], ignore=[False, True])}
    assert ap(predictions, annotations, ["a", "b"])["AP50/b"] == pytest.approx(1.0)


def test_it_is_quiet(ap, capfd, caplog):
    ap({"i": found([A], [0.9])}, {"i": truth([A])})
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.INFO]


@pytest.mark.skipif(find_spec("faster_coco_eval") is None, reason="needs faster-coco-eval")
@pytest.mark.parametrize("seed", range(20))
def test_both_backends_give_the_same_numbers(seed):
    """Many boxes of three classes, ties, repeats, ignore regions, images with over 100 boxes."""
    rng = np.random.default_rng(seed)
    predictions, annotations = {}, {}
    for number in range(12):
        n_true, n_found = rng.integers(0, 6), rng.integers(0, 180)
        corner = rng.integers(0, 40, (n_true, 2))
        true = np.concatenate([corner, corner + rng.integers(4, 20, (n_true, 2))], 1)
        near = (
            true[rng.integers(0, n_true, n_found)]
            if n_true
            else np.tile([1, 1, 9, 9], (n_found, 1))
        )
        rows = near + rng.integers(-2, 3, (n_found, 4))
        scores = rng.integers(1, 30, n_found) / 30
        annotations[f"i{number}"] = truth(
            true, rng.integers(1, 4, n_true), rng.random(n_true) < 0.2
        )
        predictions[f"i{number}"] = found(rows, scores, rng.integers(1, 4, n_found))
    data = (predictions, annotations, infos_of(annotations), ["a", "b", "c"])
    slow = coco_ap(*data, backend="pycocotools").values
    assert slow == coco_ap(*data, backend="faster_coco_eval").values == coco_ap(*data).values
    assert 0 < slow["AP75"] < slow["AP"] < slow["AP50"] < 1


@pytest.mark.parametrize(
    ("name", "prediction", "annotation", "expected"),
    [
        ("exact", found([A], [0.9]), truth([A]), 1.0),
        ("an IoU of one half counts", found([(0, 0, 10, 5)], [0.9]), truth([A]), 0.5),
        ("what is below does not", found([(0, 0, 10, 4.9)], [0.9]), truth([A]), None),
        ("nothing found", Prediction.empty(), truth([A]), None),
        ("a miss and a false one", found([A, FAR], [0.2, 0.9]), truth([A, B]), 1.0),
        # (100 x 0.8 of the first) and (100 x 1 of the second): the mean over objects.
        ("two objects", found([(0, 0, 10, 8), B], [0.9, 0.1]), truth([A, B]), 0.9),
        ("the better score takes it", found([A, (0, 0, 10, 6)], [0.5, 0.9]), truth([A]), 0.6),
        (
            "the nearest of those that are free",
            found([(0, 0, 10, 9), (0, 0, 10, 9)], [0.9, 0.8]),
            truth([A, (0, 0, 10, 6)]),
            (9 / 10 + 6 / 9) / 2,
        ),
        ("no object of a region", found([FAR], [0.9]), truth([FAR], ignore=[1]), None),
        ("the hundredth counts", found([FAR] * 99 + [A], np.linspace(1, 0.1, 100)), truth([A]), 1),
        ("no later one", found([FAR] * 100 + [A], np.linspace(1, 0.1, 101)), truth([A]), None),
    ],
)  # fmt: skip
def test_mean_iou_of_what_is_found(name, prediction, annotation, expected):
    data = {"i": prediction}, {"i": annotation}
    values = box_quality(*data, infos_of("i"), ["lesion"]).values
    assert values == {"mean_iou": expected if expected is None else pytest.approx(expected)}


def test_mean_iou_of_classes_and_images():
    predictions = {
        "i": found([(0, 0, 10, 8), A, B], [0.9, 0.8, 0.7], labels=[1, 2, 3]),
        "j": found([A], [0.3]),
    }
    annotations = {"i": truth([A, B], labels=[1, 3]), "j": truth([A])}
    values = box_quality(predictions, annotations, infos_of("ij"), ["a", "b", "c"]).values
    assert values == {
        "mean_iou": pytest.approx(0.95),
        "mean_iou/a": pytest.approx(0.9),
        "mean_iou/b": None,
        "mean_iou/c": pytest.approx(1.0),
    }


def awkward_predictions():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 400, (30, 2))
    rows = np.concatenate([corner, corner + rng.uniform(0.1, 90, (30, 2))], 1)
    return {
        "b/é": found(rows, rng.random(30), rng.integers(1, 3, 30)),
        "a": Prediction.empty(),
        "2": found([A], [1 / 3], [2]),
    }


def test_predictions_survive_a_file_bit_for_bit(tmp_path):
    predictions = awkward_predictions()
    content = to_coco_predictions(predictions, infos_of(predictions), ["x", "y"])
    write_json(tmp_path / "predictions.json", content)
    back = from_coco_predictions(read_json(tmp_path / "predictions.json"), ["x", "y"])
    assert set(back) == set(predictions)
    for image_id, prediction in predictions.items():
        for name in ("boxes", "labels", "scores"):
            here, there = getattr(prediction, name), getattr(back[image_id], name)
            assert here.dtype == there.dtype
            np.testing.assert_array_equal(here, there)


def test_form_of_predictions():
    predictions = {"b": found([(1, 2, 11, 22)], [0.5]), "a": Prediction.empty()}
    assert to_coco_predictions(predictions, infos_of(predictions), ["lesion"]) == {
        "format_version": 1,
        "images": [
            {"id": 1, "image_id": "a", "file_name": "a.png"},
            {"id": 2, "image_id": "b", "file_name": "b.png"},
        ],
        "annotations": [{"image_id": 2, "category_id": 1, "bbox": [1, 2, 10, 20], "score": 0.5}],
        "categories": [{"id": 1, "name": "lesion"}],
    }


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("newer format", {"format_version": 2}, "format_version 2"),
        ("other classes", {"categories": [{"id": 1, "name": "cat"}]}, "cat"),
        ("unknown image", {"images": []}, "COCO form"),
        ("no annotations", {"annotations": None}, "COCO form"),
        ("short box", {"annotations": [{"image_id": 1, "category_id": 1, "bbox": [1], "score": 1}]},
         "COCO form"),
    ],
)  # fmt: skip
def test_foreign_predictions_are_refused(name, change, words):
    predictions = awkward_predictions()
    content = to_coco_predictions(predictions, infos_of(predictions), ["x", "y"])
    content = json.loads(json.dumps({**content, **change}))
    with pytest.raises(DataError, match=words):
        from_coco_predictions(content, ["x", "y"])
