"""CT slices: 16-bit decoding, Hounsfield units (HU), neighbours at a fixed step."""

import hashlib
import logging
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from med_sslal.base.base_dataset import Images
from med_sslal.data.pictures import to_unit
from med_sslal.data.probe import ImageProbe, probe_image
from med_sslal.utils.errors import DataError, UserError
from med_sslal.utils.util import atomic_write

logger = logging.getLogger(__name__)

SliceMode = Literal["interpolate", "raw", "repeat"]

HU_OFFSET = 32768  # DeepLesion stores HU + 32768
DISPLAY_WINDOW = (-1000.0, 400.0)  # HU; narrower than the model's input, which no screen can show


def decode_slice(path: Path) -> np.ndarray:
    """Decode a 16-bit grey PNG to uint16 [H, W], values unchanged; DataError where it is none."""
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


class SliceCache:
    """A folder of decoded slices, one uint16 .npy file each, read memory-mapped.

    A file is named after its source's path, size and modification time, so a changed source is
    never served from the cache. It is written under a temporary name and renamed: several
    workers and runs may share the folder.
    """

    def __init__(self, folder: Path) -> None:
        """Use `folder`, made when the first slice is stored; DataError where it is a file."""
        if folder.exists() and not folder.is_dir():
            raise DataError(f"dataset.args.cache_dir {folder} is a file; name a folder")
        self.folder = folder

    def read(self, path: Path) -> np.ndarray:
        """As `decode_slice(path)`, read-only; DataError also where the cache cannot be written."""
        try:
            state = path.stat()
        except OSError as error:
            raise DataError(f"image file {path} cannot be read: {error.strerror}") from error
        key = f"{path.resolve()}\x1f{state.st_size}\x1f{state.st_mtime_ns}"
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        # Two levels: one folder of 100,000 files is slow on many file systems.
        file = self.folder / name[:2] / f"{name}.npy"
        try:
            return np.load(file, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            pass
        except (OSError, ValueError, EOFError) as error:
            logger.warning("cached slice %s is damaged (%s): made again", file, error)
        pixels = decode_slice(path)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(file, lambda stream: np.save(stream, pixels))
        except (OSError, UserError) as error:
            raise DataError(
                f"cannot write the slice cache {self.folder} ({error}): set another "
                "dataset.args.cache_dir, or null to go without"
            ) from error
        return pixels


def neighbour_positions(
    centre: int, present: Collection[int], mode: SliceMode, spacing_z: float, step_mm: float
) -> tuple[float, float, float]:
    """Where the three channels lie in a series, in slice indices: below, at and above the centre.

    `interpolate` steps `step_mm / spacing_z` (both in mm) indices to either side, and one index
    where the spacing is not finite and positive; `raw` one index; `repeat` none. Only `present`
    slices that follow each other without a gap from the centre on are used: where they end, the
    position stops at the last of them. A fraction lies between two slices.
    """
    offset = 0.0 if mode == "repeat" else 1.0
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
    """The slices from which one image is made."""

    positions: tuple[float, float, float]  # of each channel, in slice indices
    files: Mapping[int, Path]  # by slice index, all that the positions need


def read_stack(
    stack: Stack, window: tuple[float, float], decode: Callable[[Path], np.ndarray] = decode_slice
) -> np.ndarray:
    """Read slices, interpolate in HU and map the window (HU; values outside are clipped) to [0, 1].

    `decode` gives uint16 [H, W] of a file. Returns float32 [H, W, 3], channels in the order of the
    positions; DataError where a file is missing or damaged, or the slices differ in size.
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


def find_stack(
    present: Mapping[int, Path], centre: int, mode: SliceMode, spacing_z: float, step_mm: float
) -> tuple[Stack, ImageProbe | None, list[str]]:
    """Find and check the files of a key slice and its neighbours, without damaged neighbours.

    `present` maps slice index to file for the whole series; see `neighbour_positions`. Besides the
    files come the key slice's header and what is wrong; without one, None and no files.
    """
    paths, checked, problems = dict(present), {centre}, list[str]()
    try:
        key = _probe_slice(paths[centre]) if centre in paths else None
    except DataError as error:
        key, problems = None, [str(error)]
    if key is None:
        return Stack((centre, centre, centre), {}), None, problems
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
            return Stack(positions, {i: paths[i] for i in needed}), key, problems


def _probe_slice(path: Path) -> ImageProbe:
    """Header of a slice; DataError unless it is a whole 16-bit grey PNG."""
    probe = probe_image(path)
    if (probe.bit_depth, probe.channels) != (16, 1):
        raise DataError(
            f"image file {path} must be 16-bit grey, found {probe.channels} channel(s) of "
            f"{probe.bit_depth} bits: it is no original slice"
        )
    return probe


@dataclass(eq=False, repr=False, kw_only=True)
class SliceImages(Images):
    """Key slices, each read with the slices around it."""

    stacks: Mapping[str, Stack]  # by image id
    window: tuple[float, float]  # HU
    decode: Callable[[Path], np.ndarray] = decode_slice

    def read(self, image_id: str) -> np.ndarray:
        """Decode a key slice and its neighbours; channels from the lower slice index up."""
        return read_stack(self.stacks[image_id], self.window, self.decode)

    def picture(self, image_id: str) -> np.ndarray:
        """The key slice in grey between -1000 and 400 HU, where lung and soft tissue both show.

        A narrower window is shown as it is, with all greys.
        """
        low, high = self.window
        values = self.read(image_id)[..., 1] * (high - low) + low
        shown = max(low, DISPLAY_WINDOW[0]), min(high, DISPLAY_WINDOW[1])
        grey = to_unit(values, shown if shown[0] < shown[1] else self.window)
        return np.repeat(grey[..., None], 3, axis=2)
