"""CT slices: 16-bit decoding, Hounsfield units (HU), neighbours at a fixed step."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np

from med_sslal.base.base_dataset import Images
from med_sslal.base.types import ImageInfo
from med_sslal.data.pictures import to_unit
from med_sslal.data.probe import ImageProbe, probe_image
from med_sslal.utils.errors import DataError

SliceMode = Literal["interpolate", "raw", "repeat"]

# DeepLesion stores HU + 32768.
HU_OFFSET = 32768

# HU; narrower than the model's input, which a screen cannot show.
DISPLAY_WINDOW = (-1000.0, 400.0)


def decode_slice(path: Path) -> np.ndarray:
    """Decode a 16-bit grey PNG to uint16 [H, W] with its values unchanged.

    Raises:
        DataError: The file is missing, damaged or not 16-bit grey.
    """
    # Without IMREAD_UNCHANGED OpenCV shrinks the values to 8 bits and says nothing.
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        state = "damaged" if path.exists() else "missing"
        raise DataError(f"image file {path} is {state}")
    if pixels.dtype != np.uint16 or pixels.ndim != 2:
        raise DataError(
            f"image file {path} must be 16-bit grey (HU + {HU_OFFSET}), found {pixels.dtype} "
            f"{list(pixels.shape)}: convert it from the original, not from an 8-bit copy"
        )
    return pixels


def neighbour_positions(
    centre: int,
    present: Collection[int],
    mode: SliceMode,
    spacing_z: float,
    step_mm: float,
) -> tuple[float, float, float]:
    """Where the three channels lie in a series, in slice indices: below, at and above the centre.

    `interpolate` steps `step_mm / spacing_z` (both in mm) indices to either side, and one index
    where the spacing is not finite and positive; `raw` one index; `repeat` none. Only `present`
    slices that follow each other without a gap from the centre on are used: where they end, the
    position stops at the last of them. A fraction lies between two slices.
    """
    offset = {"interpolate": 1.0, "raw": 1.0, "repeat": 0.0}[mode]
    if mode == "interpolate" and math.isfinite(spacing_z) and spacing_z > 0:
        # Rounded, so that 2 mm / 0.4 mm is 5 slices and not 5 and a bit of the sixth.
        offset = round(step_mm / spacing_z, 6)
    reach = {}
    for side in (-1, 1):
        steps = 0
        while steps < offset and centre + side * (steps + 1) in present:
            steps += 1
        reach[side] = min(offset, steps)
    return centre - reach[-1], float(centre), centre + reach[1]


@dataclass(frozen=True)
class Stack:
    """The slices from which one image is made.

    Attributes:
        positions: Position of each channel in slice indices.
        files: Slice index to file, for every slice that the positions need.
    """

    positions: tuple[float, float, float]
    files: Mapping[int, Path]


def read_stack(
    stack: Stack, window: tuple[float, float], decode: Callable[[Path], np.ndarray] = decode_slice
) -> np.ndarray:
    """Read slices, interpolate in HU and map the window to [0, 1].

    Args:
        stack: What to read.
        window: Lower and upper HU bound; values outside are clipped.
        decode: Gives uint16 [H, W] of a file.

    Returns:
        float32 [H, W, 3] in [0, 1], channels in the order of the positions.

    Raises:
        DataError: A file is missing or damaged, or the slices differ in size.
    """
    # Cast first: in uint16 everything below 0 HU would wrap around.
    slices = {
        index: decode(path).astype(np.float32) - HU_OFFSET for index, path in stack.files.items()
    }
    shapes = {pixels.shape for pixels in slices.values()}
    if len(shapes) > 1:
        names = ", ".join(str(path) for path in stack.files.values())
        raise DataError(f"slices of one series differ in size: {names}")
    image = np.empty((*shapes.pop(), len(stack.positions)), dtype=np.float32)
    for channel, position in enumerate(stack.positions):
        below = math.floor(position)
        share = np.float32(position - below)
        image[..., channel] = slices[below]
        if share:
            image[..., channel] += share * (slices[below + 1] - slices[below])
    return to_unit(image, window)


class FoundStack(NamedTuple):
    """What was found of an image: its files, the key slice's header, and what is wrong.

    Without a key slice `stack` is empty and `probe` None.
    """

    stack: Stack
    probe: ImageProbe | None
    problems: list[str]


def find_stack(
    present: Mapping[int, Path], centre: int, mode: SliceMode, spacing_z: float, step_mm: float
) -> FoundStack:
    """Find and check the files of a key slice and its neighbours, without damaged neighbours.

    `present` maps slice index to file for the whole series; see `neighbour_positions`.
    """
    paths, checked = dict(present), {centre}
    problems: list[str] = []
    nothing = Stack((centre, centre, centre), {})
    if centre not in paths:
        return FoundStack(nothing, None, [])
    try:
        key = _probe_slice(paths[centre])
    except DataError as error:
        return FoundStack(nothing, None, [str(error)])
    while True:
        positions = neighbour_positions(centre, paths, mode, spacing_z, step_mm)
        needed = sorted({end(place) for place in positions for end in (math.floor, math.ceil)})
        for index in set(needed) - checked:
            checked.add(index)
            try:
                if _probe_slice(paths[index]) != key:
                    raise DataError(
                        f"image file {paths[index]} differs in size from its key slice "
                        f"{paths[centre]}"
                    )
            except DataError as error:
                problems.append(str(error))
                del paths[index]
        if paths.keys() >= set(needed):
            return FoundStack(Stack(positions, {i: paths[i] for i in needed}), key, problems)


def _probe_slice(path: Path) -> ImageProbe:
    """Header of a slice; DataError unless it is a whole 16-bit grey PNG."""
    probe = probe_image(path)
    if (probe.bit_depth, probe.channels) != (16, 1):
        raise DataError(
            f"image file {path} must be 16-bit grey, found {probe.channels} channel(s) of "
            f"{probe.bit_depth} bits: it is no original slice"
        )
    return probe


class SliceImages(Images):
    """Key slices, each read with the slices around it."""

    def __init__(
        self,
        infos: Mapping[str, ImageInfo],
        splits: Mapping[str, tuple[str, ...]],
        stacks: Mapping[str, Stack],
        window: tuple[float, float],
        decode: Callable[[Path], np.ndarray] = decode_slice,
        note: str | None = None,
    ) -> None:
        """Hold the files of each image id; see `read_stack` and Images for the rest."""
        super().__init__(infos, splits, note)
        self._stacks, self.window, self._decode = stacks, window, decode

    def read(self, image_id: str) -> np.ndarray:
        """Decode a key slice and its neighbours; channels from the lower slice index up."""
        return read_stack(self._stacks[image_id], self.window, self._decode)

    def picture(self, image_id: str) -> np.ndarray:
        """The key slice in grey between -1000 and 400 HU, where lung and soft tissue both show.

        A narrower window is shown as it is, with all greys.
        """
        low, high = self.window
        values = self.read(image_id)[..., 1] * (high - low) + low
        shown = max(low, DISPLAY_WINDOW[0]), min(high, DISPLAY_WINDOW[1])
        grey = to_unit(values, shown if shown[0] < shown[1] else self.window)
        return np.repeat(grey[..., None], 3, axis=2)
