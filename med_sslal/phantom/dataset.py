"""DeepLesionPhantom: the stand-in for DeepLesion, made on first use."""

import logging
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Interval

from med_sslal.data.bad_samples import OnBadSample
from med_sslal.data.deeplesion import DatasetType, DeepLesion, Distance, LesionType
from med_sslal.data.pictures import Window
from med_sslal.data.slices import SliceMode
from med_sslal.data.splits import EvalSplit
from med_sslal.logger.progress import Progress
from med_sslal.phantom import GENERATOR_VERSION, generate
from med_sslal.phantom.writer import describe, is_complete

logger = logging.getLogger(__name__)


class DeepLesionPhantom(DeepLesion):
    """Synthetic CT crops in DeepLesion's own files, read by DeepLesion's own loader.

    No pixel comes from a person; everything made from it must say "phantom".
    """

    note: str | None = "phantom: synthetic images, no patient data"

    def __init__(
        self,
        *,
        root: str = "data/phantom",
        patients: Annotated[int, Ge(3)] = 120,
        size: Annotated[int, Interval(ge=64, le=512)] = 160,
        seed: int = 0,
        lesion_type: LesionType = "all",
        dataset_type: DatasetType = "non-specified",
        eval_split: EvalSplit = 0.2,
        split_seed: int = 0,
        slice_mode: SliceMode = "interpolate",
        slice_step_mm: Distance = 2.0,
        window: Window = (-1024.0, 3071.0),
        cache_dir: str | None = None,
        on_bad_sample: OnBadSample = "error",
    ) -> None:
        """Make the phantom where it is not there yet, then read it as DeepLesion.

        Processes that start at once may all make it; the first to finish wins.

        Args:
            root: Folder that holds phantoms, one below the other, named by what made them.
            patients: Number of patients, about 6 images each; at least 3.
            size: Rows and columns of an image, 64 to 512 pixels of 0.8 mm.
            seed: Seed of the phantom's bytes, apart from the run's seed.
            lesion_type: Lesions that count; all, or one coarse type.
            dataset_type: non-specified = split by eval_split; official = the phantom's own
                Train_Val_Test (70, 15 and 15 in a hundred patients).
            eval_split: Share of patients held out, half for validation and half for test.
            split_seed: Seed of that split.
            slice_mode: The outer two channels: interpolate, raw or repeat.
            slice_step_mm: Distance of the outer channels in mm (interpolate). Slices reach
                2 mm to either side.
            window: Lowest and highest HU of the pixels, mapped to 0 and 1.
            cache_dir: Folder for decoded slices; null = none.
            on_bad_sample: Damaged files: error = list them all and stop; skip = log each.

        Raises:
            ConfigError: An argument is wrong.
            DataError: The phantom's files were changed or damaged.
            UserError: The folder cannot be written.
        """
        folder = Path(root).expanduser() / (
            f"v{GENERATOR_VERSION}_patients{patients}_size{size}_seed{seed}"
        )
        if not is_complete(folder, describe(patients=patients, size=size, seed=seed)):
            _make(folder, patients, size, seed)
        logger.info("phantom: synthetic CT in %s; say 'phantom' beside every result", folder)
        super().__init__(
            str(folder),
            lesion_type=lesion_type,
            dataset_type=dataset_type,
            eval_split=eval_split,
            split_seed=split_seed,
            slice_mode=slice_mode,
            slice_step_mm=slice_step_mm,
            window=window,
            cache_dir=cache_dir,
            on_bad_sample=on_bad_sample,
        )


def _make(folder: Path, patients: int, size: int, seed: int) -> None:
    """Generate, with its progress shown."""
    logger.info("making a phantom of %d patients in %s (once)", patients, folder)
    with Progress("phantom", patients) as progress:
        generate(
            folder,
            patients=patients,
            size=size,
            seed=seed,
            progress=lambda done, total: progress.advance(),
        )
