"""The correction report: what a reader did with the boxes that a query showed, worked by hand."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotator import answer_label_studio
from practice_runs import killed, newest_query
from report_runs import make_run
from test_query_folder import pictures_of, selection_of
from test_report import Page, assert_alone

from med_sslal.__main__ import main
from med_sslal.base.types import Prediction
from med_sslal.data.voc import PascalVOC
from med_sslal.practice.answers import Answer, Query, QueryImage
from med_sslal.practice.corrections import Corrections, corrections, left_as_shown
from med_sslal.practice.query_folder import QueryFolder, read_query, write_query
from med_sslal.report.correction_page import write_corrections
from med_sslal.trainer.run_folder import RunFolder
from med_sslal.utils.errors import UserError

Box = tuple[float, float, float, float]
# x1, y1, x2, y2, label and, of a shown box, its score.
Row = tuple[float, ...]
CLASSES = ("mass & more", "nodule")
SQUARE: Box = (10, 10, 20, 20)


def boxes_of(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    table = np.array(rows, np.float32).reshape(len(rows), len(rows[0]) if rows else 6)
    boxes = table[:, :4].reshape(-1, 4)
    return boxes, table[:, 4:5].reshape(-1).astype(np.int64), table[:, 5:6].reshape(-1)


def query_of(shown: Mapping[str, Sequence[Row] | None]) -> Query:
    """A query of images of 100x80 pixels; None is a blind one."""
    images = tuple(
        QueryImage(
            name, f"{rank}_.png", name, "s", "c", 100, 80, rank, rows is None,
            Prediction(*boxes_of(rows or ())),
        )
        for rank, (name, rows) in enumerate(shown.items(), start=1)
    )  # fmt: skip
    return Query("0123456789ab", "r", 1, 3, "m" * 64, "c" * 64, CLASSES, images)


def answer_of(name: str, rows: Sequence[Row] | str, **more: Any) -> Answer:
    """Boxes, none of which are a confirmed empty image; or a state."""
    state = rows if isinstance(rows, str) else "labelled" if rows else "confirmed_empty"
    boxes, labels, _ = boxes_of(() if isinstance(rows, str) else rows)
    return Answer(name, state, boxes, labels, **more)  # type: ignore[arg-type]


def compare(shown: Sequence[Row], answered: Sequence[Row]) -> list[tuple[Any, ...]]:
    """Kind, labels, score and IoU of the changes of one image."""
    found = corrections(query_of({"a": shown}), {"a": answer_of("a", answered)})
    return [
        (
            change.kind,
            change.label,
            change.answered_label,
            None if change.score is None else round(change.score, 4),
            None if change.iou is None else round(change.iou, 4),
        )
        for change in found.changes
    ]


def test_a_box_left_as_it_was_shown_is_known() -> None:
    image = query_of({"a": [(*SQUARE, 1, 0.9), (40, 40, 60, 60, 2, 0.8)]}).images[0]
    near, wider = (10.4, 10, 20, 19.6), (9, 10, 20, 20)
    given = [(*near, 1), (*SQUARE, 2), (*wider, 1), (40, 40, 60, 60, 2), (70, 70, 80, 80, 1)]
    left = left_as_shown(image, answer_of("a", given))
    assert left.tolist() == [True, False, False, True, False]
    assert left_as_shown(image, answer_of("a", [])).tolist() == []
    (blind,) = query_of({"a": None}).images
    assert left_as_shown(blind, answer_of("a", given)).tolist() == [False] * 5


@pytest.mark.parametrize(
    ("shown", "answered", "changes"),
    [
        ([], [], []),
        ([(*SQUARE, 1, 0.5)], [(*SQUARE, 1)], [("untouched", 1, 1, 0.5, 1.0)]),
        # Half a pixel is rounding (9.5 x 10 of 10 x 10), a little more is not (9.25 of 10).
        ([(*SQUARE, 1, 0.5)], [(10.5, 10, 20, 20, 1)], [("untouched", 1, 1, 0.5, 0.95)]),
        ([(*SQUARE, 1, 0.5)], [(10.75, 10, 20, 20, 1)], [("moved", 1, 1, 0.5, 0.925)]),
        # IoU of a pixel's box that is rounded by a half each way: 0.25 / 1.75.
        ([(5, 5, 6, 6, 1, 0.5)], [(5.5, 5.5, 6.5, 6.5, 1)], [("untouched", 1, 1, 0.5, 0.1429)]),
        # Half of the box is IoU 0.5, and a match; a little less is none.
        ([(*SQUARE, 1, 0.5)], [(10, 10, 20, 15, 1)], [("moved", 1, 1, 0.5, 0.5)]),
        (
            [(*SQUARE, 1, 0.5)],
            [(10, 10, 20, 14.75, 1)],
            [("deleted", 1, None, 0.5, None), ("added", None, 1, None, None)],
        ),
        ([(*SQUARE, 2, 0.5)], [(*SQUARE, 1)], [("relabelled", 2, 1, 0.5, 1.0)]),
        ([(*SQUARE, 2, 0.5)], [(10, 10, 20, 16, 1)], [("relabelled", 2, 1, 0.5, 0.6)]),
        ([(*SQUARE, 1, 0.5)], [], [("deleted", 1, None, 0.5, None)]),
        ([], [(*SQUARE, 2)], [("added", None, 2, None, None)]),
        # Two shown boxes on one place: the class decides, whatever the score.
        (
            [(*SQUARE, 1, 0.9), (*SQUARE, 2, 0.4)],
            [(*SQUARE, 2)],
            [("deleted", 1, None, 0.9, None), ("untouched", 2, 2, 0.4, 1.0)],
        ),
        # Of one class and equal IoU the score decides, whatever the order.
        (
            [(*SQUARE, 1, 0.4), (*SQUARE, 1, 0.9)],
            [(*SQUARE, 1)],
            [("deleted", 1, None, 0.4, None), ("untouched", 1, 1, 0.9, 1.0)],
        ),
        # The box that fits better is met, not the first one; the other one is left.
        (
            [(10, 10, 20, 16, 1, 0.9), (10, 10, 20, 18, 1, 0.4)],
            [(*SQUARE, 1)],
            [("deleted", 1, None, 0.9, None), ("moved", 1, 1, 0.4, 0.8)],
        ),
        # One shown box stands for two objects: the better one.
        (
            [(*SQUARE, 1, 0.9)],
            [(10, 10, 20, 16, 1), (10, 10, 20, 17, 1)],
            [("moved", 1, 1, 0.9, 0.7), ("added", None, 1, None, None)],
        ),
        # A box of the class is met before a better one of the other.
        (
            [(*SQUARE, 2, 0.9), (10, 10, 20, 16, 1, 0.4)],
            [(*SQUARE, 1)],
            [("deleted", 2, None, 0.9, None), ("moved", 1, 1, 0.4, 0.6)],
        ),
    ],
)  # fmt: skip
def test_what_became_of_a_box(
    shown: list[Row], answered: list[Row], changes: list[tuple[Any, ...]]
) -> None:
    assert compare(shown, answered) == changes


@pytest.fixture
def read() -> Corrections:
    """Two readers, two classes, blind images, and every state."""
    query = query_of(
        {
            "z": [(*SQUARE, 1, 0.9), (30, 10, 40, 20, 1, 0.7), (50, 10, 60, 20, 2, 0.3)],
            "empty": [(*SQUARE, 2, 0.2)],
            "blind": None,
            "blind too": None,
            "skipped": [(*SQUARE, 1, 0.9)],
            "draft": [(*SQUARE, 1, 0.9)],
            "withdrawn": [(*SQUARE, 1, 0.9)],
            "pending": [(*SQUARE, 1, 0.9)],
            "long": [(*SQUARE, 2, 1.0)],
        }
    )
    first: list[Row] = [
        (*SQUARE, 1), (30, 10, 40, 18, 1), (50, 10, 60, 20, 1), (70, 10, 80, 20, 2)
    ]  # fmt: skip
    answers = [
        answer_of("z", first, reader="ada", seconds=40),
        answer_of("empty", [], reader="ada", seconds=600),
        answer_of("blind", [(*SQUARE, 1)], reader="ada", seconds=9),
        answer_of("blind too", [(*SQUARE, 1), (30, 10, 40, 20, 2)], reader="ben"),
        answer_of("skipped", "skipped", reader="ada", seconds=1),
        answer_of("draft", "in_progress"),
        answer_of("withdrawn", "withdrawn"),
        answer_of("long", [(*SQUARE, 2)], reader="ben", seconds=600.5),
        answer_of("of another query", [(*SQUARE, 1)]),
    ]
    return corrections(query, {answer.image_id: answer for answer in answers})


def test_counts_have_their_shares_beside_them(read: Corrections) -> None:
    content = read.to_json()
    assert content["images"] == {
        "labelled": 4, "confirmed_empty": 1, "skipped": 1, "in_progress": 1, "pending": 2,
    }  # fmt: skip
    assert [(c["image_id"], c["kind"]) for c in content["changes"]] == [
        ("z", "untouched"), ("z", "moved"), ("z", "relabelled"), ("z", "added"),
        ("empty", "deleted"), ("long", "untouched"),
    ]  # fmt: skip
    assert content["boxes"] == {
        "shown": 5, "kept": 3, "untouched": 2, "moved": 1, "relabelled": 1, "deleted": 1,
        "precision": 0.6, "mean_iou_moved": pytest.approx(0.8),
        "added": 1, "answered": 5, "recall": 0.6,
    }  # fmt: skip
    mass, nodule = (content["classes"][name] for name in CLASSES)
    keys = ("shown", "kept", "relabelled", "deleted", "added", "answered", "precision", "recall")
    # The relabelled nodule is a wrong nodule, and a mass that was missed.
    assert [mass[key] for key in keys] == [2, 2, 0, 0, 0, 3, 1.0, 2 / 3]
    assert [nodule[key] for key in keys] == [3, 1, 1, 1, 1, 2, 1 / 3, 0.5]
    bands = content["bands"]
    assert [(band["from"], band["to"]) for band in bands] == [
        (0.0, 0.3), (0.3, 0.5), (0.5, 0.7), (0.7, 0.9), (0.9, 1.0),
    ]  # fmt: skip
    assert [band["shown"] for band in bands] == [1, 1, 0, 1, 2]
    assert [band["precision"] for band in bands] == [0.0, 0.0, None, 1.0, 1.0]


def test_blind_images_are_counted_apart(read: Corrections) -> None:
    content = read.to_json()
    assert content["shown"] == {
        "images": 3, "boxes": 5, "boxes_per_image": 5 / 3,
        "timed_images": 2, "seconds_per_image": 320,
        "timed_images_with_box": 1, "seconds_per_box": 10,
    }  # fmt: skip
    assert content["blind"]["boxes_per_image"] == 1.5 and content["blind"]["timed_images"] == 1
    ada, ben = content["readers"].values()
    assert list(content["readers"]) == ["ada", "ben"]
    assert ada["boxes"]["shown"] == 4 and ben["boxes"]["shown"] == 1
    assert ben["shown"]["images"] == 1 and ben["shown"]["seconds_per_image"] is None
    assert ben["blind"]["boxes"] == 2 and ada["blind"]["boxes"] == 1


def test_nothing_answered_has_no_shares() -> None:
    query = query_of({"a": [(*SQUARE, 1, 0.9)], "b": None})
    for answers in ({}, {name: answer_of(name, "skipped") for name in "ab"}):
        content = corrections(query, answers).to_json()
        assert content["images"]["skipped"] == len(answers)
        assert content["boxes"]["shown"] == content["boxes"]["answered"] == 0
        assert content["boxes"]["precision"] is content["boxes"]["recall"] is None
        assert content["blind"]["boxes_per_image"] is None and content["readers"] == {}


NAMES = ("<b>", "moved", "right", "empty", "pending")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """That of a query whose images are all shown with the same boxes."""
    shown = Prediction(*boxes_of([(5, 5, 15, 15, 1, 0.9), (20, 5, 30, 15, 2, 0.6)]))
    query = write_query(
        tmp_path, pictures_of(tmp_path / "data", NAMES), selection_of(NAMES),
        dict.fromkeys(NAMES, shown), run="r", cycle=1, model_hash="m", config_hash="c",
        class_names=CLASSES,
    )  # fmt: skip
    return QueryFolder.named(tmp_path, query.query_id).path


def answers_to_it() -> dict[str, Answer]:
    right: list[Row] = [(5, 5, 15, 15, 1), (20, 5, 30, 15, 2)]
    rows: dict[str, list[Row]] = {
        "<b>": [(5, 5, 15, 15, 2), (30, 20, 35, 25, 1)],
        "moved": [(5, 5, 15, 13, 1), right[1]],
        "right": right,
        "empty": [],
    }
    return {
        name: answer_of(name, own, reader="<i>ada" if name == "<b>" else "", seconds=30)
        for name, own in rows.items()
    }


def test_the_page_has_the_figures_and_the_pictures_corrected_most(folder: Path) -> None:
    path = write_corrections(folder, read_query(folder), answers_to_it())
    content = json.loads((folder / "corrections.json").read_text())
    assert content.pop("format_version") == 1
    assert content == json.loads(
        json.dumps(corrections(read_query(folder), answers_to_it()).to_json())
    )
    page = Page(path)
    assert_alone(page)
    assert path.parent == folder and page.sections == ["boxes", "reading", "pictures"]
    assert "1 pending" in page.text
    assert "Readers kept 4 of the 8 boxes that they were shown on 4 image(s)." in page.text
    classes, bands, readers = page.tables["boxes"]
    assert classes[-1] == [
        "all", "8", "3", "1", "1", "3", "1", "0.50 4 of 8", "0.67 4 of 6", "0.80 of 1"
    ]  # fmt: skip
    assert [row[:2] for row in bands[1:]] == [
        ["0.3 to 0.5", "0"], ["0.5 to 0.7", "4"], ["0.7 to 0.9", "0"], ["0.9 to 1.0", "4"]
    ]  # fmt: skip
    assert bands[1][-2:] == ["\N{EN DASH} 0 of 0", "\N{EN DASH} of 0"]
    assert [row[0] for row in readers[1:]] == ["not named", "<i>ada"]
    pace = page.tables["reading"][0]
    assert pace[-2] == ["all", "shown", "4", "6", "1.50 on 4", "30.00 of 4", "15.00 of 3"]
    assert pace[-1][2:5] == ["0", "0", "\N{EN DASH} on 0"]
    text, places = page.texts["pictures"], []
    for caption in (
        "<b> 1 relabelled (mass & more to nodule), 1 deleted, 1 added",
        "empty 2 deleted",
        "moved 1 moved (IoU 0.80)",
    ):
        places.append(text.index(caption))
    assert places == sorted(places) and page.pictures() == 3
    kinds = [attrs.get("class") for name, attrs in page.elements if name == "rect"]
    # Of what was changed alone, and one of each in the key.
    assert kinds.count("found") == 5 + 1 and kinds.count("truth") == 3 + 1


def test_a_page_without_copies_or_answers_is_whole(folder: Path) -> None:
    query = read_query(folder)
    (folder / "images" / query.images[0].file_name).unlink()
    (folder / "images" / query.images[1].file_name).write_bytes(b"no picture")
    page = Page(write_corrections(folder, query, answers_to_it()))
    assert page.pictures() == 1 and "2 more image(s)" in page.texts["pictures"]
    # A later report takes the place of an earlier one.
    page = Page(write_corrections(folder, query, {}))
    assert "No image is answered yet." in page.text and page.pictures() == 0
    blind = query_of({"a": None})
    page = Page(write_corrections(folder, blind, {"a": answer_of("a", [(*SQUARE, 1)])}))
    assert "All answered images are blind" in page.text


def test_a_folder_that_is_gone_is_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write .*corrections\.json: No such file"):
        write_corrections(tmp_path / "gone", read_query(folder), {})


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has asked two queries with one image in both, which other boxes were shown on."""
    root = tmp_path_factory.mktemp("asked")
    run = make_run(
        root, classes=2, pseudo=False, config_changes={"oracle": {"type": "human", "args": {}}}
    )
    images = PascalVOC(str(root / "voc")).images
    names = RunFolder(run).cycle(0).pool
    left = json.loads(names.read_text())["unlabelled"][:2]
    for cycle, box in enumerate((SQUARE, (30, 30, 50, 50))):
        shown = Prediction(*boxes_of([(*box, 1, 0.8)]))
        folder = RunFolder(run).cycle(cycle)
        chosen = json.loads(folder.selection.read_text())
        write_query(
            folder.path, images, selection_of(tuple(left)),
            dict.fromkeys(left, shown), run=run.name, cycle=cycle, model_hash=chosen["model_hash"],
            config_hash=chosen["config_hash"], class_names=("class0", "class1"),
        )  # fmt: skip
    return run


