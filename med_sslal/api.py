"""The program from Python: a trained run, its detector on new images, and choices from its record.

run = med_sslal.load("latest")
found = run.predict(["a.png", "b.png"])
chosen = med_sslal.select(run.record, "entropy", budget=10)
"""

import logging
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from med_sslal.al.record import PoolRecord
from med_sslal.al.select import select as select
from med_sslal.base.base_dataset import Images
from med_sslal.base.types import Batch, ImageInfo, Prediction, UnlabelledSample
from med_sslal.cli.build import build_dataset
from med_sslal.cli.origin import find_record
from med_sslal.cli.trained import load_trained
from med_sslal.data.pictures import picture_size, read_picture
from med_sslal.eval.drawing import above
from med_sslal.model.inference import stream
from med_sslal.trainer.run_folder import LATEST
from med_sslal.utils.arithmetic import arithmetic
from med_sslal.utils.errors import DataError

logger = logging.getLogger(__name__)


class Run:
    """A trained run with its best model.

    Args:
        path: A run folder (its last finished cycle), a checkpoint, or `latest`, the newest run
            below `exp_results` in the working folder.
        device: "cpu" or "cuda"; None is what the run's config says.

    Raises:
        UserError: There is no such run or device, or the checkpoint is damaged.

    Attributes:
        path: The checkpoint.
        config: The run's config, resolved.
        class_names: Names without background; label i is `class_names[i - 1]`.
        model: The detector, in eval mode.
    """

    def __init__(self, path: str | Path = LATEST, *, device: str | None = None) -> None:
        self._trained = trained = load_trained(str(path), device)
        for complaint in trained.complaints:
            logger.warning("%s", complaint)
        self.path, self.config = trained.path, trained.config.resolved
        self.class_names, self.model = trained.class_names, trained.model

    @cached_property
    def images(self) -> Images:
        """The images that the run was made on; none of their labels.

        Raises:
            UserError: The data is not where the config says.
        """
        return build_dataset(self._trained.config).images

    @cached_property
    def record(self) -> PoolRecord:
        """What the run's newest pass over its pool saw.

        Raises:
            DataError: None is kept (see `trainer.keep_records`).
        """
        return find_record(str(self.path.parents[1])).open()

    def predict(
        self, images: Sequence[np.ndarray | str | Path], *, min_score: float = 0.05
    ) -> list[Prediction]:
        """Detections on images.

        Args:
            images: Arrays [H, W] or [H, W, 3], RGB, uint8 or in [0, 1] (as `images.read` gives
                them); or, for a run on pictures, files: PNG, JPEG or TIFF, of 16 bits where the
                run's data has a window.
            min_score: Detections of a lower score are left out.

        Returns:
            For each image its boxes [N, 4], xyxy in ORIGINAL pixels, labels [N] and scores [N],
            best first.

        Raises:
            DataError: An image cannot be read or is no such array.
        """
        if isinstance(images, str | Path | np.ndarray):
            raise DataError(f"images must be a list of images, found one {type(images).__name__}")
        if not 0 <= min_score <= 1:
            raise DataError(f"min_score must be from 0 to 1, found {min_score}")
        batches = self._batches(iter(images))
        compute = self._trained.compute
        outputs = stream(self.model, batches, compute.devices.main, compute.dtype)
        # What is deterministic must be set before CUDA computes: that is the caller's to do.
        with arithmetic(deterministic=False):
            found = [each.prediction() for _, output in outputs for each in output.detections]
        return [above(each, min_score) for each in found]

    def _batches(self, images: Iterator[np.ndarray | str | Path]) -> Iterator[Batch]:
        """Images in the model's frame, as many at a time as in the run."""
        resize, number = self._trained.resize, 0
        while part := [self._read(image) for image in islice(images, self.config["batch_size"])]:
            samples = []
            for pixels in part:
                size = (pixels.shape[0], pixels.shape[1])
                info = ImageInfo(f"{number}", f"{number}", "", size)
                image, _, frame = resize(pixels, None, info, 0)
                samples.append(UnlabelledSample(image, frame))
                number += 1
            yield Batch.collate(samples)

    def _read(self, image: np.ndarray | str | Path) -> np.ndarray:
        """float32 [H, W, 3] in [0, 1] of an array or a file."""
        if isinstance(image, np.ndarray):
            return _unit(image)
        path, window = Path(image), self._trained.window
        return read_picture(path, picture_size(path, window), window)


load = Run


def _unit(array: np.ndarray) -> np.ndarray:
    """float32 [H, W, 3] in [0, 1] of an array given by a user."""
    scale: Any = 255 if array.dtype == np.uint8 else 1
    pixels = np.asarray(array / np.float32(scale), dtype=np.float32)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    fits = pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size > 0
    if not fits or not (pixels.min() >= 0 and pixels.max() <= 1):
        raise DataError(
            f"an image must be [H, W] or [H, W, 3], uint8 or in [0, 1]; found {array.dtype} "
            f"{list(array.shape)}" + (f" from {array.min()} to {array.max()}" if array.size else "")
        )
    return pixels
