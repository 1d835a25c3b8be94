"""The folder in which a query goes to a person: what is in it; it is there whole or not at all."""

import base64
import json
import multiprocessing
import os
import resource
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from med_sslal.base.types import ImageInfo, Prediction, Selected, Selection
from med_sslal.data.pictures import PictureImages
from med_sslal.practice.answers import Query
from med_sslal.practice.beside import Beside
from med_sslal.practice.query_folder import QueryFolder, data_uri, read_query, write_query
from med_sslal.utils.errors import ConfigError, DataError, UserError
from med_sslal.utils.util import remove_unfinished, sha256_file

CLASSES = ("mass & more", "nodule")
LONG = "/".join("xyz"[number] * 100 for number in range(3))
NAMES = ("a b", "a_b", "ärzte/größe 1", LONG, "../plain")
SHOWN = Prediction(
    np.array([[1.5, 2, 11.25, 14], [0, 0, 5, 5]], np.float32),
    np.array([2, 1]),
    np.array([0.75, 0.5], np.float32),
)


def pictures_of(root: Path, names: tuple[str, ...] = NAMES) -> PictureImages:
    """Pictures of 40x30 pixels, the last one grey; their ids are no names of their files."""
    root.mkdir()
    infos = {}
    for number, name in enumerate(names):
        pixels = np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        if number == len(names) - 1:
            pixels = pixels[..., 0]
        cv2.imwrite(str(root / f"{number}.png"), pixels)
        infos[name] = ImageInfo(name, "patient", f"{number}.png", (30, 40))
    return PictureImages(root, infos, {})


def selection_of(names: tuple[str, ...] = NAMES, seed: int = 3) -> Selection:
    items = tuple(
        Selected(name, rank, "patient", {"doubt": 0.5 / rank if rank > 1 else float("nan")}, "why")
        for rank, name in enumerate(names, start=1)
    )
    return Selection(items, {}, ("doubt", "k_means"), seed, None)


def write(parent: Path, images: PictureImages, **more: Any) -> Query:
    """Write a query of all images, the first two of which have detections."""
    names = tuple(images.infos)
    given: dict[str, Any] = {"run": "r", "cycle": 1, "model_hash": "m" * 64, "config_hash": "c"}
    given |= {"class_names": CLASSES, "shown": dict.fromkeys(names[:2], SHOWN)} | more
    selection = selection_of(names, given.pop("seed", 3))
    shown: Mapping[str, Prediction] = given.pop("shown")
    return write_query(parent, images, selection, shown, **given)


def as_plain(query: Query) -> dict[str, Any]:
    """To compare two: arrays do not."""
    images = [vars(image) | {"shown": None} for image in query.images]
    return vars(query) | {"images": images}


@pytest.fixture
def images(tmp_path: Path) -> PictureImages:
    return pictures_of(tmp_path / "data")


def test_the_copies_are_the_pictures(images: PictureImages, tmp_path: Path) -> None:
    query = write(tmp_path / "queries", images)
    folder = QueryFolder.named(tmp_path / "queries", query.query_id)
    assert {image.file_name for image in query.images} == {
        path.name for path in folder.images.iterdir()
    }
    for rank, image in enumerate(query.images, start=1):
        copy = folder.images / image.file_name
        pixels = cv2.imread(str(copy), cv2.IMREAD_UNCHANGED)
        original = images.path(image.image_id)
        assert (pixels == cv2.imread(str(original), cv2.IMREAD_UNCHANGED)).all()
        assert image.file_name.startswith(f"{rank:04d}_") and len(image.file_name) <= 100
        assert image.file_name.isascii() and ".." not in image.file_name and image.rank == rank
        assert image.sha256 == sha256_file(copy)
        assert image.source_sha256 == sha256_file(original)
        assert image.source == images.infos[image.image_id].file_name
        assert (image.width, image.height) == (40, 30)


def test_the_manifest_reads_back(images: PictureImages, tmp_path: Path) -> None:
    query = write(tmp_path, images)
    back = read_query(QueryFolder.named(tmp_path, query.query_id).path)
    assert as_plain(back) == as_plain(query)
    for mine, other in zip(query.images, back.images, strict=True):
        for name, column in vars(mine.shown).items():
            there = getattr(other.shown, name)
            assert there.dtype == column.dtype and np.array_equal(there, column)


