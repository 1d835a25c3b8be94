"""Criteria and second stages on a made-up record: seconds and memory.

    python -m benchmarks.selection [--images 20000] [--detections 20] [--budget 1000] [--classes 3]

First every criterion of one pass, then every second stage: with the default candidates (2 x budget)
and, where it reads embeddings only, over the whole pool as an arm of its own. Then
`cald_consistency` against a loop over boxes, and `class_conditional_similarity` of 400 images of
100 detections. Seconds are wall and CPU time. Memory is the process's peak (Linux), with the pages
of the record that were touched, and without them; both hold Python and torch (printed first).
"""

import argparse
import sys
import tempfile
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.stats import entropy

from benchmarks.common import detections, measured
from med_sslal.al.al_criteria import CRITERIA, SELECTORS
from med_sslal.al.criteria.base import confidence
from med_sslal.al.criteria.cald_consistency import AUGMENTATIONS, CaldConsistency
from med_sslal.al.record import OPTIONAL_COLUMNS, PLAIN, PoolRecord, RecordHeader
from med_sslal.al.record_writer import RecordWriter
from med_sslal.base.types import ImageInfo
from med_sslal.utils.boxes import paired_iou

LABELLED = 500
ONLY_EMBEDDINGS = ("k_means_diversity", "k_means_plus_plus", "k_center")


def write_record(
    path: Path,
    n_images: int,
    n_boxes: int,
    n_classes: int,
    *,
    views: Iterable[str] = (),
    columns: Sequence[str] = tuple(OPTIONAL_COLUMNS),
) -> PoolRecord:
    """A record of random images; the boxes of a view are those of the image, shifted."""
    generator = np.random.default_rng(0)
    names = tuple(f"class{number}" for number in range(n_classes))
    header = RecordHeader(
        "data",
        "model",
        "config",
        names,
        class_counts=dict.fromkeys(names, 10),
        class_difficulty=dict.fromkeys(names, 0.5),
    )
    with RecordWriter(path, header, views=tuple(views), columns=columns) as writer:
        for number in range(n_images + LABELLED):
            name = f"image{number:06d}"
            found = detections(generator, n_boxes, n_classes)
            info = ImageInfo(name, name, f"{name}.png", (512, 512))
            if number >= n_images:
                writer.add_labelled(info, found)
                continue
            others = {}
            for view in views:
                other = detections(generator, n_boxes, n_classes)
                other.boxes.copy_(found.boxes + 6 * torch.rand(n_boxes, 4))
                others[view] = other
            writer.add(info, found, others)
        return writer.close()


def criteria_and_selectors(folder: Path, args: argparse.Namespace) -> None:
    record = write_record(folder / "pool", args.images, args.detections, args.classes)
    measured("nothing (Python, torch)", lambda: None)
    values: dict[str, np.ndarray] = {}

    def rate(name: str) -> None:
        values[name] = CRITERIA[name]()(record, 1)

    def select(name: str, candidates: np.ndarray) -> float:
        title = f"{name}, {args.budget} of {len(candidates)}"
        ranked = {"entropy": values["entropy"], **values}
        selector = SELECTORS[name]()
        return measured(
            title, lambda: selector.select(record, candidates, ranked, args.budget, 1)
        ).seconds

    one_pass = [name for name, cls in CRITERIA.items() if set(cls().views) <= {PLAIN}]
    total = sum(measured(name, partial(rate, name)).seconds for name in one_pass)
    ranking = np.argsort(-values["entropy"], kind="stable")
    total += sum(select(name, ranking[: 2 * args.budget]) for name in SELECTORS)
    sys.stdout.write(f"{'all of these':<54}{total:8.2f} s\n")
    for name in ONLY_EMBEDDINGS:
        select(name, ranking)


def cald_by_loop(record: PoolRecord, beta: float = 1.3) -> list[float]:
    """CALD's value of every image, with a loop over images, views and boxes."""
    plain, values = record.section(PLAIN), []
    others = [record.section(view) for view in AUGMENTATIONS]
    sure_of = [confidence(section) for section in (plain, *others)]
    for image in range(len(plain)):
        total = 0.0
        for other, sure_there in zip(others, sure_of[1:], strict=True):
            rows = slice(other.offsets[image], other.offsets[image + 1])
            boxes, probs, sure = other.boxes[rows], other.class_probs[rows], sure_there[rows]
            gaps = []
            for box in range(plain.offsets[image], plain.offsets[image + 1]):
                iou = paired_iou(np.repeat(plain.boxes[box][None], len(boxes), axis=0), boxes)
                best = int(iou.argmax())
                agreement = 0.0
                if iou[best] > 0:
                    p, q = plain.class_probs[box], probs[best]
                    middle = (p + q) / 2
                    js = (entropy(p, middle, base=2) + entropy(q, middle, base=2)) / 2
                    agreement = (1 - js) * (sure_of[0][box] + sure[best]) / 2
                gaps.append(abs(iou[best] + agreement - beta))
            total += min(gaps)
        values.append(-total / len(AUGMENTATIONS))
    return values


def cald(folder: Path, n_images: int, n_boxes: int, n_classes: int) -> None:
    record = write_record(
        folder / "cald", n_images, n_boxes, n_classes, views=AUGMENTATIONS, columns=()
    )
    own = measured(f"cald_consistency, {n_images} images", lambda: CaldConsistency()(record, 1))
    loop = measured("the same by a loop over boxes", lambda: np.array(cald_by_loop(record)))
    largest = np.abs(own.value - loop.value).max()
    ratio = loop.seconds / own.seconds
    sys.stdout.write(f"loop / ours = {ratio:.0f}, largest difference {largest:.1e}\n")


def similarity(folder: Path, n_classes: int) -> None:
    record = write_record(folder / f"similarity{n_classes}", 400, 100, n_classes)
    selector = SELECTORS["class_conditional_similarity"]()
    measured(
        f"class_conditional_similarity, 400 x 100, {n_classes} classes",
        lambda: selector.select(record, np.arange(400), {}, 100, 1),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--detections", type=int, default=20)
    parser.add_argument("--budget", type=int, default=1000)
    parser.add_argument("--classes", type=int, default=3)
    args = parser.parse_args()
    sys.stdout.write(f"{torch.get_num_threads()} threads, NumPy {np.__version__}\n")
    with tempfile.TemporaryDirectory() as name:
        criteria_and_selectors(Path(name), args)
        cald(Path(name), 200, args.detections, args.classes)
        for n_classes in (80, 10):
            similarity(Path(name), n_classes)


if __name__ == "__main__":
    main()
