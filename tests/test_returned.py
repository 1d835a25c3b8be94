"""What comes back from annotation tools: boxes and states, or a sentence on each wrong row."""

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from annotator import answer_coco, answer_cvat, answer_deeplesion, answer_label_studio

from med_sslal.base.types import Prediction
from med_sslal.data.bad_samples import ListedError
from med_sslal.practice.answers import Answer, Query, QueryImage
from med_sslal.practice.formats.coco import coco_document
from med_sslal.practice.formats.label_studio import label_studio_tasks
from med_sslal.practice.returned import read_returned
from med_sslal.utils.errors import DataError

NO_BOXES, NO_LABELS = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
SIZES = ((640, 480), (1023, 767), (37, 41), (512, 512), (64, 64))


def query_of(query_id: str = "0123456789ab") -> Query:
    """A query of five images, the first of which is shown with a detection."""
    found = Prediction(
        np.array([[1, 2, 30, 40]], np.float32), np.array([1]), np.array([0.5], np.float32)
    )
    images = tuple(
        QueryImage(
            image_id=f"größe/{rank} x",
            file_name=f"{rank:04d}_gr_e_{rank}_x.png",
            source=f"{rank}.png",
            source_sha256=f"{rank:064x}",
            sha256=f"{rank + 16:064x}",
            width=width,
            height=height,
            rank=rank,
            blind=rank > 1,
            shown=found if rank == 1 else Prediction.empty(),
        )
        for rank, (width, height) in enumerate(SIZES, start=1)
    )
    return Query(query_id, "r", 1, 3, "m" * 64, "c" * 64, ("mass & more", "nodule"), images)


QUERY = query_of()
IDS = tuple(image.image_id for image in QUERY.images)


def answers_of(generator: np.random.Generator) -> list[Answer]:
    """Boxes on the first three images, among them one of a pixel and one of the whole image.

    The fourth is empty, the fifth skipped.
    """
    answers = []
    for image in QUERY.images[:3]:
        size = np.array([image.width, image.height] * 2)
        corners = generator.uniform(0, 1, (4, 4)) * (size - 1)
        low = np.minimum(corners[:, :2], corners[:, 2:])
        high = np.maximum(np.maximum(corners[:, :2], corners[:, 2:]), low + 1)
        boxes = np.concatenate([low, high], axis=1)
        boxes[0, 2:] = boxes[0, :2] + 1
        boxes[1] = [0, 0, image.width, image.height]
        labels = generator.integers(1, 3, 4)
        answers.append(
            Answer(image.image_id, "labelled", boxes.astype(np.float32), labels, "ann@clinic", 12.5)
        )
    for image_id, state in zip(IDS[3:], ("confirmed_empty", "skipped"), strict=True):
        answers.append(Answer(image_id, state, NO_BOXES, NO_LABELS, "ann@clinic", 3.0))
    return answers


def read(tmp_path: Path, text: str | bytes, query: Query = QUERY, **more: Any) -> list[Answer]:
    # A name tells nothing.
    path = tmp_path / "returned.bin"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_returned(path, query, **more)


Play = Callable[[Query, Sequence[Answer]], str]
FORMATS: dict[str, tuple[Play, dict[str, Any], float]] = {
    "label_studio": (answer_label_studio, {}, 0.01),
    "cvat": (answer_cvat, {}, 0.0051),
    "coco": (answer_coco, {"unmarked": "empty"}, 0.01),
    "deeplesion": (answer_deeplesion, {"unmarked": "empty"}, 0.01),
}
STATELESS = ("coco", "deeplesion")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", FORMATS)
def test_what_was_entered_comes_back(name: str, seed: int, tmp_path: Path) -> None:
    play, more, tolerance = FORMATS[name]
    entered = answers_of(np.random.default_rng(seed))
    found = read(tmp_path, play(QUERY, entered), **more)
    # Neither COCO nor a table has a state for what is skipped.
    kept = [each for each in entered if name not in STATELESS or each.state != "skipped"]
    assert [(each.image_id, each.state) for each in found] == [
        (each.image_id, each.state) for each in kept
    ]
    for back, given_ in zip(found, kept, strict=True):
        assert back.labels.tolist() == given_.labels.tolist()
        assert back.boxes.dtype == np.float32 and back.boxes.shape == given_.boxes.shape
        np.testing.assert_allclose(back.boxes, given_.boxes, rtol=0, atol=tolerance)
        assert back.annotation.n_objects == len(given_.labels)
        assert back.reader == ("" if name in STATELESS else "ann@clinic")
        assert back.seconds == (given_.seconds if name == "label_studio" else None)


