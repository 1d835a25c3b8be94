"""DeepLesion's annotation file DL_info.csv: one row per lesion, 18 columns."""

import csv
import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from med_sslal.data.bad_samples import BadSamples
from med_sslal.utils.errors import DataError

HEADER = (
    "File_name,Patient_index,Study_index,Series_ID,Key_slice_index,Measurement_coordinates,"
    "Bounding_boxes,Lesion_diameters_Pixel_,Normalized_lesion_location,Coarse_lesion_type,"
    "Possibly_noisy,Slice_range,Spacing_mm_px_,Image_size,DICOM_windows,Patient_gender,"
    "Patient_age,Train_Val_Test"
)
COLUMNS = HEADER.split(",")
LesionType = Literal[
    "all", "bone", "abdomen", "mediastinum", "liver", "lung", "kidney", "soft tissue", "pelvis"
]
LESION_TYPES = {-1: "", **dict(enumerate(get_args(LesionType)[1:], start=1))}
SPLITS = {1: "train", 2: "val", 3: "test"}
# Patient, study, series, slice; the last underscore stands for the folder's slash.
FILE_NAME = re.compile(r"((\d{6})_(\d{2,})_(\d{2,}))_(\d{3,})\.png", re.ASCII)


@dataclass(frozen=True, slots=True)
class Lesion:
    """One row of DL_info.csv."""

    image_id: str  # the key slice, File_name without `.png`
    series: str  # its folder PPPPPP_SS_SS
    patient: str  # six digits
    slice_index: int  # of the key slice in its series, from 1 on
    # x1, y1, x2, y2 in ORIGINAL pixels, 0-based; finite, of positive area, not clipped.
    box: tuple[float, float, float, float]
    long_diameter_px: float  # long RECIST axis, NaN where unknown
    lesion_type: str  # name of the coarse type, "" where unknown
    noisy: bool  # the annotation is doubtful
    pixel_mm: float  # in-plane mm per pixel, NaN where unknown
    slice_mm: float  # slice interval in mm, NaN where unknown
    image_size: tuple[int, int]  # both sides in pixels
    split: str  # official split: "train", "val" or "test"


def read_csv(path: Path, bad: BadSamples) -> list[Lesion]:
    """Lesions of DL_info.csv in its order; rows that cannot be used are noted and left out.

    DataError where the file is missing or is no such table.
    """
    lesions: list[Lesion] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(
                    f"{path} is not DeepLesion's annotation file: column(s) "
                    f"{', '.join(missing)} missing"
                )
            for row in reader:
                try:
                    lesions.append(parse_row(row))
                except ValueError as error:
                    name = row["File_name"]
                    bad.add(f"{path.name}, line {reader.line_num} ({name}): {error}")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a CSV file: {error}") from error
    return lesions


def parse_row(row: dict[str, str]) -> Lesion:
    """Turn a row into a Lesion; a ValueError says which field is wrong."""
    absent = [name for name in COLUMNS if row[name] is None]
    if absent:
        raise ValueError(f"the row ends before column {absent[0]}")
    name = FILE_NAME.fullmatch(row["File_name"])
    if name is None:
        raise ValueError("File_name is not of the form PPPPPP_SS_SS_III.png")
    parts = tuple(int(text) for text in name.groups()[1:])
    columns = ("Patient_index", "Study_index", "Series_ID", "Key_slice_index")
    indices = tuple(_integer(row, column) for column in columns)
    if parts != indices:
        raise ValueError(f"File_name does not agree with {', '.join(columns)} {indices}")
    if parts[-1] < 1:
        raise ValueError("Key_slice_index is 0; slices are counted from 1")
    spacing = [
        value if math.isfinite(value) and value > 0 else math.nan
        for value in _numbers(row, "Spacing_mm_px_", 3)
    ]
    sides = _numbers(row, "Image_size", 2)
    if not all(side >= 1 and side.is_integer() for side in sides):
        raise ValueError(f"Image_size must be two pixel counts, found '{row['Image_size']}'")
    # The file counts pixels from 1.
    x1, y1, x2, y2 = (value - 1 for value in _numbers(row, "Bounding_boxes", 4))
    found = f"found '{row['Bounding_boxes']}'"
    if not all(map(math.isfinite, (x1, y1, x2, y2))):
        raise ValueError(f"Bounding_boxes must be finite, {found}")
    if x2 <= x1 or y2 <= y1:
        raise ValueError(f"Bounding_boxes must be x1, y1, x2, y2 of positive area, {found}")
    return Lesion(
        image_id=row["File_name"].removesuffix(".png"),
        series=name.group(1),
        patient=name.group(2),
        slice_index=parts[-1],
        box=(x1, y1, x2, y2),
        long_diameter_px=_numbers(row, "Lesion_diameters_Pixel_", 2)[0],
        lesion_type=LESION_TYPES[_integer(row, "Coarse_lesion_type", LESION_TYPES)],
        noisy=bool(_integer(row, "Possibly_noisy", (0, 1))),
        pixel_mm=spacing[0],
        slice_mm=spacing[2],
        image_size=(int(sides[0]), int(sides[1])),
        split=SPLITS[_integer(row, "Train_Val_Test", SPLITS)],
    )


def _numbers(row: dict[str, str], column: str, count: int) -> tuple[float, ...]:
    """Comma-separated numbers of a field; NaN is a number here."""
    try:
        values = tuple(float(text) for text in row[column].split(","))
    except ValueError:
        values = ()
    if len(values) != count:
        raise ValueError(f"{column} must hold {count} number(s), found '{row[column]}'")
    return values


def _integer(row: dict[str, str], column: str, allowed: Collection[int] = ()) -> int:
    """A whole number, out of a fixed set where one is given."""
    (value,) = _numbers(row, column, 1)
    if not value.is_integer():
        raise ValueError(f"{column} must be a whole number, found '{row[column]}'")
    if allowed and value not in allowed:
        raise ValueError(f"{column} must be one of {list(allowed)}, found {int(value)}")
    return int(value)
