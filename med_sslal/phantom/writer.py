"""The files of a phantom, laid out and spelled as DeepLesion's."""

import signal
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2

from med_sslal.data.deeplesion_csv import HEADER
from med_sslal.phantom.study import Row, draw_patient
from med_sslal.utils.errors import ConfigError, UserError
from med_sslal.utils.interrupt import StopRequest
from med_sslal.utils.util import csv_text, fsync_folder, numpy_generator, usable_cores

GENERATOR_VERSION = 2  # counts up whenever the same arguments would give other bytes
MARKER = "PHANTOM.txt"  # says what made a folder; a folder with it is complete
LESION_FILE = "phantom_lesions.csv"  # every lesion with its difficulty, hidden ones too
LESION_HEADER = "File_name,Bounding_boxes,Lesion,Difficulty,Hidden,Diameter_mm"
# Below this many patients a second process costs more than it saves.
_ENOUGH_TO_SHARE = 16


def generate(
    out: Path,
    *,
    patients: int,
    size: int,
    seed: int,
    hidden_fraction: float = 0.0,
    progress: Callable[[], object] = lambda: None,
) -> None:
    """Write a phantom: the same arguments give the same bytes.

    Everything is made in a temporary folder beside `out` and renamed when complete. Where another
    process finished the same phantom meanwhile, its folder stays and this one is dropped. UserError
    where an argument is out of range, `out` holds something else or cannot be written; Interrupted
    where Ctrl-C or SIGTERM came meanwhile: nothing half-made is left.

    Args:
        out: Folder to make; it must not exist, or be empty.
        patients: Number of patients, at least 3 (one per split).
        size: Rows and columns of an image, 64 to 512 pixels of 0.8 mm.
        seed: Seed of everything.
        hidden_fraction: Expected share of lesions that are in the pictures but not in DL_info.csv,
            below 0.9; every key slice keeps a marked one.
        progress: Called after each patient.
    """
    _check(out, patients, size, hidden_fraction)
    text = describe(patients=patients, size=size, seed=seed, hidden_fraction=hidden_fraction)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        beside = TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent)
        with StopRequest() as stop, beside as temporary:
            folder = Path(temporary) / out.name
            write = partial(_write_patient, folder, seed, size, hidden_fraction)
            rows: list[Row] = []
            # Closed before the folder is cleared: whoever still writes would fill it again.
            split = list(enumerate(_split(patients, seed), start=1))
            with closing(_on_all_cores(write, split)) as written:
                for found in written:
                    rows += found
                    progress()
                    stop.check()
            shown = [row for row in rows if row["Hidden"] == "0"]
            _write_table(folder / "DL_info.csv", HEADER, shown)
            _write_table(folder / LESION_FILE, LESION_HEADER, rows)
            (folder / MARKER).write_text(text, encoding="utf-8")
            try:
                folder.rename(out)
            except OSError:
                if not is_complete(out, text):
                    raise
            fsync_folder(out.parent)
            stop.check()
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error


def _check(out: Path, patients: int, size: int, hidden_fraction: float) -> None:
    if patients < 3:
        raise ConfigError(f"patients is {patients}: a phantom needs 3 or more, one per split")
    if not 64 <= size <= 512:
        raise ConfigError(f"size is {size}: allowed are 64 to 512 pixels (0.8 mm each)")
    if not 0 <= hidden_fraction < 0.9:
        raise ConfigError(f"hidden_fraction is {hidden_fraction}: allowed is 0 to below 0.9")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not empty: name a new folder for the phantom")


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


def _split(patients: int, seed: int) -> list[int]:
    """Train_Val_Test of every patient: 70, 15 and 15 in a hundred, at least one of each."""
    held = max(1, round(0.15 * patients))
    codes = [2] * held + [3] * held + [1] * (patients - 2 * held)
    order = numpy_generator("phantom split", seed).permutation(patients)
    return [codes[i] for i in order]


def _on_all_cores(
    write: Callable[[tuple[int, int]], list[Row]], patients: list[tuple[int, int]]
) -> Generator[list[Row]]:
    """What `write` returns for (patient, split code), patient by patient."""
    cores = usable_cores()
    if cores == 1 or len(patients) < _ENOUGH_TO_SHARE:
        yield from map(write, patients)
        return
    # A caller that stops early cancels what has not begun.
    with ProcessPoolExecutor(cores, initializer=_start_process) as pool:
        yield from pool.map(write, patients)


def _start_process() -> None:
    """One thread each; a Ctrl-C, which reaches all processes, is for the main one."""
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _write_patient(
    folder: Path, seed: int, size: int, hidden_fraction: float, patient: tuple[int, int]
) -> list[Row]:
    """Write the 16-bit PNGs of a patient (number and split code); returns the rows."""
    rows = []
    for slices, found in draw_patient(seed, *patient, size, hidden_fraction):
        series = folder / "Images_png" / found[0]["File_name"].rpartition("_")[0]
        series.mkdir(parents=True)
        for index, pixels in slices.items():
            data = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1]
            (series / f"{index:03d}.png").write_bytes(data.tobytes())
        rows += found
    return rows


def _write_table(path: Path, header: str, rows: list[Row]) -> None:
    table = [{name: row[name] for name in header.split(",")} for row in rows]
    path.write_text(csv_text(table), encoding="utf-8", newline="")