def test_the_tools_are_given_the_same_boxes(images: PictureImages, tmp_path: Path) -> None:
    query = write(tmp_path, images)
    folder = QueryFolder.named(tmp_path, query.query_id)
    coco = json.loads(folder.coco.read_text())
    assert [row["bbox"] for row in coco["annotations"][:2]] == [[1.5, 2, 9.75, 12], [0, 0, 5, 5]]
    assert [row["category_id"] for row in coco["annotations"]] == [2, 1] * 2
    assert coco["annotations"][0]["segmentation"] == []
    assert [row["al_score"] for row in coco["images"][:2]] == [None, 0.25]
    first, *_, last = json.loads(folder.label_studio.read_text())
    assert first["data"]["sha256"] == query.images[0].sha256 and first["meta"] == {"rank": 1}
    (prediction,) = first["predictions"]
    assert last["predictions"] == []
    value = prediction["result"][0]["value"]
    assert value == {
        **{"x": 3.75, "y": pytest.approx(20 / 3), "width": 24.375, "height": 40},
        **{"rotation": 0, "rectanglelabels": ["nodule"]},
    }
    copy = folder.images / query.images[0].file_name
    where = f"query_{query.query_id}/images/{copy.name}"
    assert first["data"]["image"] == f"/data/local-files/?d={where}"
    kind, _, code = data_uri(copy).partition(",")
    assert kind == "data:image/png;base64" and base64.b64decode(code) == copy.read_bytes()
    view = ElementTree.fromstring(folder.labeling_config.read_text())
    assert [label.get("value") for label in view.iter("Label")] == list(CLASSES)
    labels = json.loads(folder.cvat_labels.read_text())
    assert [(label["name"], label["type"]) for label in labels] == [
        *((name, "rectangle") for name in CLASSES),
        *((name, "tag") for name in ("confirmed_empty", "skipped")),
    ]


def test_the_readme_names_the_steps_and_no_place(images: PictureImages, tmp_path: Path) -> None:
    query = write(tmp_path, images)
    folder = QueryFolder.named(tmp_path, query.query_id)
    text = folder.readme.read_text()
    name = folder.path.name
    for words in (
        "python -m med_sslal import FOLDER FILE",
        "python -m med_sslal query push FOLDER --url",
        "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT",
        f'{{"project": ID, "path": "ROOT/{name}", "use_blob_urls": true}}',
        "exportType=JSON&download_all_tasks=true",
        "--unmarked pending",
    ):
        assert words in text
    task = json.loads(folder.label_studio.read_text())[0]
    assert task["data"]["image"] == f"/data/local-files/?d={name}/images/0001__._plain.png"
    for path in folder.path.rglob("*.*"):
        assert str(tmp_path).encode() not in path.read_bytes()


def test_a_share_is_shown_nothing(images: PictureImages, tmp_path: Path) -> None:
    shown = dict.fromkeys(NAMES, SHOWN)
    drawn = set()
    for seed in range(6):
        query, again = (write(tmp_path, images, shown=shown, blind=0.4, seed=seed) for _ in "ab")
        blind = [image.image_id for image in query.images if image.blind]
        assert len(blind) == 2
        assert all(bool(len(image.shown.labels)) != image.blind for image in query.images)
        assert blind == [image.image_id for image in again.images if image.blind]
        assert query.query_id != again.query_id
        drawn.add(tuple(blind))
    assert len(drawn) > 1


def series_of(root: Path) -> PictureImages:
    """Three slices of a series in 16-bit grey, the first of which is missing; and one of none."""
    root.mkdir()
    infos = {}
    for name, place in {"b": ("s", 2), "c": ("s", 3), "d": ("s", 4), "x": (None, None)}.items():
        pixels = np.full((30, 40), 900 + 100 * (place[1] or 0), np.uint16)
        cv2.imwrite(str(root / f"{name}.png"), pixels)
        infos[name] = ImageInfo(name, "p", f"{name}.png", (30, 40), None, *place)
    return PictureImages(root, infos, {}, (0, 2000))


