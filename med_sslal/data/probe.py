"""A cheap check of image files: header and end, no pixels."""

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from med_sslal.utils.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
END_MARKS = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9", "MPO": b"\xff\xd9"}
# Some programs append a few bytes (PNG) or a maker's block (JPEG) behind the end mark.
TAIL_BYTES = 65536
# Numbers of TIFF's tags: where strips and tiles of pixels begin, and their lengths.
TIFF_BLOCKS = ((273, 279), (324, 325))
# The filters of warnings are those of all threads: each that changes them does so alone.
WARNING_FILTERS = threading.RLock()


@dataclass(frozen=True)
class ImageProbe:
    """What the header of an image file says."""

    width: int  # before any EXIF rotation
    height: int
    bit_depth: int  # per channel: 8 (or fewer), 16, or 32 for all that cannot be read
    channels: int  # 1 grey, 2 grey with alpha, 3 colours, 4 colours with alpha


def probe_image(path: Path) -> ImageProbe:
    """Read size and kind of a PNG, JPEG or TIFF file, and check that its end is there.

    Damage in the middle of a file shows only when its pixels are decoded. DataError where the file
    is missing, unreadable, empty, truncated, of another kind or of several pages.
    """
    try:
        # By an open file: Pillow tells a broken header and a missing file in the same way.
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            # Of a TIFF file that ends within its header Pillow only warns.
            is_tiff = stream.read(2) in (b"II", b"MM")
            with _warnings_are_errors() if is_tiff else nullcontext():
                image = Image.open(stream, formats=("PNG", "JPEG", "TIFF"))
                n_pages = getattr(image, "n_frames", 1) if is_tiff else 1
            # Not before the header's end: an embedded JPEG preview has an end mark too.
            stream.seek(max(stream.tell(), size - TAIL_BYTES))
            whole = _is_whole(image, stream.read(), size)
            raw = str(image.tile[0].args)
    except FileNotFoundError as error:
        raise DataError(f"image file {path} is missing") from error
    except Image.DecompressionBombError as error:
        raise DataError(
            f"image file {path} has more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} million "
            "pixels: cut it, or make it smaller"
        ) from error
    # Its plugins stumble over foreign bytes in many ways: SyntaxError, struct.error, ...
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"image file {path} cannot be read: {error.strerror}") from error
        raise DataError(
            f"image file {path} is empty, damaged, or neither PNG, JPEG nor TIFF"
        ) from error
    if not whole:
        raise DataError(f"image file {path} is truncated: its end is missing")
    if n_pages > 1:
        raise DataError(f"image file {path} has {n_pages} pages: save each as a file of its own")
    if image.mode == "P":
        return ImageProbe(image.width, image.height, 8, 3)
    # Pillow's mode hides 16 bits of colours, its raw mode ("RGB;16B") does not.
    depth = 32 if image.mode in "IF" or "16S" in raw else 16 if "16" in raw else 8
    return ImageProbe(image.width, image.height, depth, len(image.getbands()))


@contextmanager
def _warnings_are_errors() -> Iterator[None]:
    with WARNING_FILTERS, warnings.catch_warnings(action="error"):
        # It is large, and whole.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def _is_whole(image: Any, tail: bytes, size: int) -> bool:
    """Whether the file reaches as far as its header says."""
    if image.format != "TIFF":
        return END_MARKS[image.format] in tail
    tags = image.tag_v2
    blocks = [
        begin + length
        for begins, lengths in TIFF_BLOCKS
        for begin, length in zip(tags.get(begins, ()), tags.get(lengths, ()), strict=False)
    ]
    return bool(blocks) and max(blocks) <= size