def test_an_import_writes_the_report_and_the_run_page_tells_of_it(
    asked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def take(cycle: int, *rows: Sequence[Row] | str) -> Path:
        folder = RunFolder(asked).cycle(cycle).query
        assert folder is not None
        query = read_query(folder)
        file = asked.parent / "answers.json"
        answers = [
            answer_of(image.image_id, own) for image, own in zip(query.images, rows, strict=False)
        ]
        file.write_text(answer_label_studio(query, answers))
        assert main(["import", str(folder), str(file)]) == 0
        page = folder / "corrections.html"
        assert f"what was corrected: {page}\n" in capsys.readouterr().out
        return page

    def section() -> list[list[str]]:
        assert main(["report", str(asked)]) == 0
        page = Page(asked / "report.html")
        assert_alone(page)
        return page.tables["corrections"][0][1:] if "corrections" in page.sections else []

    assert section() == []
    assert Page(take(0, [(*SQUARE, 1)])).tables["boxes"][0][-1][:3] == ["all", "1", "1"]
    # The later query's answer to the same image is no answer to the boxes of the first one.
    page = Page(take(1, [(30, 30, 50, 50, 1), (*SQUARE, 1)], "skipped"))
    assert page.tables["boxes"][0][-1][:8] == ["all", "1", "1", "0", "0", "0", "1", "1.00 1 of 1"]
    assert section() == [
        ["0", "1 of 2", "0", "1", "1", "1", "0", "0", "0", "0", "1.00 1 of 1", "1.00 1 of 1"],
        ["1", "1 of 2", "1", "0", "1", "1", "0", "0", "0", "1", "1.00 1 of 1", "0.50 1 of 2"],
    ]
    # Taken back, and imported again from what the journal has.
    folder = RunFolder(asked).cycle(1).query
    assert folder is not None
    name = read_query(folder).images[0].image_id
    assert main(["import", str(folder), "--withdraw", name]) == 0
    assert section()[1][:5] == ["1", "0 of 2", "1", "1", "0"]
    assert "No image is answered yet." in (folder / "corrections.html").read_text()


def test_what_a_killed_import_leaves_is_removed(asked: Path) -> None:
    """It is killed between writing the report and giving it its name."""
    folder, query = newest_query(asked)
    file = asked.parent / "last.json"
    file.write_text(
        answer_label_studio(query, [answer_of(query.images[1].image_id, [(*SQUARE, 2)])])
    )
    assert killed(
        ["import", folder, file],
        lambda event, args: event == "os.rename" and "corrections.json" in str(args[1]),
    )
    assert list(folder.glob(".corrections*"))
    RunFolder(asked).clear_unfinished()
    assert not list(folder.glob(".*"))
    # The journal has the answers, and the same import again writes the report.
    assert main(["import", str(folder), str(file)]) == 0
    assert "<span>1 labelled</span>" in (folder / "corrections.html").read_text()
