"""TensorBoard: scalars and pictures."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np


class TensorboardWriter:
    """Writes to a file in a folder from the first value on; a disabled one does nothing at all."""

    def __init__(self, folder: Path, *, enabled: bool = True) -> None:
        self._folder, self._enabled = folder, enabled
        self._purge_step: int | None = None

    def hide_from(self, step: int) -> None:
        """Hide what an interrupted run wrote from `step` on; call it before the first value."""
        self._purge_step = step

    @cached_property
    def _writer(self) -> Any:
        # Imported here: TensorBoard takes a second to load, and many runs do without it.
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self._folder), purge_step=self._purge_step)

    def __enter__(self) -> "TensorboardWriter":
        return self

    def __exit__(self, *error: object) -> None:
        if "_writer" in vars(self):
            self._writer.close()

    def scalars(self, values: Mapping[str, float | None], step: int) -> None:
        """Write every value that is defined."""
        for name, value in values.items():
            if self._enabled and value is not None:
                self._writer.add_scalar(name, value, step)

    def image(self, name: str, picture: np.ndarray, step: int) -> None:
        """Write a uint8 [H, W, 3] picture."""
        if self._enabled:
            self._writer.add_image(name, picture, step, dataformats="HWC")
