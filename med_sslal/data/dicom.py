"""DICOM files as images: each frame is one, and nothing that leaves this module says whose it is.

Of a header only what `_TAGS` lists is read. Patients, series and images are named by a keyed hash
of their ids; the key, and beside it the lists of which file is which, stay where the lab keeps
them. No message repeats a path or a text from a header, and no error is chained to one of pydicom,
which does.
"""

import csv
import hmac
import io
import logging
import os
import re
import secrets
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from med_sslal.base.types import ImageInfo
from med_sslal.data.bad_samples import BadSamples
from med_sslal.data.pictures import Window, to_unit
from med_sslal.data.probe import WARNING_FILTERS
from med_sslal.utils.errors import DataError
from med_sslal.utils.util import atomic_write

logger = logging.getLogger(__name__)

SUFFIXES = (".dcm", ".dicom", ".ima")
_TAGS = (
    "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID", "InstanceNumber",
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated", "BitsStored",
    "PixelRepresentation", "PhotometricInterpretation", "PixelSpacing", "BurnedInAnnotation",
    "WindowCenter", "WindowWidth", "VOILUTFunction", "RescaleSlope", "RescaleIntercept",
    "ModalityLUTSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip
# How the element of the pixels begins: integers, floats and doubles, in either order of bytes.
_PIXELS = tuple(
    (0x7FE0).to_bytes(2, order) + element.to_bytes(2, order)
    for order in ("little", "big")
    for element in (0x0010, 0x0008, 0x0009)
)
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_SAY = "set dataset.args.window (predict: --window) to the lowest and highest value to be seen"


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its name, or by its first bytes; the index of a disk is not."""
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM" and path.name != "DICOMDIR"
    except OSError:
        return False


@dataclass(frozen=True)
class Pseudonyms:
    """Names that tell the same from another, and nothing else, to whoever has not the key."""

    path: Path  # Of the key.
    key: bytes

    @classmethod
    def from_file(cls, path: Path) -> "Pseudonyms":
        """Read the key, which is made if there is none, for its owner alone.

        Raises:
            DataError: It cannot be read or made, others may read it, or it is no key.
        """
        try:
            if not path.exists():
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(handle, "w") as stream:
                    stream.write(f"{secrets.token_hex(32)}\n")
                logger.info("made the key of DICOM pseudonyms %s: keep it, and to yourself", path)
            mode, text = path.stat().st_mode, path.read_bytes()
        except OSError as error:
            raise DataError(
                f"the key of DICOM pseudonyms {path} cannot be read or made: {error.strerror}"
            ) from error
        if mode & 0o077:
            raise DataError(f"{path} keeps patients unknown, and others may read it: chmod 600 it")
        if not re.fullmatch(rb"[0-9a-f]{64}\s*", text):
            raise DataError(f"{path} is no key of this program: name a new file, and it is made")
        return cls(path, bytes.fromhex(text.decode().strip()))

    def of(self, kind: str, text: str) -> str:
        """16 letters for a text of a kind (HMAC with SHA-256)."""
        content = f"{kind}\x1f{text}".encode(errors="replace")
        return hmac.digest(self.key, content, "sha256").hex()[:16]

    def write_list(self, root: Path, rows: Iterable[tuple[str, str]]) -> None:
        """Write beside the key which file below `root` each name is of, for its owner alone."""

        def write(stream: Any) -> None:
            text = io.TextIOWrapper(stream, "utf-8", errors="surrogateescape", newline="")
            csv.writer(text, lineterminator="\n").writerows([("name", "file"), *rows])
            text.detach()

        place = self.of("folder", str(root.resolve()))
        atomic_write(self.path.with_name(f"{self.path.name}.{place}.csv"), write, mode=0o600)


@dataclass(frozen=True)
class DicomFrame:
    """One frame of a file, and how its values become grey."""

    path: Path
    number: int  # From 0.
    slope: float  # What a person knows as its values is slope * stored + intercept.
    intercept: float
    window: Window | None  # Of these; None for colours.
    inverted: bool  # Whether the lowest value is white.
    fixed: bool  # Whether it takes no other window: of 8 bits, or in colour.

    def windowed(self, window: Window) -> "DicomFrame":
        """The same frame in another window of its values; of 8 bits or in colour as it is."""
        return self if self.fixed else replace(self, window=window)

    def read(self, image_id: str, size: tuple[int, int]) -> np.ndarray:
        """Decode it: float32 [H, W, 3] RGB in [0, 1]; DataError where that is not possible."""
        from pydicom.pixels import pixel_array

        with _discreet(f"DICOM image {image_id}", "its pixels cannot be decoded"):
            pixels = pixel_array(self.path, index=self.number)
        if pixels.shape[:2] != size:
            raise DataError(f"DICOM image {image_id} has another size than when it was opened")
        if self.window is None:
            return np.multiply(pixels, np.float32(1 / 255), dtype=np.float32)
        values = pixels.astype(np.float32)
        values *= np.float32(self.slope)
        values += np.float32(self.intercept)
        grey = to_unit(values, self.window)
        return cv2.cvtColor(1 - grey if self.inverted else grey, cv2.COLOR_GRAY2RGB)


def open_dicom(
    root: Path,
    paths: Iterable[Path],
    key: str | None,
    pattern: str | None,
    bad: BadSamples,
    window: Window | None,
) -> dict[str, tuple[ImageInfo, DicomFrame]]:
    """The frames of DICOM files below `root` by image id; `bad` has the files that are none.

    An id is the pseudonym of the series, the number of the instance and its pseudonym, and that of
    the frame where there are several. The group is the patient, or what `pattern` finds in the path
    below `root`; series and position are those of the instance, or of the frame in it.

    Raises:
        DataError: pydicom is not installed, or there is no key.
    """
    if find_spec("pydicom") is None:
        raise DataError(
            f"{root} holds DICOM files, which need the extra 'dicom': python -m pip install "
            "pydicom pylibjpeg pylibjpeg-openjpeg pylibjpeg-rle"
        )
    if key is None:
        raise DataError(
            f"{root} holds DICOM files: set dataset.args.dicom_key (predict: --dicom-key) to a "
            "file of your own, outside of what you share; it is made, and keeps patients unknown"
        )
    names, found, rows = Pseudonyms.from_file(Path(key)), {}, []
    for path in paths:
        inside = path.relative_to(root).as_posix()
        name = names.of("file", inside)
        with bad.noted():
            for info, frame in _frames(path, inside, f"DICOM file {name}", names, pattern, window):
                if info.image_id in found:
                    raise DataError(f"DICOM file {name} is another copy of {info.image_id}")
                found[info.image_id] = (info, frame)
                rows.append((info.image_id, inside))
        rows.append((name, inside))
    names.write_list(root, rows)
    return found


def _frames(
    path: Path,
    inside: str,
    where: str,
    names: Pseudonyms,
    pattern: str | None,
    window: Window | None,
) -> list[tuple[ImageInfo, DicomFrame]]:
    """The frames of one file."""
    frames = []
    with _discreet(where, "it is damaged, or no DICOM file"):
        header = _header(path, where)
        series, instance, group = _identity(header, inside, where, names, pattern)
        position = _whole(header.get("InstanceNumber"))
        n_frames = _whole(header.get("NumberOfFrames")) or 1
        size, spacing = (int(header.Rows), int(header.Columns)), header.get("PixelSpacing")
        same = spacing is not None and len(spacing) == 2 and float(spacing[0]) == float(spacing[1])
        for number in range(n_frames):
            image_id = instance if position is None else f"{position:05d}_{instance}"
            image_id = image_id if series is None else f"{series}/{image_id}"
            place = (series, position)
            if n_frames > 1:
                place = (image_id, number)
                image_id = f"{image_id}_{number + 1:04d}"
            info = ImageInfo(
                image_id,
                group,
                f"{image_id}.dcm",
                size,
                spacing_mm=float(spacing[0]) if same else None,
                series_id=place[0] if place[1] is not None else None,
                slice_index=place[1],
            )
            frames.append((info, DicomFrame(path, number, *_grey(header, number, window, where))))
    return frames


def _header(path: Path, where: str) -> Any:
    """What `_TAGS` lists, of a file whose pixels are there, and can be decoded."""
    from pydicom import dcmread
    from pydicom.pixels import get_decoder
    from pydicom.uid import DeflatedExplicitVRLittleEndian, UID_dictionary

    with path.open("rb") as stream:
        header = dcmread(stream, stop_before_pixels=True, specific_tags=list(_TAGS))
        syntax = header.file_meta.get("TransferSyntaxUID")
        n_left = os.fstat(stream.fileno()).st_size - stream.tell()
        # What is deflated as a whole is not to be looked into by the byte.
        there = stream.read(4) in _PIXELS or syntax == DeflatedExplicitVRLittleEndian
        if not all([there, header.get("Rows"), header.get("Columns")]):
            raise DataError(f"{where} holds no pixels")
    if syntax not in UID_dictionary:
        raise DataError(f"{where} has an unknown transfer syntax: convert it")
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        decoder = None
    if decoder is None or not decoder.is_available or syntax == DeflatedExplicitVRLittleEndian:
        raise DataError(
            f"{where} has the transfer syntax {syntax.name}, which cannot be decoded: pip install "
            "python-gdcm, or convert it"
        )
    if header.get("BurnedInAnnotation") == "YES":
        raise DataError(
            f"{where} says that its picture has texts burnt in, which may name the patient: black "
            "them out, and set BurnedInAnnotation to NO"
        )
    n_bits = int(header.BitsAllocated) * int(header.get("SamplesPerPixel", 1))
    n_bytes = int(header.Rows) * int(header.Columns) * n_bits // 8
    if header.get("PhotometricInterpretation") == "YBR_FULL_422":
        n_bytes = n_bytes * 2 // 3
    if not syntax.is_encapsulated and n_left < n_bytes * (
        _whole(header.get("NumberOfFrames")) or 1
    ):
        raise DataError(f"{where} is truncated: pixels are missing at its end")
    return header


def _identity(
    header: Any, inside: str, where: str, names: Pseudonyms, pattern: str | None
) -> tuple[str | None, str, str]:
    """The pseudonyms of series (None where there is none), instance and group."""
    study, series, instance, patient = (
        str(header.get(name) or "").strip()
        for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "PatientID")
    )
    if not instance:
        raise DataError(f"{where} has no SOPInstanceUID, by which images are told apart")
    if pattern is not None:
        match = re.search(pattern, inside)
        if match is None or not match.group(1):
            raise DataError(f"dataset.args.group_pattern finds no patient in the path of {where}")
        group = names.of("group", match.group(1))
    else:
        # Anonymised files have no patient; what is known to be of one is kept together.
        group = names.of("patient", patient or study or series or instance)
    return names.of("series", series) if series else None, names.of("instance", instance), group


def _grey(
    header: Any, number: int, window: Window | None, where: str
) -> tuple[float, float, Window | None, bool, bool]:
    """Slope, intercept, window and inversion of a frame, and whether the window is fixed."""
    kind, bits = header.get("PhotometricInterpretation"), int(header.BitsAllocated)
    if kind in _COLOURS and bits == 8:
        return 1.0, 0.0, None, False, True
    if kind not in _GREY:
        raise DataError(f"{where} has neither grey values nor colours of 8 bits: convert it")
    place = _place(header, number, "PixelValueTransformationSequence")
    if place.get("ModalityLUTSequence"):
        raise DataError(f"{where} maps its values by a table (modality LUT): convert it")
    for name in ("RescaleSlope", "RescaleIntercept"):
        # Of type 1C: absent where values stay as they are, and never empty.
        if name in place and place.get(name) in (None, ""):
            raise DataError(f"{where} has an empty {name}: fill it in, or take it out")
    slope, intercept = float(place.get("RescaleSlope", 1)), float(place.get("RescaleIntercept", 0))
    bits = int(header.get("BitsStored") or bits)
    if bits <= 8:
        signed = bool(header.get("PixelRepresentation", 0))
        ends = np.array([0, 2**bits - 1]) - signed * 2 ** (bits - 1)
        low, high = sorted((ends * slope + intercept).tolist())
        window = (low, high)
    elif window is None:
        window = _own_window(_place(header, number, "FrameVOILUTSequence"), bits, where)
    return slope, intercept, window, kind == "MONOCHROME1", bits <= 8


def _own_window(place: Any, bits: int, where: str) -> Window:
    """The one window that a header names."""
    centres, widths = (_numbers(place.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if not centres or len(centres) != len(widths):
        raise DataError(f"{where} has {bits} bits and names no window for them: {_SAY}")
    if len(centres) > 1:
        told = ", ".join(f"{c:g} with width {w:g}" for c, w in zip(centres, widths, strict=True))
        raise DataError(f"{where} names {len(centres)} windows ({told}): {_SAY}")
    function = place.get("VOILUTFunction") or "LINEAR"
    if function not in ("LINEAR", "LINEAR_EXACT"):
        raise DataError(f"{where} has a window that is not linear: {_SAY}")
    # DICOM PS3.3 C.11.2.1.2: LINEAR counts in whole values, from centre - 0.5.
    shift = 0.5 if function == "LINEAR" else 0.0
    half = (widths[0] - 2 * shift) / 2
    if not half > 0:
        raise DataError(f"{where} names a window of no width: {_SAY}")
    return centres[0] - shift - half, centres[0] - shift + half


def _place(header: Any, number: int, sequence: str) -> Any:
    """Where values of a frame stand: in a group of its own, in that of all frames, or above."""
    groups = (("PerFrameFunctionalGroupsSequence", number), ("SharedFunctionalGroupsSequence", 0))
    for name, place in groups:
        items = header.get(name) or ()
        if place < len(items) and items[place].get(sequence):
            return items[place].get(sequence)[0]
    return header


def _numbers(value: Any) -> list[float]:
    if value is None or value == "":
        return []
    return [float(each) for each in value] if np.iterable(value) else [float(value)]


def _whole(value: Any) -> int | None:
    return None if value is None or value == "" else int(value)


@contextmanager
def _discreet(where: str, what: str) -> Iterator[None]:
    """Say `what` is wrong in place of pydicom's errors and warnings, which repeat the header."""
    log = logging.getLogger("pydicom")
    with WARNING_FILTERS, warnings.catch_warnings(action="ignore"):
        before, log.disabled = log.disabled, True
        try:
            yield
        except DataError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno:
                what = f"cannot be read: {error.strerror}"
            raise DataError(f"{where}: {what}") from None
        finally:
            log.disabled = before
