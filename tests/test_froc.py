"""FROC against a literal reference, its bootstrap against recomputation, its inputs and details."""

from dataclasses import replace

import numpy as np
import pytest

from med_sslal.base.types import Annotation, ImageInfo, Prediction
from med_sslal.eval import froc
from med_sslal.eval.bootstrap import patient_weights
from med_sslal.eval.froc import LIMITS, sensitivity_iou70, sensitivity_k_fps
from med_sslal.eval.metric import METRICS, evaluate, metric_keys
from med_sslal.utils.errors import ConfigError, DataError

KEYS = [f"sens_{limit:g}fp" for limit in LIMITS]


def boxes(*rows):
    return np.array(rows, dtype=np.float32).reshape(-1, 4)


def truth(rows, labels=None, ignore=None, **more):
    n = len(rows)
    return Annotation(
        boxes(*rows),
        np.array([1] * n if labels is None else labels, dtype=np.int64),
        np.array([False] * n if ignore is None else ignore, dtype=bool),
        **more,
    )


def found(rows, scores, labels=None):
    labels = [1] * len(rows) if labels is None else labels
    return Prediction(
        boxes(*rows), np.array(labels, dtype=np.int64), np.array(scores, dtype=np.float32)
    )


def infos_of(ids, group=lambda image_id: image_id):
    return {i: ImageInfo(i, group(i), f"{i}.png", (64, 64)) for i in ids}


def random_case(rng, n_images, n_classes, n_groups, max_dets=9):
    """Boxes on a coarse grid and few distinct scores: overlaps of exactly 0.5 and many ties."""

    def some_boxes(n):
        corner = rng.integers(0, 8, size=(n, 2))
        return np.concatenate([corner, corner + rng.integers(1, 6, size=(n, 2))], 1)

    predictions, annotations = {}, {}
    for i in range(n_images):
        n_gt = rng.integers(0, 5) if rng.random() < 0.8 else 0
        gt = some_boxes(n_gt)
        annotations[f"i{i}"] = Annotation(
            gt.astype(np.float32),
            rng.integers(1, n_classes + 1, n_gt),
            rng.random(n_gt) < 0.25,
        )
        n_det = rng.integers(0, max_dets + 1) if rng.random() < 0.8 else 0
        det = some_boxes(n_det)
        for row in range(n_det):  # half of the detections lie near a box
            if n_gt and rng.random() < 0.5:
                det[row] = gt[rng.integers(n_gt)] + rng.integers(0, 2, 4)
        det[:, 2:] = np.maximum(det[:, 2:], det[:, :2] + 1)
        predictions[f"i{i}"] = Prediction(
            det.astype(np.float32),
            rng.integers(1, n_classes + 1, n_det),
            (rng.integers(1, 8, n_det) / 8).astype(np.float32),
        )
    infos = infos_of(predictions, lambda image_id: f"p{int(image_id[1:]) % n_groups}")
    return predictions, annotations, infos


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def shared(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0)


def naive_sensitivity(predictions, annotations, label, overlap="iou", least=0.5):
    """Sensitivity at LIMITS, word for word as the definition reads; None without lesions."""
    detections, lesions, regions = [], [], []
    for image_id in predictions:
        p, a = predictions[image_id], annotations[image_id]
        for box, its_label, score in zip(p.boxes, p.labels, p.scores, strict=True):
            if its_label == label:
                detections.append((float(score), image_id, [float(v) for v in box]))
        for box, its_label, ignore in zip(a.boxes, a.labels, a.ignore, strict=True):
            if ignore:
                regions.append((image_id, [float(v) for v in box]))
            elif its_label == label:
                lesions.append((image_id, [float(v) for v in box]))
    if not lesions:
        return [None] * len(LIMITS)
    already_found, fps = set(), 0
    best = [0.0] * len(LIMITS)
    for threshold in sorted({score for score, _, _ in detections}, reverse=True):
        for score, image_id, box in detections:
            if score != threshold:
                continue
            hits_or_repeats = 0
            for number, (its_image, lesion) in enumerate(lesions):
                if its_image == image_id:
                    inter = shared(box, lesion)
                    whole = area(box)
                    if overlap == "iou":
                        whole += area(lesion) - inter
                    if inter / whole >= least:
                        hits_or_repeats += 1
                        already_found.add(number)
            ignored = any(
                its_image == image_id and shared(box, region) / area(box) >= 0.5
                for its_image, region in regions
            )
            if not hits_or_repeats and not ignored:
                fps += 1
        for k, limit in enumerate(LIMITS):
            if fps / len(predictions) <= limit:
                best[k] = max(best[k], len(already_found) / len(lesions))
    return best