@pytest.mark.parametrize("name", FORMATS)
def test_no_mark_is_pending_and_never_empty(name: str, tmp_path: Path) -> None:
    play = FORMATS[name][0]
    draft = Answer(IDS[1], "in_progress", NO_BOXES, NO_LABELS)
    entered = [*answers_of(np.random.default_rng(0))[:1], draft]
    text = play(QUERY, entered)
    if name == "coco":
        # As Label Studio and CVAT give what nobody has looked at.
        document = json.loads(text)
        document["images"].append(coco_document(QUERY, dict.fromkeys(IDS))["images"][1])
        text = json.dumps(document)
        states = [each.state for each in read(tmp_path, text, unmarked="empty")]
        assert states == ["labelled", "confirmed_empty"]
        with pytest.raises(DataError, match=r"1 image\(s\) have no box .*say --unmarked empty or"):
            read(tmp_path, text)
    found = read(tmp_path, text, unmarked="pending" if name in STATELESS else None)
    states = [each.state for each in found]
    assert states == ["labelled", *["in_progress"] * (name == "label_studio")]


TEXTS = {name: play(QUERY, answers_of(np.random.default_rng(0))) for name, (play, *_) in
         FORMATS.items()}  # fmt: skip


@pytest.mark.parametrize("code", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", FORMATS)
def test_any_unicode_is_read(name: str, code: str, tmp_path: Path) -> None:
    text = TEXTS[name].replace("encoding='utf-8'", f"encoding='{code.removesuffix('-sig')}'")
    found = read(tmp_path, text.encode(code), **FORMATS[name][1])
    assert len(found) == (4 if name in STATELESS else 5)


Change = Callable[[Any], object]


def region(tasks: Any) -> Any:
    return tasks[0]["annotations"][0]["result"][0]


def side(name: str, value: Any) -> Change:
    return lambda tasks: region(tasks)["value"].update({name: value})


def other_reader(tasks: Any, **more: Any) -> None:
    """A second annotation of the second task, without a box."""
    twin = copy.deepcopy(tasks[1]["annotations"][0])
    tasks[1]["annotations"].append(
        twin | {"completed_by": 5, "result": [], "updated_at": "2026-03-02T10:00:00Z"} | more
    )


LABEL_STUDIO: list[tuple[str, Change, str]] = [
    ("no data", lambda t: t[0].pop("data"), "no object 'data'"),
    ("other query", lambda t: t[0]["data"].update(query_id="f" * 12), "belongs to query 'ffff"),
    ("no query", lambda t: t[0]["data"].pop("query_id"), "belongs to query 'None'"),
    ("unknown", lambda t: t[0]["data"].update(image_id="../x"), r"'\.\./x' is not in query 0123"),
    ("sha256", lambda t: t[0]["data"].update(sha256="0"), "sha256 differs"),
    ("same twice", lambda t: t.append(t[0]), r"task \[5\]: .*comes a second time"),
    ("two answers", lambda t: t.append(t[0] | {"annotations": []}), "comes a second time"),
    ("went out", lambda t: t[0].pop("annotations"), "a list of objects 'annotations'"),
    ("no result", lambda t: t[0]["annotations"][0].pop("result"), "a list of objects 'result'"),
    ("cancelled", lambda t: t[0]["annotations"][0].update(was_cancelled=1), "was_cancelled must"),
    ("lead time", lambda t: t[0]["annotations"][0].update(lead_time=-1), "no time in seconds"),
    ("lead text", lambda t: t[0]["annotations"][0].update(lead_time="x"), "must be numbers"),
    ("two readers", other_reader, "2 annotations, by 'ann@clinic', '5': name the reader"),
    ("polygon", lambda t: region(t).update(type="polygonlabels"), "type 'polygonlabels'"),
    ("class", side("rectanglelabels", ["cyst"]), "unknown class 'cyst'; the classes are mass"),
    ("classes", side("rectanglelabels", ["nodule", "nodule"]), "must have one class"),
    ("rotated", side("rotation", 12.5), "rotated"),
    ("image rotated", lambda t: region(t).update(image_rotation=90), "rotated"),
    ("size", lambda t: region(t).update(original_width=641), "a picture of 641x480 pixels"),
    ("outside", side("x", 101), "lies outside its picture of 640x480"),
    ("left", side("x", -1), "lies outside"),
    ("inverted", side("width", -5), "no area"),
    ("thin", side("height", 0.1), "less than a pixel"),
    ("nan", side("x", float("nan")), "not finite"),
    ("infinite", side("width", float("inf")), "not finite"),
    ("text", side("y", "3"), "must be numbers"),
    ("truth", side("y", True), "must be numbers"),
    ("huge", side("y", 10**400), "must be numbers"),
]


@pytest.mark.parametrize(("change", "message"), [
    pytest.param(change, message, id=name) for name, change, message in LABEL_STUDIO
])  # fmt: skip
def test_wrong_rows_of_label_studio(change: Change, message: str, tmp_path: Path) -> None:
    tasks = json.loads(TEXTS["label_studio"])
    change(tasks)
    with pytest.raises(ListedError, match=message) as caught:
        read(tmp_path, json.dumps(tasks))
    (problem,) = caught.value.problems
    assert str(tmp_path / "returned.bin") in problem


def test_the_reader_who_counts(tmp_path: Path) -> None:
    tasks = json.loads(TEXTS["label_studio"])
    other_reader(tasks)
    text = json.dumps(tasks)
    for reader, state in (("5", "confirmed_empty"), ("ann@clinic", "labelled"), ("4", "labelled"),
                          ("newest", "confirmed_empty")):  # fmt: skip
        found = read(tmp_path, text, reader=reader)
        assert (found[0].state, found[1].state) == ("labelled", state)
    with pytest.raises(DataError, match="0 of them by reader 'bob'"):
        read(tmp_path, text, reader="bob")
    tasks[1]["annotations"][1]["updated_at"] = "yesterday"
    with pytest.raises(DataError, match="no updated_at that tells"):
        read(tmp_path, json.dumps(tasks), reader="newest")
    # What another one has cancelled does not count beside an answer.
    tasks[1]["annotations"][1]["was_cancelled"] = True
    assert read(tmp_path, json.dumps(tasks))[1].state == "labelled"


def mark(root: ElementTree.Element) -> ElementTree.Element:
    return root.findall("image")[0][0]


def frame(root: ElementTree.Element, number: int = 0) -> ElementTree.Element:
    return root.findall("image")[number]


def tagged(number: int, label: str) -> Change:
    return lambda root: ElementTree.SubElement(frame(root, number), "tag", label=label)


CVAT: list[tuple[str, Change, str]] = [
    ("other query", lambda r: setattr(r.find("meta/task/name"), "text", "query_" + "f" * 12),
     "belongs to query 'ffff"),
    ("unknown", lambda r: frame(r).set("name", "../0001_gr_e_1_x.png"), "is not in query"),
    ("no name", lambda r: frame(r).attrib.pop("name"), "'None' is not in query"),
    ("twice", lambda r: r.append(frame(r)), "comes a second time"),
    ("size", lambda r: frame(r).set("width", "64"), "a picture of 64.0x480.0 pixels"),
    ("no size", lambda r: frame(r).attrib.pop("width"), "must be numbers"),
    ("polygon", lambda r: setattr(mark(r), "tag", "polygon"), "type 'polygon'"),
    ("class", lambda r: mark(r).set("label", "cyst"), "unknown class 'cyst'"),
    ("state as box", lambda r: mark(r).set("label", "skipped"), "unknown class 'skipped'"),
    ("tag", tagged(4, "cyst"), "unknown tag 'cyst'"),
    ("boxes and empty", tagged(0, "confirmed_empty"), "confirmed_empty and labelled at once"),
    ("empty and skipped", tagged(3, "skipped"), "confirmed_empty and skipped at once"),
    ("rotated", lambda r: mark(r).set("rotation", "30.5"), "rotated"),
    ("outside", lambda r: mark(r).set("xbr", "641.00"), "lies outside"),
    ("inverted", lambda r: mark(r).set("xtl", "640.00"), "no area"),
    ("nan", lambda r: mark(r).set("ytl", "nan"), "not finite"),
    ("infinite", lambda r: mark(r).set("ybr", "inf"), "not finite"),
    ("text", lambda r: mark(r).set("ytl", "top"), "must be numbers"),
    ("missing", lambda r: mark(r).attrib.pop("ytl"), "must be numbers"),
    ("thin", lambda r: mark(r).set("xbr", f"{float(mark(r).attrib['xtl']) + 0.5:.2f}"),
     "less than a pixel"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), [
    pytest.param(change, message, id=name) for name, change, message in CVAT
])  # fmt: skip
def test_wrong_rows_of_cvat(change: Change, message: str, tmp_path: Path) -> None:
    root = ElementTree.fromstring(TEXTS["cvat"])
    change(root)
    with pytest.raises(ListedError, match=message) as caught:
        read(tmp_path, ElementTree.tostring(root))
    (problem,) = caught.value.problems
    assert str(tmp_path / "returned.bin") in problem


def first(key: str, **values: Any) -> Change:
    return lambda document: document[key][0].update(values)


COCO: list[tuple[str, Change, str]] = [
    ("other query", lambda d: d.update(info={"query_id": "f" * 12}), "belongs to query 'ffff"),
    ("unknown", first("images", file_name="images/../x.png"), "is not in query"),
    ("twice", lambda d: d["images"].append(d["images"][3] | {"id": 99}), "comes a second time"),
    ("no id", first("images", id="1"), "needs an id"),
    ("size", first("images", width=None), "a picture of Nonex480 pixels"),
    ("sha256", first("images", sha256="0"), "sha256 differs"),
    ("no image", first("annotations", image_id=99), "no image with id 99"),
    ("category", first("annotations", category_id=7), "unknown category_id 7"),
    ("class", first("annotations", category_id=8), "unknown class 'cyst'"),
    ("bbox", first("annotations", bbox=[1, 2, 3]), "bbox must be"),
    ("text", first("annotations", bbox=[1, 2, 3, "4"]), "bbox must be"),
    ("rotated", first("annotations", attributes={"rotation": 20.0}), "rotated"),
    ("crowd", first("annotations", iscrowd=1), "crowd"),
    ("outside", first("annotations", bbox=[600, 2, 50, 4]), "lies outside"),
    ("inverted", first("annotations", bbox=[600, 2, -50, 4]), "no area"),
    ("nan", first("annotations", bbox=[float("nan"), 2, 50, 4]), "not finite"),
    ("thin", first("annotations", bbox=[1, 2, 0.5, 4]), "less than a pixel"),
]


@pytest.mark.parametrize(("change", "message"), [
    pytest.param(change, message, id=name) for name, change, message in COCO
])  # fmt: skip
def test_wrong_rows_of_coco(change: Change, message: str, tmp_path: Path) -> None:
    document = json.loads(TEXTS["coco"])
    document["categories"].append({"id": 8, "name": "cyst"})
    change(document)
    # Whether an image without a box is empty is asked once every row is right.
    for unmarked in ("empty", None):
        with pytest.raises(DataError, match=message) as caught:
            read(tmp_path, json.dumps(document), unmarked=unmarked)
        assert str(tmp_path / "returned.bin") in str(caught.value)
        if isinstance(caught.value, ListedError):
            assert len(caught.value.problems) == 1


def test_every_wrong_row_is_listed(tmp_path: Path) -> None:
    tasks = json.loads(TEXTS["label_studio"])
    for task in tasks[:2]:
        for each in task["annotations"][0]["result"]:
            each["value"]["x"] = -50
    tasks[3]["data"]["sha256"] = ""
    with pytest.raises(ListedError, match=r"9 row\(s\) are wrong") as caught:
        read(tmp_path, json.dumps(tasks))
    assert len(set(caught.value.problems)) == 9
    assert f"task [1] (image '{IDS[1]}'), region 4: box (" in caught.value.problems[7]


def test_boxes_a_little_over_the_edge_are_cut(tmp_path: Path) -> None:
    tasks = json.loads(TEXTS["label_studio"])
    region(tasks)["value"].update(x=-0.09, y=-0.09, width=100.18, height=100.18)
    assert read(tmp_path, json.dumps(tasks))[0].boxes[0].tolist() == [0, 0, 640, 480]
    region(tasks)["value"].update(x=-0.11)
    with pytest.raises(DataError, match="lies outside"):
        read(tmp_path, json.dumps(tasks))


MIN = [{"image": "x", "id": 1, "image_id": IDS[0], "label": [], "annotator": 1, "annotation_id": 2}]
BOMB = '<!DOCTYPE a [<!ENTITY x "lol"><!ENTITY y "&x;&x;">]><annotations>&y;</annotations>'
LEAK = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><annotations>&x;</annotations>'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "neither JSON of", id="empty"),
        pytest.param("a,b\n1,2\n", "neither JSON of Label Studio or COCO, nor XML", id="table"),
        pytest.param(b"PK\x03\x04", "unpack it", id="archive"),
        pytest.param("[1, 2", "not valid JSON", id="cut JSON"),
        pytest.param("[" * 200_000, "not valid JSON", id="deep JSON"),
        pytest.param("<annotations>", "not valid XML", id="cut XML"),
        pytest.param(BOMB, "DOCTYPE", id="entity bomb"),
        pytest.param(LEAK, "DOCTYPE", id="external entity"),
        pytest.param("<annotation/>", "it is about 'annotation'", id="VOC"),
        pytest.param("<annotations/>", "of version 'None'", id="no version"),
        pytest.param("<?xml version='1.0' encoding='x'?><a/>", "not valid XML", id="encoding"),
        pytest.param("{}", "a list of objects 'images'", id="other JSON"),
        pytest.param(json.dumps(MIN), "JSON_MIN, which leaves skipped", id="JSON_MIN"),
        pytest.param(
            '{"info": {"contributor": "Label Studio"}, "images": []}',
            "Label Studio's COCO, which leaves skipped",
            id="COCO of Label Studio",
        ),
        pytest.param(
            json.dumps(coco_document(QUERY, dict.fromkeys(IDS))),
            "nobody has changed",
            id="coco.json",
        ),
        pytest.param(
            json.dumps(label_studio_tasks(QUERY, {key: [""] for key in IDS})),
            "a list of objects 'annotations'",
            id="label_studio.json",
        ),
    ],
)
def test_other_files(text: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, text)


def test_files_that_are_not_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no file"):
        read_returned(tmp_path, QUERY)
    size = len(TEXTS["cvat"].encode())
    assert read(tmp_path, TEXTS["cvat"], max_bytes=size)
    with pytest.raises(DataError, match=f"has {size} bytes, and at most {size - 1} are read"):
        read(tmp_path, TEXTS["cvat"], max_bytes=size - 1)
    for name in ("cvat", "label_studio"):
        with pytest.raises(DataError, match="leave --unmarked out"):
            read(tmp_path, TEXTS[name], unmarked="empty")
