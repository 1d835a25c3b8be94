"""DeepLesionPhantom: the stand-in for DeepLesion, made on first use."""

import logging
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Interval

from med_sslal.data.deeplesion import DeepLesion
from med_sslal.logger.progress import Progress
from med_sslal.phantom.writer import GENERATOR_VERSION, describe, generate, is_complete
from med_sslal.utils.errors import ConfigError

logger = logging.getLogger(__name__)


def make(out: Path, *, patients: int, **others: Any) -> None:
    """Write a phantom (see `generate`), with its progress shown."""
    with Progress("phantom", patients) as progress:
        generate(out, patients=patients, **others, progress=progress.advance)


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
        hidden_fraction: Annotated[float, Interval(ge=0, lt=0.9)] = 0.0,
        **loading: Any,
    ) -> None:
        """Make the phantom where it is not there yet, then read it as DeepLesion.

        Processes that start at once may all make it; the first to finish wins. UserError where the
        folder cannot be written.

        Args:
            root: Folder that holds phantoms, one below the other, named by what made them.
            patients: Number of patients, about 6 images each; at least 3.
            size: Rows and columns of an image, 64 to 512 pixels of 0.8 mm.
            seed: Seed of the phantom's bytes, apart from the run's seed.
            hidden_fraction: Expected share of lesions without a mark, as DeepLesion has many.
            **loading: As of DeepLesion; the official split is 70, 15 and 15 in a hundred patients.
        """
        drawn: dict[str, Any] = {"size": size, "seed": seed, "hidden_fraction": hidden_fraction}
        name = f"v{GENERATOR_VERSION}_patients{patients}_size{size}_seed{seed}"
        name += f"_hidden{hidden_fraction:g}" if hidden_fraction else ""
        folder = Path(root).expanduser() / name
        text = describe(patients=patients, **drawn)
        if not is_complete(folder, text):
            logger.info("making a phantom of %d patients in %s (once)", patients, folder)
            try:
                make(folder, patients=patients, **drawn)
            except ConfigError:
                # Another process may have finished it since the look.
                if not is_complete(folder, text):
                    raise
        logger.info("phantom: synthetic CT in %s; say 'phantom' beside every result", folder)
        super().__init__(str(folder), **loading)