def test_there_is_more_to_look_at_beside_an_image(tmp_path: Path) -> None:
    images = series_of(tmp_path / "data")
    beside = Beside([(1000, 1300), (-500.5, 1500)], neighbours=1)
    query = write(tmp_path, images, beside=beside, box_padding_px=5.0)
    folder = QueryFolder.named(tmp_path, query.query_id)
    windows = {"window_1000_1300", "window_-500.5_1500"}
    expected = {
        "b": {"slice_after_1"},
        "c": {"slice_before_1", "slice_after_1"},
        "d": {"slice_before_1"},
        "x": set[str](),
    }
    values = {"b": 1100, "c": 1200, "d": 1300, "x": 900}

    def grey(path: Path) -> int:
        return int(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[15, 20])

    for image in query.images:
        # As CVAT looks for them: the file's name with underscores, beside the images.
        place = folder.images / "related_images" / image.file_name.replace(".", "_")
        own = values[image.image_id]
        assert grey(folder.images / image.file_name) == round(own / 2000 * 255)
        assert {path.stem for path in place.iterdir()} == windows | expected[image.image_id]
        assert grey(place / "window_1000_1300.png") == round(max(0, own - 1000) / 300 * 255)
        assert grey(place / "window_-500.5_1500.png") == round((own + 500.5) / 2000.5 * 255)
        for name in expected[image.image_id]:
            there = own + (100 if name == "slice_after_1" else -100)
            assert grey(place / f"{name}.png") == round(there / 2000 * 255)
    tasks = json.loads(folder.label_studio.read_text())
    for image, task in zip(query.images, tasks, strict=True):
        place = f"query_{query.query_id}/images/related_images"
        names = sorted(windows | expected[image.image_id])
        stem = image.file_name.replace(".", "_")
        wanted = [f"/data/local-files/?d={place}/{stem}/{name}.png" for name in names]
        assert task["data"]["beside"] == wanted
    view = ElementTree.fromstring(folder.labeling_config.read_text())
    assert [image.get("valueList") for image in view.iter("Image")] == [None, "$beside"]
    assert json.loads(folder.manifest.read_text())["window"] == [0, 2000]
    assert read_query(folder.path).box_padding_px == 5
    assert "widened by 5 pixels" in folder.readme.read_text()
    assert "related_images" in folder.readme.read_text()


def test_nothing_lies_beside_unless_it_is_asked_for(images: PictureImages, tmp_path: Path) -> None:
    query = write(tmp_path, images)
    folder = QueryFolder.named(tmp_path, query.query_id)
    assert not folder.related_images.exists()
    text = folder.readme.read_text()
    assert "related_images" not in text and "widened" not in text


def test_what_cannot_go_out_is_refused(images: PictureImages, tmp_path: Path) -> None:
    queries = tmp_path / "queries"
    with pytest.raises(ConfigError, match="a class is named 'skipped'"):
        write(queries, images, class_names=("mass", "skipped"))
    assert not queries.exists()
    images.path(NAMES[-2]).unlink()
    with pytest.raises(DataError, match=r"cannot read image file .*3\.png"):
        write(queries, images)
    assert not any(queries.iterdir())


def test_a_full_disk_leaves_nothing(images: PictureImages, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        # Room for the copies, and for no more.
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
        with pytest.raises(UserError, match=r"cannot write .*\.json: File too large"):
            write(tmp_path / "queries", images)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not any((tmp_path / "queries").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the query's folder"):
        write(tmp_path / "file", images)


class Deadly(PictureImages):
    """Images whose last one ends the process."""

    def picture(self, image_id: str) -> np.ndarray:
        if image_id == max(self.infos):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().picture(image_id)


def test_a_kill_leaves_nothing_that_is_taken_for_a_query(
    images: PictureImages, tmp_path: Path
) -> None:
    deadly = Deadly(images.root, images.infos, {})
    process = multiprocessing.get_context("fork").Process(
        target=write, args=(tmp_path / "queries", deadly)
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    (left,) = (tmp_path / "queries").iterdir()
    assert left.name.startswith(".query_") and len(list(left.rglob("*.png"))) == len(NAMES) - 1
    remove_unfinished(tmp_path / "queries")
    assert not any((tmp_path / "queries").iterdir())


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        pytest.param(("format_version",), 2, "update the program", id="newer"),
        pytest.param(("query_id",), "../x", "no id of a query", id="id"),
        pytest.param(("seed",), "3", "no int", id="type"),
        pytest.param(("box_padding_px",), -1, "box_padding_px is -1", id="padding"),
        pytest.param(("class_names",), ["x", "x"], "comes twice", id="class twice"),
        pytest.param(("class_names",), ["x"], "unknown class", id="class gone"),
        pytest.param(("images", 0, "file_name"), "../x.png", "no file name", id="file name"),
        pytest.param(("images", 0, "image_id"), "a b", "comes twice", id="image twice"),
        pytest.param(("images", 0, "width"), 0, "below 1", id="size"),
        pytest.param(("images", 0, "shown", "labels"), [1], "differ in length", id="columns"),
        pytest.param(("images", 0, "shown", "labels"), [0, 1], "bad number", id="label"),
        pytest.param(("images", 0, "shown", "scores"), ["x", 1], "damaged", id="score"),
        pytest.param(("images", 0, "shown", "scores"), [1e300, 1], "bad number", id="too large"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_damaged_manifest(
    place: tuple[Any, ...], value: Any, message: str, images: PictureImages, tmp_path: Path
) -> None:
    folder = QueryFolder.named(tmp_path, write(tmp_path, images).query_id)
    content = holder = json.loads(folder.manifest.read_text())
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    folder.manifest.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        read_query(folder.path)
