"""CT slices: 16-bit decoding, Hounsfield units (HU), neighbours at a fixed step."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from med_sslal.data.pictures import to_unit
from med_sslal.utils.errors import DataError

SliceMode = Literal["interpolate", "raw", "repeat"]

# DeepLesion stores HU + 32768.
HU_OFFSET = 32768


def decode_slice(path: Path) -> np.ndarray:
    """Decode a 16-bit grey PNG with its values unchanged.

    Returns:
        uint16 [H, W].

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
    """Where the three channels lie in a series, in slice indices.

    `interpolate` steps `step_mm / spacing_z` indices to either side, and one index where the
    spacing is unknown; `raw` one index; `repeat` none. Only slices that follow each other without
    a gap from the centre on are used: where they end, the position stops at the last of them.

    Args:
        centre: Index of the key slice.
        present: Indices of the slices that exist.
        mode: See above.
        spacing_z: Slice interval in mm; unknown unless finite and positive.
        step_mm: Wanted distance of the neighbours in mm.

    Returns:
        Positions below, at and above the centre; a fraction lies between two slices.
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


def needed_slices(positions: tuple[float, ...]) -> list[int]:
    """Sorted indices of the slices between which the positions lie."""
    return sorted({end(position) for position in positions for end in (math.floor, math.ceil)})


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