@pytest.mark.parametrize("case", range(200))
def test_equals_the_naive_reference(case):
    rng = np.random.default_rng(case)
    n_classes = 1 + case % 3
    data = random_case(rng, n_images=1 + case % 7, n_classes=n_classes, n_groups=3)
    names = [f"c{i}" for i in range(n_classes)]
    overlap = "iobb" if case % 5 == 0 else "iou"
    values = sensitivity_k_fps(*data, names, draws=1, overlap=overlap).values
    per_class = [naive_sensitivity(*data[:2], label, overlap) for label in range(1, n_classes + 1)]
    for k, key in enumerate(KEYS):
        column = [row[k] for row in per_class]
        defined = [value for value in column if value is not None]
        assert values[key] == pytest.approx(np.mean(defined) if defined else None)
        if n_classes > 1:
            assert [values[f"{key}/{name}"] for name in names] == pytest.approx(column)
    defined = [np.mean(row[:4]) for row in per_class if row[0] is not None]
    assert values["sens_mean"] == pytest.approx(np.mean(defined) if defined else None)


@pytest.mark.parametrize("case", range(40))
def test_the_tighter_one_equals_the_reference(case):
    n_classes = 1 + case % 3
    data = random_case(np.random.default_rng(case), 1 + case % 7, n_classes, n_groups=3)
    names = [f"c{i}" for i in range(n_classes)]
    result = sensitivity_iou70(*data, names, draws=1)
    assert result.values.keys() == result.intervals.keys()
    for label, name in enumerate(names, start=1):
        expected = naive_sensitivity(*data[:2], label, least=0.7)
        suffix = f"/{name}" if n_classes > 1 else ""
        keys = [key.replace("sens_", "sens70_") + suffix for key in KEYS]
        assert [result.values[key] for key in keys] == pytest.approx(expected)
        mean = None if expected[0] is None else pytest.approx(np.mean(expected[:4]))
        assert result.values[f"sens70_mean{suffix}"] == mean


@pytest.mark.parametrize(("height", "expected"), [(7, 1.0), (6.9, 0.0)])
def test_iou_0_7_is_the_least_that_counts(height, expected):
    data = {"i": found([(0, 0, 10, height)], [0.9])}, {"i": truth([A])}
    infos = {"i": ImageInfo("i", "i", "i.png", (64, 64))}
    values = sensitivity_iou70(*data, infos, ["lesion"], draws=0).values
    assert set(values) == {f"sens70_{k}fp" for k in ("0.5", 1, 2, 4, 8, 16)} | {"sens70_mean"}
    assert values["sens70_0.5fp"] == values["sens70_mean"] == expected
    assert sensitivity_k_fps(*data, infos, ["lesion"], draws=0).values["sens_mean"] == 1.0


def test_random_cases_hold_what_they_are_meant_to():
    """Guards the test above: its cases must contain ties, exact halves, repeats and undefined."""
    seen = {"undefined": 0, "ignored": 0, "half": 0, "empty": 0, "between": 0}
    for case in range(200):
        n_classes = 1 + case % 3
        p, a, _ = random_case(np.random.default_rng(case), 1 + case % 7, n_classes, 3)
        values = naive_sensitivity(p, a, 1)
        seen["undefined"] += values[0] is None
        seen["between"] += values[0] is not None and 0 < values[0] < values[-1] < 1
        for i in p:
            seen["empty"] += not len(p[i].scores) and not len(a[i].labels)
            for box in p[i].boxes:
                for region, ignore in zip(a[i].boxes, a[i].ignore, strict=True):
                    inter = shared(box, region)
                    seen["ignored"] += bool(ignore and inter / area(box) >= 0.5)
                    seen["half"] += inter / (area(box) + area(region) - inter) == 0.5
    assert min(seen.values()) >= 5, seen


A, B, FAR = (0, 0, 10, 10), (30, 30, 40, 40), (50, 50, 60, 60)


