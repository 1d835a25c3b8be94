"""What comes back in DeepLesion's columns: diameters or boxes, counted from 1."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from annotator import answer_label_studio
from test_returned import QUERY, read

from med_sslal.practice.answers import Answer, Query
from med_sslal.utils.errors import DataError

A, B = (image.file_name for image in QUERY.images[:2])
BOX = np.array([[1, 2, 30, 40]], np.float32)
HEAD = "File_name,Measurement_coordinates,Bounding_boxes,Class\n"
POINTS = '"11, 21, 31, 41, 26, 26, 16, 36"'


def one_class(name: str = "lesion") -> Query:
    return replace(QUERY, class_names=(name,))


def test_diameters_span_a_box_and_win_over_a_given_one(tmp_path: Path) -> None:
    text = f'{HEAD}{A},{POINTS},"1, 1, 9, 9",nodule\n{A},," 1, 2.5, 9, 9 ",mass & more\n'
    (found,) = read(tmp_path, text)
    assert found.boxes.tolist() == [[10, 20, 30, 40], [0, 1.5, 8, 8]]
    assert found.labels.tolist() == [2, 1] and found.state == "labelled"


def test_a_query_of_one_class_needs_no_column_for_it(tmp_path: Path) -> None:
    text = f"File_name,Measurement_coordinates\n{B},{POINTS}\nimages/{A},\n"
    found = read(tmp_path, text, one_class(), unmarked="empty")
    assert [(each.image_id, each.state) for each in found] == [
        (QUERY.images[1].image_id, "labelled"),
        (QUERY.images[0].image_id, "confirmed_empty"),
    ]
    assert len(read(tmp_path, text, one_class(), unmarked="pending")) == 1
    with pytest.raises(DataError, match=r"1 image\(s\) have no box .*such a table does not tell"):
        read(tmp_path, text, one_class())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"File_name,Class\n{A},nodule\n", "needs the columns File_name and Measurement"),
        (f"File_name,Bounding_boxes\n{A},\n", "needs a column Class: .* mass & more, nodule"),
        (f"{HEAD}../x.png,{POINTS},,nodule\n", r"line 2: image '../x.png' is not in query"),
        (f"{HEAD}{A},{POINTS},,cyst\n", "line 2 .*: unknown class 'cyst'"),
        (f"{HEAD}{A},{POINTS}\n", "unknown class 'None'"),
        (f'{HEAD}{A},"1, 2, 3",,nodule\n', "Measurement_coordinates must hold 8 numbers"),
        (f'{HEAD}{A},,"1, 2, 3, x",nodule\n', "Bounding_boxes must hold 4 numbers"),
        (f'{HEAD}{A},,"1, 2, nan, 9",nodule\n', "is not finite"),
        (f'{HEAD}{A},,"9, 2, 1, 9",nodule\n', "has no area"),
        (f'{HEAD}{A},,"1, 2, 999, 9",nodule\n', "lies outside"),
        (f"{HEAD}{A},{POINTS},,nodule\n{A},,,\n", "lines with a box and one without"),
        (f'{HEAD}{A},"1, 2\n', "is not a CSV file"),
    ],
)
def test_wrong_lines_of_a_table(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, text, unmarked="pending")


def test_a_document_that_names_a_column_is_no_table(tmp_path: Path) -> None:
    query = one_class("File_name")
    one = Answer(QUERY.images[0].image_id, "labelled", BOX, np.array([1]))
    (found,) = read(tmp_path, answer_label_studio(query, [one]), query)
    assert found.state == "labelled"


def test_a_table_in_another_code_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no text"):
        read(tmp_path, f"{HEAD}größe".encode("latin-1"))
