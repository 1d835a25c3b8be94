"""Pascal VOC and COCO from files, good and bad."""

import json
import logging
import os
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest

from med_sslal.config.signature import wrong_arguments
from med_sslal.data.coco import COCO
from med_sslal.data.voc import PascalVOC
from med_sslal.utils.errors import DataError

DATA = os.environ.get("MED_SSLAL_TEST_DATA")
NEEDS_BCCD = pytest.mark.skipif(
    not DATA or not (Path(DATA) / "bccd").is_dir(),
    reason="MED_SSLAL_TEST_DATA with the folder bccd is not set",
)
LISTS = {"train": "train.txt", "val": "val.txt", "test": "test.txt"}
NAN = float("nan")


def picture(path, height=30, width=40, dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    high = np.iinfo(dtype).max
    cv2.imwrite(str(path), np.full((height, width, 3), high // 4, dtype=dtype))


def voc_object(name="cell", box=(5, 6, 20, 18), difficult=0):
    tags = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    corners = "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags)
    return (
        f"<object><name>{name}</name><difficult>{difficult}</difficult>"
        f"<bndbox>{corners}</bndbox></object>"
    )


def voc(root, objects=None, n=6):
    """Write n images p1_0, p1_1, p2_0, ... with one object each, or the given ones in the first."""
    for i in range(n):
        name = f"p{i // 2 + 1}_{i % 2}"
        picture(root / "JPEGImages" / f"{name}.png")
        body = objects if objects is not None and i == 0 else [voc_object()]
        path = root / "Annotations" / f"{name}.xml"
        path.parent.mkdir(exist_ok=True)
        size = "<size><width>40</width><height>30</height></size>"
        path.write_text(f"<annotation>{size}{''.join(body)}</annotation>")
    return str(root)


def write_lists(root, **lists):
    folder = root / "ImageSets" / "Main"
    folder.mkdir(parents=True)
    for name, ids in lists.items():
        (folder / f"{name}.txt").write_text("".join(f"{i}\n" for i in ids))


def coco_document(n=6, boxes=None):
    """n images a/p0.png ... with one box each, or the given annotations on the first."""
    one = {"category_id": 7, "bbox": [4, 5, 16, 13]}
    rows = [{"image_id": 100 + i, **one} for i in range(n) if boxes is None or i > 0]
    rows += [{"image_id": 100, **one, **row} for row in boxes or []]
    return {
        "images": [
            {
                "id": 100 + i,
                "file_name": f"a/p{i}.png",
                "width": 40,
                "height": 30,
                "patient": i // 2,
            }
            for i in range(n)
        ],
        "annotations": [{"id": k, **row} for k, row in enumerate(rows)],
        "categories": [{"id": 9, "name": "nodule"}, {"id": 7, "name": "mass"}],
    }


def coco(root, document=None, name="annotations.json"):
    document = document or coco_document()
    for i in range(len(document["images"])):
        picture(root / "images" / "a" / f"p{i}.png")
    (root / name).write_text(json.dumps(document))
    return str(root)


def read_coco(root, **args):
    return COCO(root, **({"annotations": "annotations.json"} | args))


def test_voc_converts_boxes(tmp_path):
    objects = [voc_object(box=(1, 1, 40, 30)), voc_object("blob", (5, 6, 20, 18), difficult=1)]
    data = PascalVOC(voc(tmp_path, objects))
    label = data.labels.annotations["p1_0"]
    assert data.labels.class_names == ("blob", "cell")
    assert label.boxes.tolist() == [[0, 0, 40, 30], [4, 5, 20, 18]]
    assert label.labels.tolist() == [2, 1]
    assert label.ignore.tolist() == [False, True]
    info = data.images.infos["p1_0"]
    assert (info.orig_size, info.file_name) == ((30, 40), "JPEGImages/p1_0.png")
    data.check_num_classes(3)


def test_voc_class_order_from_config(tmp_path):
    data = PascalVOC(voc(tmp_path, [voc_object("blob")]), classes=["cell", "blob"])
    assert data.labels.annotations["p1_0"].labels.tolist() == [2]


def test_colours_are_rgb_between_0_and_1(tmp_path):
    data = PascalVOC(voc(tmp_path))
    path = tmp_path / "JPEGImages" / "p1_0.png"
    cv2.imwrite(str(path), np.full((30, 40, 3), (0, 51, 255), dtype=np.uint8))
    image = data.images.read("p1_0")
    assert image.shape == (30, 40, 3)
    assert image.dtype == np.float32
    np.testing.assert_allclose(image[0, 0], (1.0, 0.2, 0.0), atol=1e-6)


def test_grey_pictures_have_three_channels(tmp_path):
    data = PascalVOC(voc(tmp_path))
    cv2.imwrite(str(tmp_path / "JPEGImages" / "p1_0.png"), np.full((30, 40), 51, dtype=np.uint8))
    np.testing.assert_allclose(data.images.read("p1_0"), np.full((30, 40, 3), 0.2), atol=1e-6)


def test_voc_split_by_patient(tmp_path):
    root = voc(tmp_path, n=12)
    data = PascalVOC(root, group_pattern=r"^(p\d+)_", eval_split=0.5)
    patients = {
        name: {data.images.infos[i].group_id for i in ids}
        for name, ids in data.images.splits.items()
        if ids
    }
    assert sum(map(len, patients.values())) == len(set.union(*patients.values())) == 6
    assert sorted(sum(data.images.splits.values(), ())) == list(data.images.infos)
    again = PascalVOC(root, group_pattern=r"^(p\d+)_", eval_split=0.5)
    assert again.images.fingerprint() == data.images.fingerprint()
    other = PascalVOC(root, group_pattern=r"^(p\d+)_", eval_split=0.5, split_seed=3)
    assert other.images.splits != data.images.splits


def test_voc_split_by_lists(tmp_path):
    root = voc(tmp_path)
    write_lists(tmp_path, train=["p1_0", "p1_1  1"], val=["p2_1"], test=["p3_0"])
    data = PascalVOC(root, split_lists=LISTS)
    assert data.images.splits == {"train": ("p1_0", "p1_1"), "val": ("p2_1",), "test": ("p3_0",)}
    assert sorted(data.images.infos) == ["p1_0", "p1_1", "p2_1", "p3_0"]


@pytest.mark.parametrize(
    ("lists", "args", "text"),
    [
        pytest.param({"val": ["p1_0"]}, {}, "image 'p1_0' is in split 'train'", id="image twice"),
        pytest.param(
            {"val": ["p1_1"]}, {"group_pattern": "(p.)"}, "patient.*'p1'", id="patient twice"
        ),
        pytest.param({"val": []}, {}, "split 'val' has no image", id="empty list"),
        pytest.param({"val": ["zz"]}, {}, "'zz' has no picture", id="listed and absent"),
    ],
)
def test_voc_bad_lists(tmp_path, lists, args, text):
    root = voc(tmp_path)
    write_lists(tmp_path, **({"train": ["p1_0"], "val": ["p2_0"], "test": ["p3_0"]} | lists))
    with pytest.raises(DataError, match=text):
        PascalVOC(root, split_lists=LISTS, **args)


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        pytest.param(voc_object(box=(5, 5, 5, 9)), "no area", id="zero-area"),
        pytest.param(voc_object(box=(9, 5, 5, 9)), "no area", id="corners swapped"),
        pytest.param(voc_object(box=("nan", 5, 7, 9)), "not finite", id="NaN"),
        pytest.param(voc_object(box=(5, 5, "inf", 9)), "not finite", id="infinite"),
        pytest.param(voc_object(box=(5, 5, "x", 9)), "must be numbers", id="text"),
        pytest.param(voc_object(box=(5, 5, "", 9)), "must be numbers", id="empty"),
        pytest.param(voc_object(box=(30, 5, 80, 9)), "outside", id="outside"),
        pytest.param(voc_object(box=(50, 5, 80, 9)), "outside", id="wholly outside"),
        pytest.param(voc_object("blob"), "unknown class 'blob'", id="class"),
        pytest.param(voc_object(""), "no class name", id="no class"),
    ],
)
def test_voc_bad_box(tmp_path, caplog, bad, text):
    root = voc(tmp_path, [voc_object(), bad])
    with pytest.raises(DataError, match=text) as caught:
        PascalVOC(root, classes=["cell"])
    assert "p1_0.xml, object 2" in str(caught.value)
    with caplog.at_level(logging.WARNING):
        data = PascalVOC(root, classes=["cell"], on_bad_sample="skip")
    assert data.labels.annotations["p1_0"].boxes.tolist() == [[4, 5, 20, 18]]
    assert len(data.images.infos) == 6, "the image stays"
    assert "1 bad sample(s) skipped" in caplog.text


def test_voc_lists_all_problems_at_once(tmp_path):
    root = voc(tmp_path, [voc_object(box=(5, 5, 5, 9)), voc_object("blob")])
    (tmp_path / "JPEGImages" / "p2_0.png").write_bytes(b"")
    with pytest.raises(DataError, match="3 bad sample") as caught:
        PascalVOC(root, classes=["cell"])
    assert all(word in str(caught.value) for word in ("no area", "blob", "p2_0.png"))


def test_box_over_the_edge_is_clipped(tmp_path):
    data = PascalVOC(voc(tmp_path, [voc_object(box=(0, -2, 20, 18))]))
    assert data.labels.annotations["p1_0"].boxes.tolist() == [[0, 0, 20, 18]]


def test_voc_image_without_boxes(tmp_path):
    data = PascalVOC(voc(tmp_path, []))
    assert data.labels.annotations["p1_0"].boxes.shape == (0, 4)


BOMB = """<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x "lol"><!ENTITY y "&x;&x;&x;">]>
<annotation><object><name>&y;</name></object></annotation>"""
LEAK = """<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]>
<annotation><object><name>&x;</name></object></annotation>"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(BOMB, "DOCTYPE", id="entity bomb"),
        pytest.param(BOMB.encode("utf-16"), "DOCTYPE", id="entity bomb in UTF-16"),
        pytest.param(LEAK, "DOCTYPE", id="external entity"),
        pytest.param("<annotation>", "not valid XML", id="truncated"),
        pytest.param(
            "<a><size><width>80</width><height>60</height></size></a>", "80x60", id="other size"
        ),
    ],
)
def test_voc_bad_xml(tmp_path, text, message):
    root = voc(tmp_path)
    path = tmp_path / "Annotations" / "p1_0.xml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message):
        PascalVOC(root)
    assert len(PascalVOC(root, on_bad_sample="skip").images.infos) == 5


@pytest.mark.parametrize("kind", ["missing", "truncated", "no picture", "16 bits"])
def test_bad_picture(tmp_path, kind):
    root = voc(tmp_path)
    path = tmp_path / "JPEGImages" / "p1_0.png"
    if kind == "missing":
        path.unlink()
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:-20])
    elif kind == "no picture":
        path.write_text("hello")
    else:
        picture(path, dtype=np.uint16)
    with pytest.raises(DataError, match="p1_0"):
        PascalVOC(root)
    data = PascalVOC(root, on_bad_sample="skip")
    assert "p1_0" not in data.images.infos
    assert len(data.images.infos) == 5


def test_voc_of_16_bits(tmp_path):
    root = voc(tmp_path)
    for path in (tmp_path / "JPEGImages").iterdir():
        cv2.imwrite(str(path), np.full((30, 40), 1500, dtype=np.uint16))
    data = PascalVOC(root, window=(1000, 2000))
    np.testing.assert_allclose(data.images.read("p1_0"), np.full((30, 40, 3), 0.5), atol=1e-6)
    # Of bad files alone there is no class either, which is not what is wrong.
    with pytest.raises(DataError, match=r"6 bad sample(.|\n)*set dataset\.args\.window"):
        PascalVOC(root)


def test_picture_replaced_after_opening(tmp_path):
    data = PascalVOC(voc(tmp_path))
    picture(tmp_path / "JPEGImages" / "p1_0.png", height=10, width=10)
    with pytest.raises(DataError, match="10x10 pixels now"):
        data.images.read("p1_0")


@pytest.mark.parametrize(
    ("args", "text"),
    [
        pytest.param({"classes": []}, "classes", id="no class"),
        pytest.param({"classes": ["cell", "cell"]}, "classes", id="class twice"),
        pytest.param({"group_pattern": "("}, "group_pattern", id="no regex"),
        pytest.param({"group_pattern": "^p"}, "group_pattern", id="regex without group"),
        pytest.param({"split_lists": {"train": "train.txt"}}, "split_lists", id="lists missing"),
        pytest.param({"eval_split": 0.0}, "eval_split", id="nothing held out"),
        pytest.param({"images": "../x"}, "images", id="leaves the root"),
        pytest.param({"annotations": "/etc"}, "annotations", id="absolute"),
    ],
)
def test_voc_bad_arguments(args, text):
    [wrong] = wrong_arguments(PascalVOC, {"root": "nowhere", **args})
    assert wrong.name == text and "; allowed: " in wrong.message


def test_folders_that_are_links(tmp_path):
    """Large pictures lie elsewhere; what an annotation file names must still lie in there."""
    root = tmp_path / "voc"
    voc(root)
    (root / "JPEGImages").rename(tmp_path / "elsewhere")
    (root / "JPEGImages").symlink_to(tmp_path / "elsewhere")
    dataset = PascalVOC(str(root), eval_split=0.4)
    assert dataset.images.read(next(iter(dataset.images.infos))).ndim == 3


@pytest.mark.parametrize(
    ("kind", "below"),
    [(PascalVOC, "Annotations"), (partial(COCO, annotations="a.json", images="png"), "png")],
    ids=["voc", "coco"],
)
def test_missing_roots(tmp_path, kind, below):
    root = tmp_path / "nowhere"
    for gone in (root, root / below):
        with pytest.raises(DataError, match=f"{gone} does not exist; .*dataset.args.root"):
            kind(str(root))
        root.mkdir(exist_ok=True)


def test_list_outside_the_root(tmp_path):
    root = voc(tmp_path)
    with pytest.raises(DataError, match="leads out"):
        PascalVOC(root, split_lists=LISTS | {"train": "../../../x.txt"})


@NEEDS_BCCD
def test_bccd(caplog):
    root = str(Path(DATA) / "bccd")
    with pytest.raises(DataError, match="2 bad sample") as caught:
        PascalVOC(root)
    assert "BloodImage_00338.xml" in str(caught.value)
    assert "BloodImage_00343.xml" in str(caught.value)
    classes = ["RBC", "WBC", "Platelets"]
    with caplog.at_level(logging.WARNING):
        data = PascalVOC(root, classes=classes, split_lists=LISTS, on_bad_sample="skip")
    assert "2 bad sample(s) skipped" in caplog.text
    assert len(data.images.infos) == 364
    assert {name: len(ids) for name, ids in data.images.splits.items()} == {
        "train": 205,
        "val": 87,
        "test": 72,
    }
    counts = np.bincount(np.concatenate([a.labels for a in data.labels.annotations.values()]))
    assert counts.tolist() == [0, 4153, 372, 361]
    boxes = np.concatenate([a.boxes for a in data.labels.annotations.values()])
    # 1-based files: the edge is reached on both sides, and nothing beyond it.
    assert boxes.min() == 0
    assert boxes[:, 2].max() == 640
    assert boxes[:, 3].max() == 480
    assert data.images.read("BloodImage_00000").shape == (480, 640, 3)


def test_coco_reads_boxes_and_ids(tmp_path):
    rows = [{}, {"category_id": 9, "bbox": [0, 0, 40, 30.0], "iscrowd": 1}]
    data = read_coco(coco(tmp_path, coco_document(boxes=rows)))
    assert data.labels.class_names == ("mass", "nodule"), "in order of the category ids"
    assert list(data.images.infos) == [f"a/p{i}" for i in range(6)]
    label = data.labels.annotations["a/p0"]
    assert label.boxes.tolist() == [[4, 5, 20, 18], [0, 0, 40, 30]]
    assert label.labels.tolist() == [1, 2]
    assert label.ignore.tolist() == [False, True]
    assert data.images.infos["a/p0"].file_name == "images/a/p0.png"
    assert data.images.read("a/p0").shape == (30, 40, 3)


def test_coco_image_without_boxes(tmp_path):
    data = read_coco(coco(tmp_path, coco_document(boxes=[])))
    assert data.labels.annotations["a/p0"].boxes.shape == (0, 4)


@pytest.mark.parametrize("nothing", [None, 0])
def test_coco_sizes_that_say_nothing(tmp_path, nothing):
    document = coco_document()
    document["images"][0] |= {"height": nothing, "width": nothing}
    data = read_coco(coco(tmp_path, document))
    assert data.images.infos["a/p0"].orig_size == (30, 40)


def test_coco_split_by_patient(tmp_path):
    data = read_coco(coco(tmp_path, coco_document(8)), group_key="patient", eval_split=0.5)
    for i in range(0, 8, 2):
        sides = [
            name for name, ids in data.images.splits.items() if {f"a/p{i}", f"a/p{i + 1}"} & {*ids}
        ]
        assert len(sides) == 1


def test_coco_order_of_the_file_does_not_matter(tmp_path):
    document = coco_document()
    root = coco(tmp_path, document)
    reference = read_coco(root)
    document["images"].reverse()
    coco(tmp_path, document)
    assert read_coco(root).images.fingerprint() == reference.images.fingerprint()


def test_coco_one_file_per_split(tmp_path):
    document = coco_document()
    coco(tmp_path, document)
    files = {}
    for name, part in (("train", slice(0, 4)), ("val", slice(4, 5)), ("test", slice(5, 6))):
        images = document["images"][part]
        ids = {image["id"] for image in images}
        rows = [row for row in document["annotations"] if row["image_id"] in ids]
        content = document | {"images": images, "annotations": rows}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        files[name] = f"{name}.json"
    data = COCO(str(tmp_path), annotations=files)
    assert data.images.splits["val"] == ("a/p4",)
    assert len(data.images.splits["train"]) == 4
    with pytest.raises(DataError, match=r"second image 'a/p4'"):
        COCO(str(tmp_path), annotations=files | {"test": "val.json"})
    [wrong] = wrong_arguments(COCO, {"root": "x", "annotations": {"train": "train.json"}})
    assert wrong.name == "annotations" and "a file for each of train, val, test" in wrong.message


@pytest.mark.parametrize(
    ("row", "text"),
    [
        pytest.param({"category_id": 3}, "unknown category_id 3", id="category"),
        pytest.param({"category_id": [7]}, "unknown category_id", id="category a list"),
        pytest.param({"attributes": {"rotation": 20.0}}, "rotated: draw it upright", id="rotated"),
        pytest.param({"category_id": 9}, "unknown class 'nodule'", id="class not wanted"),
        pytest.param({"bbox": [4, 5, NAN, 3]}, "not finite", id="NaN"),
        pytest.param({"bbox": [4, 5, -2, 3]}, "no area", id="negative"),
        pytest.param({"bbox": [4, 5, 0, 3]}, "no area", id="zero-area"),
        pytest.param({"bbox": [30, 20, 38, 28]}, "outside", id="xyxy given as xywh"),
        pytest.param({"bbox": [4, 5, 6]}, "x, y, width, height", id="three numbers"),
        pytest.param({"bbox": ["4", 5, 6, 7]}, "x, y, width, height", id="text"),
        pytest.param({"image_id": 5}, "no image with id 5", id="unknown image"),
        pytest.param({"image_id": {}}, "no image with id", id="image id an object"),
    ],
)
def test_coco_bad_box(tmp_path, row, text):
    root = coco(tmp_path, coco_document(boxes=[{}, row]))
    with pytest.raises(DataError, match=text):
        read_coco(root, classes=["mass"])
    data = read_coco(root, classes=["mass"], on_bad_sample="skip")
    assert data.labels.annotations["a/p0"].boxes.tolist() == [[4, 5, 20, 18]]
    assert len(data.images.infos) == 6


@pytest.mark.parametrize(
    ("change", "text"),
    [
        pytest.param({"file_name": "../../x.png"}, "leads out", id="leaves the folder"),
        pytest.param({"file_name": "/etc/passwd"}, "leads out", id="absolute"),
        pytest.param({"file_name": "../images/a/p0.png"}, "not contain '..'", id="second way"),
        pytest.param({"file_name": "\ud800.png"}, r"'\\ud800.png' is not UTF-8", id="no text"),
        pytest.param({"file_name": "a/none.png"}, "missing", id="missing"),
        pytest.param({"file_name": "a/p1.png"}, "second image 'a/p1'", id="file twice"),
        pytest.param({"file_name": None}, "file_name", id="no name"),
        pytest.param({"id": "x"}, "id", id="no number"),
        pytest.param({"width": 41}, "41x30", id="other size"),
        pytest.param({"patient": None}, "group_key", id="no patient"),
    ],
)
def test_coco_bad_image(tmp_path, change, text):
    document = coco_document()
    # The last one, so that a repeated name is its own.
    document["images"][5].update(change)
    root = coco(tmp_path, document)
    args = {"group_key": "patient"}
    with pytest.raises(DataError, match=text):
        read_coco(root, **args)
    data = read_coco(root, on_bad_sample="skip", **args)
    assert sorted(data.images.infos) == [f"a/p{i}" for i in range(5)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("{", "not valid JSON", id="no JSON"),
        pytest.param("[" * 200_000, "not valid JSON", id="deep JSON"),
        pytest.param("[]", "no COCO file", id="a list"),
        pytest.param('{"images": [], "annotations": []}', "categories", id="a part missing"),
        pytest.param('{"images": [1], "annotations": []}', "images", id="no objects"),
        pytest.param(
            '{"images": [], "annotations": [], "categories": [{"id": 1}]}',
            "category",
            id="category without name",
        ),
        pytest.param(
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "\\udcfc"}]}',
            r"the class '\\udcfc' is not UTF-8",
            id="category no text",
        ),
    ],
)
def test_coco_bad_file(tmp_path, text, message):
    root = coco(tmp_path)
    (tmp_path / "annotations.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_coco(root)
