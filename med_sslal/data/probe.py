"""A cheap check of image files: header and trailer, no pixels."""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from med_sslal.utils.errors import DataError

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_END = b"IEND\xaeB`\x82"
# Channels after decoding; a palette (3) decodes to colours.
PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
JPEG_START = b"\xff\xd8"
JPEG_END = b"\xff\xd9"
# Start-of-frame markers: C0 to CF without the tables DHT (C4), JPG (C8) and DAC (CC).
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Some programs append a few bytes (PNG) or a maker's block (JPEG) behind the end mark.
TAIL_BYTES = 65536


@dataclass(frozen=True)
class ImageProbe:
    """What the header of an image file says.

    Attributes:
        width: Pixels per row, before any EXIF rotation.
        height: Rows.
        bit_depth: Bits per channel.
        channels: 1 grey, 2 grey with alpha, 3 colours, 4 colours with alpha.
    """

    width: int
    height: int
    bit_depth: int
    channels: int


def probe_image(path: Path) -> ImageProbe:
    """Read size and kind of a PNG or JPEG file, and check that its end is there.

    Damage in the middle of a file shows only when its pixels are decoded.

    Raises:
        DataError: The file is missing, unreadable, empty, truncated or no PNG or JPEG.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            start = stream.read(len(PNG_SIGNATURE))
            if start == PNG_SIGNATURE:
                probe = _png_header(stream)
                ending = PNG_END
            elif start[:2] == JPEG_START:
                probe = _jpeg_header(stream)
                ending = JPEG_END
            elif not start:
                raise _Damaged("is empty")
            else:
                raise _Damaged("is neither a PNG nor a JPEG file")
            # Not before the header's end: an embedded JPEG preview has an end mark too.
            stream.seek(max(stream.tell(), size - TAIL_BYTES))
            if ending not in stream.read():
                raise _Damaged("is truncated: its end is missing")
    except FileNotFoundError as error:
        raise DataError(f"image file {path} is missing") from error
    except OSError as error:
        raise DataError(f"image file {path} cannot be read: {error.strerror or error}") from error
    except _Damaged as error:
        raise DataError(f"image file {path} {error}") from error
    if probe.width < 1 or probe.height < 1:
        raise DataError(f"image file {path} has no pixels ({probe.width}x{probe.height})")
    return probe


class _Damaged(Exception):
    """The file's content is wrong; the caller adds its name."""


def _read(stream: BinaryIO, count: int) -> bytes:
    """Read exactly `count` bytes."""
    block = stream.read(count)
    if len(block) < count:
        raise _Damaged("is truncated within its header")
    return block


def _png_header(stream: BinaryIO) -> ImageProbe:
    """Read the IHDR chunk behind the signature (PNG specification, 11.2.1)."""
    length, kind = struct.unpack(">I4s", _read(stream, 8))
    if kind != b"IHDR" or length != 13:
        raise _Damaged("is a damaged PNG: it does not begin with its header")
    width, height, depth, colour = struct.unpack(">IIBB", _read(stream, 10))
    if colour not in PNG_CHANNELS:
        raise _Damaged(f"is a damaged PNG: unknown colour type {colour}")
    # A palette index has `depth` bits, the colour it stands for always 8.
    return ImageProbe(width, height, 8 if colour == 3 else depth, PNG_CHANNELS[colour])


def _jpeg_header(stream: BinaryIO) -> ImageProbe:
    """Walk the marker segments to the start of frame (ITU T.81, B.1 and B.2)."""
    stream.seek(2)
    while True:
        mark, code = _read(stream, 2)
        if mark != 0xFF:
            raise _Damaged("is a damaged JPEG: a marker is expected and none found")
        if code == 0xFF:
            # Fill byte: the marker's code is still to come.
            stream.seek(-1, 1)
            continue
        if code == 0x01 or 0xD0 <= code <= 0xD8:
            continue
        if code in (0xD9, 0xDA):
            raise _Damaged("is a damaged JPEG: it has no frame header")
        (length,) = struct.unpack(">H", _read(stream, 2))
        if code in JPEG_FRAMES:
            depth, height, width, channels = struct.unpack(">BHHB", _read(stream, 6))
            return ImageProbe(width, height, depth, channels)
        stream.seek(max(length - 2, 0), 1)
