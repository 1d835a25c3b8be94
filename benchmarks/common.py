"""What the benchmarks of selection share: made-up detections, and what a stage takes."""

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch

from med_sslal.base.types import Detections

T = TypeVar("T")

EMBEDDING, ROI_FEATURES, PROPOSALS = 512, 256, 20
SAMPLES_PER_SECOND = 50
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Usage(Generic[T]):
    """What a call took, and what it returned.

    Attributes:
        value: What it returned.
        peak: MiB of this process at most, with the mapped pages of files.
        own: MiB without them at most, sampled: pages that the system cannot drop.
    """

    value: T
    peak: float
    own: float


def detections(generator: np.random.Generator, n_boxes: int, n_classes: int) -> Detections:
    """One image of 512 x 512 pixels."""

    def uniform(*shape: int) -> torch.Tensor:
        return torch.from_numpy(generator.random(shape, dtype=np.float32))

    def boxes(rows: int) -> torch.Tensor:
        corners = uniform(rows, 2) * 450
        return torch.cat([corners, corners + 8 + uniform(rows, 2) * 54], dim=1)

    logits = torch.from_numpy(generator.normal(size=(n_boxes, n_classes + 1)).astype(np.float32))
    probs = torch.softmax(2 * logits, dim=1)
    scores, labels = probs[:, 1:].max(dim=1)
    found = boxes(n_boxes)
    return Detections(
        boxes=found,
        labels=labels + 1,
        scores=scores.clamp(min=0.05),
        class_probs=probs,
        proposals=found + 4 * uniform(n_boxes, 4),
        embedding=uniform(EMBEDDING),
        top_proposals=boxes(PROPOSALS),
        top_objectness=uniform(PROPOSALS),
        roi_features=uniform(n_boxes, ROI_FEATURES),
        refined_boxes=found + 4 * uniform(n_boxes, 4),
    )


def measured(name: str, run: Callable[[], T]) -> Usage[T]:
    """Run once and print what it took; the peaks are those of this call."""
    Path("/proc/self/clear_refs").write_text("5")  # Resets the peak.
    own = [_mebibytes("RssAnon")]
    done = threading.Event()

    def sample() -> None:
        while not done.wait(1 / SAMPLES_PER_SECOND):
            own.append(_mebibytes("RssAnon"))

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    cpu, started = time.process_time(), time.perf_counter()
    try:
        value = run()
    finally:
        wall, cpu = time.perf_counter() - started, time.process_time() - cpu
        done.set()
        sampler.join()
    peak, most = _mebibytes("VmHWM"), max(*own, _mebibytes("RssAnon"))
    sys.stdout.write(f"{name:<54}{wall:8.2f} s {cpu:8.2f} s CPU {peak:7.0f} MiB {most:7.0f} MiB\n")
    sys.stdout.flush()
    return Usage(value, peak, most)


def _mebibytes(entry: str) -> float:
    """An entry of this process's status in MiB."""
    return int(_STATUS.read_text().split(f"{entry}:")[1].split()[0]) / 1024
