"""A DataLoader whose order and errors do not depend on its workers."""

import signal
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from med_sslal.base.types import Batch
from med_sslal.utils.errors import DataError


@dataclass(frozen=True)
class BadSample:
    """A sample that could not be loaded; it carries the sentence to the main process whole."""

    message: str
    image_id: str = ""


def collate(samples: Sequence[Any]) -> Batch | BadSample:
    """Stack samples, or hand on the sentences of those that could not be loaded."""
    bad = [sample.message for sample in samples if isinstance(sample, BadSample)]
    return BadSample("; ".join(bad)) if bad else Batch.collate(samples)


def collate_readable(samples: Sequence[Any]) -> tuple[Batch | None, list[BadSample]]:
    """Stack the samples that could be loaded, None where there is none; and the others."""
    good = [sample for sample in samples if not isinstance(sample, BadSample)]
    bad = [sample for sample in samples if isinstance(sample, BadSample)]
    return Batch.collate(good) if good else None, bad


class BaseDataLoader(DataLoader):
    """Batches of samples; a bad file raises DataError in the main process, naming the file.

    A view (the map-style dataset of Sample or UnlabelledSample given here) returns a BadSample
    instead of raising DataError, because an exception from a worker arrives wrapped in a traceback.
    The workers stay alive between epochs, and each uses one thread; 0 loads in the main process.
    """

    def __init__(
        self,
        view: Dataset,
        *,
        batch_sampler: Iterable[Sequence[Any]],
        n_workers: int = 0,
        pin_memory: bool = False,
        collate_fn: Callable[[Sequence[Any]], Any] = collate,
    ) -> None:
        super().__init__(
            view,
            batch_sampler=batch_sampler,  # type: ignore[arg-type]
            num_workers=n_workers,
            collate_fn=collate_fn,
            pin_memory=pin_memory,
            persistent_workers=n_workers > 0,
            worker_init_fn=start_worker if n_workers else None,
            # The stock loader draws its workers' base seed from the global generator.
            generator=torch.Generator().manual_seed(0),
        )

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            if isinstance(batch, BadSample):
                raise DataError(batch.message)
            yield batch


def start_worker(worker: int) -> None:
    """Keep a worker process to one thread, the cores belong to the model; and alive.

    Ctrl-C and a cluster's SIGTERM reach every process of a job. The main process ends its batch and
    saves, for which it needs its workers; they end with it, however it ends.
    """
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
