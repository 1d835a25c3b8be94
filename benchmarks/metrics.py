"""COCO and FROC evaluation against the plain loops that one would write."""

import contextlib
import io
from dataclasses import dataclass

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.ops import box_iou

from benchmarks.options import Options
from benchmarks.timing import Comparison, Side, compare
from med_sslal.base.types import Annotation, ImageInfo, Prediction
from med_sslal.eval.coco_eval import coco_ap
from med_sslal.eval.froc import LIMITS, sensitivity_k_fps

_DETECTIONS, _SIDE, _IMAGES_PER_PATIENT = 100, 512, 7
_NAMES = ("lesion",)
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Split:
    """Random boxes and detections, some of which meet: what evaluation is given."""

    predictions: dict[str, Prediction]
    annotations: dict[str, Annotation]
    infos: dict[str, ImageInfo]


def random_split(n_images: int, seed: int = 0) -> Split:
    """`n_images` with 0 to 3 boxes and 100 detections each."""
    generator = np.random.default_rng(seed)
    split = Split({}, {}, {})
    for number in range(n_images):
        n_true = int(generator.integers(0, 4))
        rows = _boxes(generator, n_true + _DETECTIONS)
        true, found = rows[:n_true], rows[n_true:]
        near = true + generator.normal(0, 2, true.shape).astype(np.float32)
        found[:n_true] = np.where((near[:, 2:] > near[:, :2]).all(1, keepdims=True), near, true)
        name = f"{number:06d}"
        split.predictions[name] = Prediction(
            found,
            np.ones(_DETECTIONS, dtype=np.int64),
            generator.random(_DETECTIONS, dtype=np.float32),
        )
        split.annotations[name] = Annotation(
            true, np.ones(n_true, dtype=np.int64), np.zeros(n_true, dtype=bool)
        )
        patient = f"{number // _IMAGES_PER_PATIENT:05d}"
        split.infos[name] = ImageInfo(name, patient, f"{name}.png", (_SIDE, _SIDE))
    return split


def coco_comparison(options: Options) -> Comparison:
    """Pycocotools as its own example calls it, against ours; a tenth of the images."""
    split = random_split(max(1, options.eval_images // 10))
    n = len(split.infos)
    return compare(
        f"COCO evaluation, {n} images x {_DETECTIONS} detections",
        Side(lambda: plain_ap50(split), n),
        Side(lambda: coco_ap(split.predictions, split.annotations, split.infos, _NAMES), n),
        options.pairs,
        _CPU,
    )


def froc_comparisons(options: Options) -> list[Comparison]:
    """The plain loop against ours, without intervals; and ours with them on all images."""
    large = random_split(options.eval_images)
    small = random_split(max(1, options.eval_images // 10))
    n = len(small.infos)

    def ours(split: Split, draws: int) -> None:
        sensitivity_k_fps(split.predictions, split.annotations, split.infos, _NAMES, draws=draws)

    whole = Side(lambda: ours(large, 1000), len(large.infos))
    without = Side(lambda: ours(large, 0), len(large.infos))
    return [
        compare(
            f"FROC, {n} images x {_DETECTIONS} detections",
            Side(lambda: plain_sensitivity(small), n),
            Side(lambda: ours(small, 0), n),
            options.pairs,
            _CPU,
        ),
        compare(
            f"FROC, {len(large.infos)} images x {_DETECTIONS} detections",
            without,
            whole,
            min(options.pairs, 5),
            _CPU,
            names=("no intervals", "1000 draws"),
        ),
    ]


def plain_ap50(split: Split) -> float:
    """AP50 by pycocotools."""
    truth, found = COCO(), COCO()
    images = [{"id": number} for number in range(1, len(split.infos) + 1)]
    shared = {"images": images, "categories": [{"id": 1, "name": _NAMES[0]}]}
    rows: list[list[dict]] = [[], []]
    for number, name in enumerate(split.infos, start=1):
        annotation, prediction = split.annotations[name], split.predictions[name]
        for part, boxes, scores in (
            (rows[0], annotation.boxes, [1.0] * len(annotation.boxes)),
            (rows[1], prediction.boxes, prediction.scores.tolist()),
        ):
            for (x1, y1, x2, y2), score in zip(
                boxes.astype(np.float64).tolist(), scores, strict=True
            ):
                width, height = x2 - x1, y2 - y1
                part.append(
                    {
                        "id": len(part) + 1,
                        "image_id": number,
                        "category_id": 1,
                        "bbox": [x1, y1, width, height],
                        "area": width * height,
                        "iscrowd": 0,
                        "score": score,
                    }
                )
    with contextlib.redirect_stdout(io.StringIO()):
        for coco, part in zip((truth, found), rows, strict=True):
            coco.dataset = {**shared, "annotations": part}
            coco.createIndex()
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[1])


def plain_sensitivity(split: Split) -> dict[str, float]:
    """`sens_0.5fp` and so on, image by image and detection by detection."""
    best: list[float] = []
    false: list[float] = []
    n_lesions = 0
    for name, prediction in split.predictions.items():
        lesions = torch.from_numpy(split.annotations[name].boxes)
        found = [0.0] * len(lesions)
        n_lesions += len(lesions)
        overlaps = box_iou(torch.from_numpy(prediction.boxes), lesions).tolist()
        for score, row in zip(prediction.scores.tolist(), overlaps, strict=True):
            hits = [index for index, overlap in enumerate(row) if overlap >= 0.5]
            for index in hits:
                found[index] = max(found[index], score)
            if not hits:
                false.append(score)
        best += [score for score in found if score > 0]
    false.sort(reverse=True)
    values = {}
    for limit in LIMITS:
        allowed = int(limit * len(split.infos))
        floor = false[allowed] if allowed < len(false) else -1.0
        values[f"sens_{limit:g}fp"] = sum(score > floor for score in best) / n_lesions
    return values


def _boxes(generator: np.random.Generator, n: int) -> np.ndarray:
    """Boxes of 8 to 60 pixels a side: float32 [n, 4]."""
    corner = generator.uniform(0, _SIDE - 60, (n, 2))
    size = generator.uniform(8, 60, (n, 2))
    return np.concatenate([corner, corner + size], 1).astype(np.float32)