@pytest.mark.parametrize(
    ("name", "prediction", "annotation", "at_half", "fps"),
    [
        ("found", found([A], [0.9]), truth([A, B]), 0.5, 0),
        ("false positive of equal score", found([A, FAR], [0.9, 0.9]), truth([A]), 0.0, 1),
        ("false positive below", found([A, FAR], [0.9, 0.8]), truth([A]), 1.0, 1),
        ("repeat", found([A, A, B], [0.9, 0.8, 0.7]), truth([A, B]), 1.0, 0),
        ("ignored", found([FAR, A], [0.9, 0.8]), truth([A, FAR], ignore=[0, 1]), 1.0, 0),
        (
            "half in a region",
            found([(50, 50, 70, 60), A], [0.9, 0.8]),
            truth([A, FAR], ignore=[0, 1]),
            1.0,
            0,
        ),
        (
            "less than half in a region",
            found([(50, 50, 71, 60), A], [0.9, 0.8]),
            truth([A, FAR], ignore=[0, 1]),
            0.0,
            1,
        ),
        (
            "one detection finds two",
            found([(0, 0, 10, 10)], [0.9]),
            truth([(0, 0, 10, 9), (0, 1, 10, 10)]),
            1.0,
            0,
        ),
        ("nothing found", Prediction.empty(), truth([A]), 0.0, 0),
        ("no area", found([(5, 5, 5, 9)], [0.9]), truth([A]), 0.0, 1),
    ],
)
def test_by_hand(name, prediction, annotation, at_half, fps):
    result = sensitivity_k_fps(
        {"i": prediction}, {"i": annotation}, infos_of("i"), ["lesion"], draws=1
    )
    assert result.values["sens_0.5fp"] == at_half
    assert result.details["classes"]["lesion"]["max_fps_per_image"] == fps


def test_other_class_is_a_false_positive_and_region_ignores_every_class():
    annotation = truth([A, FAR], labels=[1, 2], ignore=[False, True])
    prediction = found([A, FAR, A], [0.9, 0.8, 0.7], labels=[2, 1, 1])
    result = sensitivity_k_fps(
        {"i": prediction}, {"i": annotation}, infos_of("i"), ["a", "b"], draws=1
    )
    classes = result.details["classes"]
    assert classes["a"]["max_fps_per_image"] == 0
    assert classes["b"]["max_fps_per_image"] == 1
    assert result.values["sens_0.5fp/a"] == 1.0
    assert result.values["sens_0.5fp/b"] is None
    assert result.values["sens_mean"] == 1.0


def test_images_without_lesions_count():
    """One false positive is 1 per image alone, and 0.5 per image beside an empty image."""
    predictions = {"i": found([FAR, A], [0.9, 0.8])}
    annotations = {"i": truth([A]), "empty": Annotation.empty()}
    infos = infos_of(annotations)
    alone = sensitivity_k_fps(predictions, annotations, infos, ["lesion"], draws=1)
    both = sensitivity_k_fps(
        predictions | {"empty": Prediction.empty()}, annotations, infos, ["lesion"], draws=1
    )
    assert (alone.values["sens_0.5fp"], both.values["sens_0.5fp"]) == (0.0, 1.0)


def test_order_of_detections_does_not_matter():
    rng = np.random.default_rng(5)
    predictions, annotations, infos = random_case(rng, 12, 2, 4)
    shuffled = {}
    for image_id in reversed(list(predictions)):
        p = predictions[image_id]
        order = rng.permutation(len(p.scores))
        shuffled[image_id] = Prediction(p.boxes[order], p.labels[order], p.scores[order])
    plain = sensitivity_k_fps(predictions, annotations, infos, ["a", "b"], draws=50)
    assert sensitivity_k_fps(shuffled, annotations, infos, ["a", "b"], draws=50) == plain


@pytest.mark.parametrize("cells", [1, 40, 4000])
def test_how_much_is_held_at_once_does_not_matter(cells, monkeypatch):
    data = (*random_case(np.random.default_rng(6), 40, 2, 6), ["a", "b"])
    plain = sensitivity_k_fps(*data, draws=50)
    monkeypatch.setattr(froc, "_STRIDE", 3)
    monkeypatch.setattr(froc, "_MOST_CELLS", cells)
    assert sensitivity_k_fps(*data, draws=50) == plain


