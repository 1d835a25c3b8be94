"""What a reader may look at beside an image: it in other windows, and the slices around it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from med_sslal.al.restrict import slice_positions
from med_sslal.data.pictures import PictureImages, Window
from med_sslal.utils.errors import ConfigError


@dataclass(frozen=True)
class Beside:
    """What of an image there shall be besides its copy."""

    windows: Sequence[Window] = ()  # of its values: HU in CT
    neighbours: int = 0  # slices of its series before it, and as many after it

    def check(self, images: PictureImages) -> None:
        """Refuse what these images do not have, with a ConfigError."""
        if self.windows and images.window is None and not images.frames:
            raise ConfigError(
                "oracle.args.windows: pictures of 8 bits have no values but those that are seen: "
                "leave it out"
            )
        if self.neighbours and not slice_positions(images.infos):
            raise ConfigError(
                "oracle.args.neighbours: no image has a place in a series, which DICOM tells: "
                "leave it out"
            )


class PicturesBeside:
    """What there is to look at beside the images of a data set."""

    def __init__(self, beside: Beside, images: PictureImages) -> None:
        self._images, self._positions = images, slice_positions(images.infos)
        self._windows = {
            f"window_{low:g}_{high:g}": images.windowed((low, high)) for low, high in beside.windows
        }
        self._at = {place: image_id for image_id, place in self._positions.items()}
        own = range(-beside.neighbours, beside.neighbours + 1)
        self._offsets = [offset for offset in own if offset]

    def of(self, image_id: str) -> Iterator[tuple[str, np.ndarray]]:
        """Names, without an ending, and pictures as of `Images.picture`.

        A slice that is not there is left out. DataError where one cannot be read.
        """
        for name, images in self._windows.items():
            yield name, images.picture(image_id)
        if image_id not in self._positions:
            return
        series, index = self._positions[image_id]
        for offset in self._offsets:
            other = self._at.get((series, index + offset))
            if other is not None:
                side = "before" if offset < 0 else "after"
                yield f"slice_{side}_{abs(offset)}", self._images.picture(other)
