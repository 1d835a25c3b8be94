"""The files of a phantom, laid out and spelled as DeepLesion's."""

import csv
import errno
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from med_sslal.data.deeplesion_csv import COLUMNS
from med_sslal.phantom.canvas import PIXEL_MM
from med_sslal.phantom.lesions import extent_mm
from med_sslal.phantom.study import KeySlice, draw_patient
from med_sslal.utils.errors import ConfigError, UserError
from med_sslal.utils.util import fsync_folder, numpy_generator, usable_cores

GENERATOR_VERSION = 1
"""Counts up whenever the same arguments would give other bytes."""

MARKER = "PHANTOM.txt"
"""File that says what made a folder; a folder with it is complete."""

LESION_FILE = "phantom_lesions.csv"
"""Side file: every lesion with its difficulty, hidden ones too."""

_LESION_COLUMNS = ("File_name", "Bounding_boxes", "Lesion", "Difficulty", "Hidden", "Diameter_mm")
_PADDING_PX = 5
# Below this many patients a second process costs more than it saves.
_ENOUGH_TO_SHARE = 16

Row = tuple[str, ...]


def generate(
    out: Path,
    *,
    patients: int,
    size: int,
    seed: int,
    hidden_fraction: float = 0.0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a phantom: the same arguments give the same bytes.

    Everything is made in a temporary folder beside `out` and renamed when complete. Where another
    process finished the same phantom meanwhile, its folder stays and this one is dropped.

    Args:
        out: Folder to make; it must not exist, or be empty.
        patients: Number of patients, at least 3 (one per split).
        size: Rows and columns of an image, 64 to 512 pixels of 0.8 mm.
        seed: Seed of everything.
        hidden_fraction: Expected share of lesions that are in the pictures but not in DL_info.csv,
            below 0.9; every key slice keeps a marked one.
        progress: Called with (patients done, patients) after each.

    Raises:
        UserError: An argument is out of range, `out` holds something else, or cannot be written.
    """
    _check(patients, size, hidden_fraction)
    text = describe(patients=patients, size=size, seed=seed, hidden_fraction=hidden_fraction)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not empty: name a new folder for the phantom")
    temporary: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        _write_all(temporary, patients, size, seed, hidden_fraction, progress)
        (temporary / MARKER).write_text(text, encoding="utf-8")
        temporary.chmod(0o755)
        try:
            temporary.rename(out)
        except OSError as error:
            lost_race = error.errno in (errno.ENOTEMPTY, errno.EEXIST) and is_complete(out, text)
            if not lost_race:
                raise
        fsync_folder(out.parent)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def describe(*, patients: int, size: int, seed: int, hidden_fraction: float = 0.0) -> str:
    """The text of the marker file, which names all that the bytes depend on."""
    return (
        "PHANTOM: synthetic pictures in the files of DeepLesion. No pixel comes from a person.\n"
        "Not a medical device. Say 'phantom' beside every number or figure made from it.\n"
        "Every row has a lesion type (in DeepLesion the train rows have none).\n"
        f"{LESION_FILE} lists every lesion with its difficulty.\n\n"
        f"generator_version: {GENERATOR_VERSION}\n"
        f"patients: {patients}\nsize: {size}\nseed: {seed}\nhidden_fraction: {hidden_fraction}\n"
    )


def is_complete(folder: Path, text: str) -> bool:
    """Whether `folder` holds the finished phantom that `text` (see `describe`) names."""
    marker = folder / MARKER
    return marker.is_file() and marker.read_text(encoding="utf-8") == text


def _check(patients: int, size: int, hidden_fraction: float) -> None:
    """Raise ConfigError for arguments out of range."""
    if patients < 3:
        raise ConfigError(f"patients is {patients}: a phantom needs 3 or more, one per split")
    if not 64 <= size <= 512:
        raise ConfigError(f"size is {size}: allowed are 64 to 512 pixels (0.8 mm each)")
    if not 0 <= hidden_fraction < 0.9:
        raise ConfigError(f"hidden_fraction is {hidden_fraction}: allowed is 0 to below 0.9")


def _write_all(
    folder: Path,
    patients: int,
    size: int,
    seed: int,
    hidden_fraction: float,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Write the pictures of all patients, on all cores, then the two tables."""
    split = _split(patients, seed)
    rows: list[Row] = []
    lesions: list[Row] = []
    write = partial(_write_patient, folder, seed, size, hidden_fraction)
    for done, found in enumerate(_on_all_cores(write, split), start=1):
        for row, lesion, hidden in found:
            lesions.append(lesion)
            if not hidden:
                rows.append(row)
        if progress is not None:
            progress(done, patients)
    for name, columns, table in (
        ("DL_info.csv", COLUMNS, rows),
        (LESION_FILE, _LESION_COLUMNS, lesions),
    ):
        with (folder / name).open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(table)


def _on_all_cores(
    write: Callable[[tuple[int, int]], list[tuple[Row, Row, bool]]], split: list[int]
) -> Iterator[list[tuple[Row, Row, bool]]]:
    """What `write` returns for (patient, split code), patient by patient."""
    patients, cores = list(enumerate(split, start=1)), usable_cores()
    if cores == 1 or len(patients) < _ENOUGH_TO_SHARE:
        yield from map(write, patients)
        return
    pool = ProcessPoolExecutor(cores, initializer=_start_process)
    try:
        yield from pool.map(write, patients)
    finally:
        pool.shutdown(cancel_futures=True)


def _start_process() -> None:
    """One thread each; a Ctrl-C, which reaches all processes, is for the main one."""
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _write_patient(
    folder: Path, seed: int, size: int, hidden_fraction: float, patient: tuple[int, int]
) -> list[tuple[Row, Row, bool]]:
    """Write the pictures of a patient (number and split code); returns the rows of all lesions."""
    number, split = patient
    rows = []
    for key in draw_patient(seed, number, size, hidden_fraction):
        _write_slices(folder, key)
        rows += _rows(key, size, split)
    return rows


def _split(patients: int, seed: int) -> list[int]:
    """Train_Val_Test of every patient: 70, 15 and 15 in a hundred, at least one of each."""
    held = max(1, round(0.15 * patients))
    codes = [2] * held + [3] * held + [1] * (patients - 2 * held)
    order = numpy_generator("phantom split", seed).permutation(patients)
    return [codes[i] for i in order]


def _stem(key: KeySlice) -> str:
    """PPPPPP_SS_SS."""
    return f"{key.patient:06d}_{key.study:02d}_{key.series:02d}"


def _write_slices(folder: Path, key: KeySlice) -> None:
    """Write a key slice and its neighbours as 16-bit PNGs."""
    series = folder / "Images_png" / _stem(key)
    series.mkdir(parents=True)
    for index, pixels in key.slices.items():
        done, data = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        if not done:
            raise UserError(f"OpenCV could not encode {series / f'{index:03d}.png'}")
        (series / f"{index:03d}.png").write_bytes(data.tobytes())


def _rows(key: KeySlice, size: int, split: int) -> list[tuple[Row, Row, bool]]:
    """Per lesion its row of DL_info.csv, its row of the side file, and whether it is hidden."""
    name = f"{_stem(key)}_{key.index:03d}.png"
    rows: list[tuple[Row, Row, bool]] = []
    for mark in key.marks:
        ends = mark.ends + 1  # DeepLesion counts pixels from 1
        # From the rounded numbers, so that box and axes agree to the last digit written.
        points = [[float(f"{value:.6g}") for value in end] for end in ends]
        low, high = np.min(points, 0) - _PADDING_PX, np.max(points, 0) + _PADDING_PX
        box = _join(*low, *high)
        long, short = extent_mm(mark.ends)
        row = (
            name,
            str(key.patient),
            str(key.study),
            str(key.series),
            str(key.index),
            _join(*(value for point in points for value in point)),
            box,
            _join(long / PIXEL_MM, short / PIXEL_MM),
            _join(*mark.location),
            str(key.place.coarse_type),
            "0",
            f"{min(key.slices)}, {max(key.slices)}",
            _join(PIXEL_MM, PIXEL_MM, key.spacing),
            _join(size, size),
            _join(*key.place.dicom_window),
            key.gender,
            str(key.age),
            str(split),
        )
        number, hidden = mark.lesion.number, mark.lesion.hidden
        side = (name, box, str(number), mark.difficulty, str(int(hidden)), f"{long:.6g}")
        rows.append((row, side, hidden))
    return rows


def _join(*values: float) -> str:
    """Numbers as DeepLesion writes a tuple: six significant digits, comma and space."""
    return ", ".join(f"{value:.6g}" for value in values)