def resampled_by_hand(data, n_classes, draws, seed, value):
    """Intervals of `value(predictions, annotations)` over literally repeated patients."""
    predictions, annotations, infos = data
    patients = sorted({info.group_id for info in infos.values()})
    rows = []
    for weights in patient_weights(len(patients), draws, seed):
        drawn_p, drawn_a = {}, {}
        for patient, times in zip(patients, weights.astype(int), strict=True):
            for image_id in predictions:
                if infos[image_id].group_id == patient:
                    for copy in range(times):
                        drawn_p[f"{image_id}#{copy}"] = predictions[image_id]
                        drawn_a[f"{image_id}#{copy}"] = annotations[image_id]
        rows.append(value(drawn_p, drawn_a))
    rows = np.array(rows, dtype=float)
    return [np.percentile(column[np.isfinite(column)], [2.5, 97.5]) for column in rows.T]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_bootstrap_equals_recomputation(seed):
    data = random_case(np.random.default_rng(seed), n_images=12, n_classes=2, n_groups=5)
    names = ["a", "b"]

    def macro(predictions, annotations):
        per_class = [naive_sensitivity(predictions, annotations, label) for label in (1, 2)]
        at = np.nanmean(np.array(per_class, dtype=float), axis=0)
        return [*at, at[:4].mean()]

    result = sensitivity_k_fps(*data, names, draws=40, seed=seed)
    expected = resampled_by_hand(data, 2, 40, seed, macro)
    for key, pair in zip([*KEYS, "sens_mean"], expected, strict=True):
        assert result.intervals[key] == pytest.approx(pair)


def test_bootstrap_of_many_false_positives_equals_recomputation():
    """Thousands of false positives, so that the search runs over several strides."""
    rng = np.random.default_rng(11)
    data = random_case(rng, n_images=60, n_classes=1, n_groups=7, max_dets=150)
    data = (
        {
            i: replace(p, scores=rng.random(len(p.scores), dtype=np.float32))
            for i, p in data[0].items()
        },
        *data[1:],
    )

    def value(predictions, annotations):
        infos = infos_of(predictions)
        values = sensitivity_k_fps(predictions, annotations, infos, ["a"], draws=1).values
        return [values[key] for key in [*KEYS, "sens_mean"]]

    result = sensitivity_k_fps(*data, ["a"], draws=25, seed=3)
    assert result.details["classes"]["a"]["max_fps_per_image"] * 60 > 2500
    expected = resampled_by_hand(data, 1, 25, 3, value)
    for key, pair in zip([*KEYS, "sens_mean"], expected, strict=True):
        assert result.intervals[key] == pytest.approx(pair)


def test_intervals_enclose_repeat_and_need_two_patients():
    data = random_case(np.random.default_rng(2), n_images=40, n_classes=1, n_groups=20)
    result = sensitivity_k_fps(*data, ["a"])
    assert result.details["draws"] == 1000
    for key, (low, high) in result.intervals.items():
        assert low <= result.values[key] <= high
    low, high = result.intervals["sens_mean"]
    assert 0.02 < high - low < 0.6
    assert sensitivity_k_fps(*data, ["a"]) == result
    assert sensitivity_k_fps(*data, ["a"], seed=1).intervals != result.intervals
    one_patient = (*data[:2], infos_of(data[0], lambda image_id: "p"))
    assert set(sensitivity_k_fps(*one_patient, ["a"]).intervals.values()) == {None}
    undrawn = sensitivity_k_fps(*data, ["a"], draws=0)
    assert set(undrawn.intervals.values()) == {None}
    assert undrawn.values == result.values


def test_details_by_size_by_type_reach_and_operating_points():
    annotation = truth(
        [A, B, (0, 30, 10, 40), (30, 0, 40, 10)],
        sizes_mm=np.array([9.9, 10, 30, np.nan], dtype=np.float32),
        subtypes=("lung", "lung", "liver", ""),
    )
    prediction = found([A, FAR, B], [0.9, 0.8, 0.7])
    details = sensitivity_k_fps(
        {"i": prediction}, {"i": annotation}, infos_of("i"), ["lesion"], draws=1
    ).details
    # At 0.5 false positives per image (none here) only A is found; from 1 on B too.
    assert {k: (v["n_lesions"], v["sens_0.5fp"], v["sens_1fp"]) for k, v in (
        details["by_size"] | details["by_type"]
    ).items()} == {
        "<10 mm": (1, 1.0, 1.0),
        "10-30 mm": (2, 0.0, 0.5),
        "lung": (2, 0.5, 1.0),
        "liver": (1, 0.0, 0.0),
    }  # fmt: skip
    lesion = details["classes"]["lesion"]
    assert lesion["max_fps_per_image"] == 1
    assert lesion["not_reached"] == [2.0, 4.0, 8.0, 16.0]
    assert lesion["score_above"]["sens_0.5fp"] == pytest.approx(0.8)
    assert lesion["score_above"]["sens_1fp"] is None
    curve = lesion["curve"]
    assert curve["fps_per_image"] == [0.0, 1.0, 1.0]
    assert curve["sensitivity"] == [0.25, 0.25, 0.5]


def test_curve_is_short_rising_and_holds_the_reported_points():
    rng = np.random.default_rng(0)
    predictions, annotations = {}, {}
    for i in range(400):
        corners = rng.integers(0, 500, size=(8, 2)).astype(np.float32)
        rows = np.concatenate([corners, corners + 20], 1)
        annotations[f"i{i}"] = truth(rows[:4])
        predictions[f"i{i}"] = found(rows + rng.integers(-3, 3, rows.shape), rng.random(8))
    result = sensitivity_k_fps(predictions, annotations, infos_of(predictions), ["a"], draws=1)
    curve = result.details["classes"]["a"]["curve"]
    fps, sens = np.array(curve["fps_per_image"]), np.array(curve["sensitivity"])
    assert 100 < len(fps) == len(sens) == len(curve["score"]) <= 500
    assert (np.diff(fps) >= 0).all()
    assert (np.diff(sens) >= 0).all()
    for limit, key in zip(LIMITS, KEYS, strict=True):
        assert sens[fps <= limit][-1] == result.values[key]


@pytest.mark.parametrize(
    ("name", "prediction", "words"),
    [
        ("NaN score", found([A], [np.nan]), "image i: a score to evaluate must be finite"),
        ("inf score", found([A], [np.inf]), "finite"),
        ("NaN box", found([(0, 0, np.nan, 1)], [0.5]), "a box to evaluate must be finite"),
        ("turned box", found([(9, 0, 3, 1)], [0.5]), "xyxy"),
        ("background", found([A], [0.5], labels=[0]), "a label to evaluate must be in 1..1"),
        ("class too many", found([A], [0.5], labels=[2]), "in 1..1, found 2"),
        ("shape", Prediction(boxes(A), np.ones(2, np.int64), np.ones(2)), "must be \\[N, 4\\]"),
    ],
)
@pytest.mark.parametrize("metric", METRICS)
def test_bad_predictions_are_refused(metric, name, prediction, words):
    with pytest.raises(DataError, match=words):
        evaluate([metric], {"i": prediction}, {"i": truth([A])}, infos_of("i"), ["lesion"])


def test_no_image_and_missing_annotation_are_refused():
    with pytest.raises(DataError, match="no image to evaluate"):
        sensitivity_k_fps({}, {}, {}, ["lesion"])
    with pytest.raises(DataError, match=r"1 evaluated image.* no annotation: i"):
        sensitivity_k_fps({"i": Prediction.empty()}, {}, infos_of("i"), ["lesion"])
    with pytest.raises(DataError, match="no info: i"):
        sensitivity_k_fps({"i": Prediction.empty()}, {"i": truth([A])}, {}, ["lesion"])
    with pytest.raises(DataError, match=r"in 1..1, found 2"):
        wrong = truth([A], labels=[2])
        sensitivity_k_fps({"i": Prediction.empty()}, {"i": wrong}, infos_of("i"), ["lesion"])


@pytest.mark.parametrize("names", [["lesion"], ["a", "b", "c"]], ids=["one", "three"])
def test_metric_keys_are_those_that_evaluate_gives(names):
    data = random_case(np.random.default_rng(1), 5, len(names), 3)
    result = evaluate(list(METRICS), *data, names, draws=5)
    assert metric_keys(list(METRICS), names) == set(result["values"])
    assert {"sens_mean", "sens_0.5fp", "sens_16fp", "AP50", "AP"} <= set(result["values"])
    assert ("AP50/b" in result["values"]) == (len(names) > 1)
    assert set(result["details"]) == set(METRICS)


def test_unknown_metric_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'sensitivity_k_fps'"):
        metric_keys(["sensitivity_k_fp"], ["lesion"])


def test_more_pairs_than_fit_at_once():
    """One image with 400 lesions and 1500 detections: 600,000 pairs, compared in two parts."""
    grid = np.stack(np.meshgrid(np.arange(20), np.arange(20)), -1).reshape(-1, 2) * 40.0
    lesions = np.concatenate([grid, grid + 20], 1)
    background = np.tile(lesions + 1000, (3, 1))[:1100]
    scores = np.concatenate([np.linspace(1, 0.5, 400), np.full(1100, 0.75)])
    prediction = found(np.concatenate([lesions, background]), scores)
    result = sensitivity_k_fps(
        {"i": prediction}, {"i": truth(lesions)}, infos_of("i"), ["lesion"], draws=1
    )
    assert result.values["sens_16fp"] == 0.5
    assert result.details["classes"]["lesion"]["max_fps_per_image"] == 1100
