"""Folders of pictures with labels in part, 16-bit pixels by a window, and labels written."""

import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from med_sslal.base.base_dataset import Labels
from med_sslal.base.types import Annotation
from med_sslal.config.signature import wrong_arguments
from med_sslal.data.bad_samples import BadSamples
from med_sslal.data.coco import COCO, save_coco
from med_sslal.data.image_folder import ImageFolder
from med_sslal.data.slices import HU_OFFSET, SliceImages, Stack
from med_sslal.data.voc import PascalVOC, load_voc, save_voc
from med_sslal.utils.errors import ConfigError, DataError
from tests.tiny import files_of, make_voc, quick_config, run_test, run_train, write_config


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)
    return path


def folder_of(root: Path, n_patients: int = 6, **document: Any) -> Path:
    """Two 16-bit pictures of each patient, of which the first `labelled` patients have labels."""
    labelled = document.pop("labelled", 0)
    entries, boxes = [], []
    for patient in range(n_patients):
        for number in range(2):
            name = f"p{patient}/scan{number}.{('png', 'tif')[number]}"
            write(root / name, np.full((30, 40), 1000 + 100 * patient, dtype=np.uint16))
            if patient < labelled:
                entries.append({"id": len(entries), "file_name": name, "width": 40, "height": 30})
                boxes.append({"id": len(boxes), "image_id": len(entries) - 1, "category_id": 4,
                              "bbox": [4, 5, 16, 13.5]})  # fmt: skip
    content = {"images": entries, "annotations": boxes, "categories": [{"id": 4, "name": "mass"}]}
    (root / "labels.json").write_text(json.dumps(content | document))
    return root


OF_PATIENTS = {"group_pattern": "^(p[0-9]+)/", "window": (1000, 1500)}


def test_a_pool_without_a_single_label(tmp_path):
    root = folder_of(tmp_path)
    write(root / ".hidden" / "x.png", np.zeros((4, 4), dtype=np.uint8))
    data = ImageFolder(str(root), **OF_PATIENTS)
    assert len(data.images.infos) == 12 and not data.labels.annotations
    assert data.images.splits == {"train": tuple(data.images.infos), "val": (), "test": ()}
    assert data.images.infos["p3/scan1"].group_id == "p3"
    for name in ("p3/scan0", "p3/scan1"):
        np.testing.assert_allclose(data.images.read(name), np.full((30, 40, 3), 0.6), atol=1e-6)
    with pytest.raises(DataError, match="1 of 1 images have no label and need one: p3/scan0"):
        data.labels.of(["p3/scan0"])
    with pytest.raises(ConfigError, match=r"set dataset\.args\.classes"):
        data.check_num_classes(2)


def test_val_and_test_come_from_wholly_labelled_patients(tmp_path):
    root = folder_of(tmp_path, 8, labelled=4)
    document = json.loads((root / "labels.json").read_text())
    # One image of p0 alone stays labelled; one of p1 is confirmed empty.
    document["images"], document["annotations"] = (
        document["images"][1:],
        document["annotations"][3:],
    )
    (root / "labels.json").write_text(json.dumps(document))
    data = ImageFolder(str(root), labels="labels.json", eval_split=0.5, **OF_PATIENTS)
    splits, known = data.images.splits, data.labels.annotations
    assert set(known) == {f"p{p}/scan{n}" for p in range(4) for n in range(2)} - {"p0/scan0"}
    assert known["p1/scan0"].n_objects == 0
    held_out = {*splits["val"], *splits["test"]}
    assert {name[:2] for name in held_out} < {"p1", "p2", "p3"} and len(held_out) == 4
    assert set(data.labels.of(held_out)) == held_out
    assert sorted((*splits["train"], *held_out)) == list(data.images.infos)


@pytest.mark.parametrize(
    ("change", "args", "error"),
    [
        ({}, {"window": None}, "16 bits, whose range .* dataset.args.window"),
        ({}, {"group_pattern": "(q)"}, "dataset.args.group_pattern '\\(q\\)' finds no patient"),
        (
            {"labelled": 2},
            {"labels": "labels.json"},
            "4 of 12 images have a label, but fewer than 3",
        ),
        ({}, {"labels": "../labels.json"}, "leads out of the data root"),
        (
            {"images": [{"id": 1, "file_name": "p9/x.png"}]},
            {"labels": "labels.json"},
            "the picture p9/x.png in .* is not there",
        ),
    ],
    ids=["no window", "no patient", "two patients", "labels elsewhere", "unknown picture"],
)
def test_what_a_folder_cannot_give(tmp_path, change, args, error):
    with pytest.raises(DataError, match=error):
        ImageFolder(str(folder_of(tmp_path, **change)), **(OF_PATIENTS | args))


def test_a_labelled_picture_that_is_bad_is_not_said_to_be_missing(tmp_path):
    root = folder_of(tmp_path, labelled=3)
    bad = sorted(path for path in root.rglob("*") if path.suffix in (".png", ".jpg"))[0]
    bad.write_bytes(b"")
    with pytest.raises(DataError, match=f"the picture {bad.relative_to(root)} in .* is bad itself"):
        ImageFolder(str(root), **OF_PATIENTS, labels="labels.json")


def test_the_same_picture_by_a_longer_name(tmp_path):
    root = folder_of(tmp_path, labelled=3)
    labels = root / "labels.json"
    labels.write_text(labels.read_text().replace('"p', '"./p'))
    data = ImageFolder(str(root), labels="labels.json", eval_split=0.5, **OF_PATIENTS)
    assert set(data.labels.annotations) == {f"p{p}/scan{n}" for p in range(3) for n in range(2)}


def test_names_that_are_not_utf_8(tmp_path, caplog):
    """A file may have such a name: it is taken as any other, and told in letters that all know."""
    root = folder_of(tmp_path, labelled=4)
    for path in list(root.rglob("scan*")):
        path.rename(path.with_name(f"b\udcfc{path.name}"))
    labels = root / "labels.json"
    labels.write_text(labels.read_text().replace("/scan", r"/b\udcfcscan"))
    data = ImageFolder(str(root), labels="labels.json", eval_split=0.5, **OF_PATIENTS)
    assert len(data.labels.annotations) == 8 and len(data.images.splits["train"]) == 8
    assert data.images.read("p0/b\udcfcscan0").shape == (30, 40, 3)

    (root / "p5" / "b\udcfcscan0.png").write_bytes(b"")
    labels.write_text(labels.read_text().replace(r"p0/b\udcfcscan0", r"p0/\ud800"))
    words = (
        r"2 bad sample(.|\n)*p5/b\\udcfcscan0\.png is empty(.|\n)*'p0/\\ud800\.png' is not UTF-8"
    )
    with pytest.raises(DataError, match=words):
        ImageFolder(str(root), labels="labels.json", **OF_PATIENTS)
    args = {"labels": "labels.json", "eval_split": 0.5, "on_bad_sample": "skip"}
    assert len(ImageFolder(str(root), **args, **OF_PATIENTS).images.infos) == 11
    assert r"b\udcfcscan0.png is empty" in caplog.text


def test_a_tiff_of_several_pages_is_not_taken_for_its_first(tmp_path):
    page = Image.fromarray(np.zeros((20, 30), dtype=np.uint8))
    for name, n_pages in (("one", 1), ("ten", 10)):
        page.save(tmp_path / f"{name}.tif", save_all=True, append_images=[page] * (n_pages - 1))
    with pytest.raises(DataError, match=r"1 bad sample(.|\n)*ten\.tif has 10 pages"):
        ImageFolder(str(tmp_path))
    data = ImageFolder(str(tmp_path), on_bad_sample="skip")
    assert list(data.images.infos) == ["one"]


def test_linked_folders_are_told_and_not_entered(tmp_path, caplog):
    root, other = folder_of(tmp_path / "in"), folder_of(tmp_path / "elsewhere")
    for name in ("p8", "p9"):
        (root / name).symlink_to(other / "p0")
    (root / "p7").symlink_to(tmp_path / "nowhere")
    assert len(ImageFolder(str(root), **OF_PATIENTS).images.infos) == 12
    [told] = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert told.startswith(f"folder {root / 'p8'} is a link")


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_without_pictures(tmp_path, there):
    root = tmp_path if there else tmp_path / "none"
    with pytest.raises(DataError, match=r"dataset.args.root: folder .* (holds|does not exist)"):
        ImageFolder(str(root))


def coco_of(root: Path, pixels: np.ndarray, **entry: Any) -> Path:
    """Three pictures with one box each; the fields of the last box's entry are replaced."""
    images, boxes = [], []
    for number in range(3):
        write(root / "images" / f"i{number}.png", pixels)
        images.append({"id": number, "file_name": f"i{number}.png"})
        boxes.append({"id": number, "image_id": number, "category_id": 1, "bbox": [2, 3, 9, 8]})
    changed = images[2] if "file_name" in entry else boxes[2]
    changed |= entry
    document = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "a"}]}
    (root / "a.json").write_text(json.dumps(document))
    return root


def test_coco_of_16_bits(tmp_path):
    root = coco_of(tmp_path, np.full((20, 30), 32768 + 40, dtype=np.uint16))
    window = (32768 - 160, 32768 + 240)
    data = COCO(str(root), annotations="a.json", eval_split=0.6, window=window)
    np.testing.assert_allclose(data.images.read("i1"), np.full((20, 30, 3), 0.5), atol=1e-6)
    with pytest.raises(DataError, match="whose range the file does not tell"):
        COCO(str(root), annotations="a.json", eval_split=0.6)
    write(root / "images" / "i0.png", np.full((20, 30, 3), 40000, dtype=np.uint16))
    with pytest.raises(DataError, match=r"3 channel\(s\) of 16 bits: convert"):
        COCO(str(root), annotations="a.json", eval_split=0.6, window=window)
    write(root / "images" / "i0.png", np.full((20, 30, 3), 51, dtype=np.uint8))
    data = COCO(str(root), annotations="a.json", eval_split=0.6, window=window)
    np.testing.assert_allclose(data.images.read("i0"), np.full((20, 30, 3), 0.2), atol=1e-6)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"file_name": "i\0.png"}, "leads out of the data root"),
        ({"bbox": [1, 2, 10**400, 5]}, "annotation 2: bbox has a number that no image is as large"),
    ],
    ids=["null byte", "400 digits"],
)
def test_coco_values_that_no_file_should_have(tmp_path, entry, words):
    root = coco_of(tmp_path, np.zeros((20, 30), dtype=np.uint8), **entry)
    with pytest.raises(DataError, match=words):
        COCO(str(root), annotations="a.json", eval_split=0.6)


def odd_labels(data: PascalVOC) -> Labels:
    """The labels with fractions, an ignore region, an empty image and a name that needs escapes."""
    known = dict(data.labels.annotations)
    first, second, *_ = known
    boxes = known[first].boxes.copy()
    boxes[0] = (0, 1 / 3, 20.1, 64)
    known[first] = Annotation(boxes, known[first].labels, np.array([True, False]))
    known[second] = Annotation.empty()
    return Labels(("<a> & b", "c"), known)


def assert_same(found: Labels, expected: Labels) -> None:
    assert found.fingerprint() == expected.fingerprint()
    assert found.class_names == expected.class_names


def test_coco_is_written_as_it_is_read(tmp_path):
    data = PascalVOC(str(make_voc(tmp_path / "voc", classes=2)), eval_split=0.5)
    labels = odd_labels(data)
    save_coco(tmp_path / "voc" / "out.json", data.images, labels, folder="JPEGImages")
    again = COCO(
        str(tmp_path / "voc"), annotations="out.json", images="JPEGImages", group_key="group_id",
        eval_split=0.5,
    )  # fmt: skip
    assert_same(again.labels, labels)
    assert again.images.fingerprint() == data.images.fingerprint()
    part = Labels(labels.class_names, dict(list(labels.annotations.items())[:3]))
    save_coco(tmp_path / "voc" / "part.json", data.images, part)
    assert len(json.loads((tmp_path / "voc" / "part.json").read_text())["images"]) == 3


def test_voc_is_written_as_it_is_read(tmp_path):
    data = PascalVOC(str(make_voc(tmp_path / "voc", classes=2)), eval_split=0.5)
    labels = odd_labels(data)
    (tmp_path / "voc" / "new labels").mkdir()
    save_voc(tmp_path / "voc" / "new labels", data.images, labels)
    again = PascalVOC(
        str(tmp_path / "voc"), annotations="new labels", eval_split=0.5, classes=["<a> & b", "c"]
    )
    assert_same(again.labels, labels)
    bad = BadSamples("error", "x")
    name = next(iter(labels.annotations))
    assert len(load_voc(tmp_path / "voc" / "new labels" / f"{name}.xml", (64, 64), bad)) == 2
    nested = Labels(("a",), {"p0/scan0": Annotation.empty()})
    with pytest.raises(DataError, match="is a path"):
        save_voc(tmp_path, data.images, nested)


def test_voc_folders_of_other_names(tmp_path):
    root = make_voc(tmp_path / "voc")
    (root / "Annotations").rename(root / "annotations")
    (root / "JPEGImages").rename(root / "images")
    data = PascalVOC(str(root), annotations="annotations", images="images", eval_split=0.5)
    assert data.images.infos["image003"].file_name == "images/image003.jpg"
    with pytest.raises(DataError, match=r"dataset\.args\.annotations and dataset\.args\.images"):
        PascalVOC(str(root), eval_split=0.5)
    [wrong] = wrong_arguments(PascalVOC, {"root": str(root), "annotations": "../elsewhere"})
    assert "a folder in root" in wrong.message


def test_pictures_of_a_narrow_window_use_all_greys(tmp_path):
    values = np.linspace(-160, 240, 40).round().astype(np.int64) + HU_OFFSET
    path = write(tmp_path / "s.png", np.tile(values.astype(np.uint16), (30, 1)))
    stacks = {"s": Stack((1, 1, 1), {1: path})}
    narrow = SliceImages({}, {}, stacks=stacks, window=(-160.0, 240.0)).picture("s")
    assert narrow.min() == 0 and narrow.max() == 1
    wide = SliceImages({}, {}, stacks=stacks, window=(-1024.0, 3071.0)).picture("s")
    np.testing.assert_allclose(wide[0, 0], 840 / 1400, atol=1e-4)


def folder_config(root: Path, n_images: int, n_labelled: int) -> dict[str, Any]:
    """A config of PNG files of which the first `n_labelled` hold a bright square with its label."""
    generator = np.random.default_rng(0)
    for number in range(n_images):
        pixels = generator.integers(0, 80, (32, 32), dtype=np.uint8)
        pixels[8:20, 6:18] = 200
        write(root / "images" / f"i{number:03d}.png", pixels)
    label_first(root, n_labelled)
    config = quick_config(root, root / "runs")
    config["image_size"] = 32
    config["dataset"] = {
        "type": "ImageFolder",
        "args": {"root": str(root / "images"), "labels": "labels.json", "eval_split": 0.2},
    }
    config["al_settings"]["num_cycles"] = 0
    config["al_settings"]["args"] |= {"init_num": "labelled"}
    config["trainer"] |= {"epochs": 1, "early_stop": 0}
    return config


def label_first(root: Path, n: int) -> None:
    """Write the labels of the first n images."""
    entries = [{"id": i, "file_name": f"i{i:03d}.png"} for i in range(n)]
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [6, 8, 12, 12]} for i in range(n)]
    content = {"images": entries, "annotations": boxes, "categories": [{"id": 1, "name": "x"}]}
    (root / "images" / "labels.json").write_text(json.dumps(content))


def test_200_images_of_which_40_have_labels(tmp_path, capsys):
    path = write_config(tmp_path / "config.json", folder_config(tmp_path, 200, 40))
    assert run_train("-c", path, "--dry-run") == 0
    for words, said in (
        ("al_settings.num_cycles=1", "al_settings.num_cycles is 1, but 160 of 192 training images"),
        ("al_settings.args.init_num=4", 'set it to "labelled" to train on those'),
        ("dataset.args.labels=null", "set dataset.args.classes"),
    ):
        capsys.readouterr()
        assert run_train("-c", path, "--set", words) == 2
        assert said in capsys.readouterr().err
    capsys.readouterr()
    no_label = ["dataset.args.labels=null", "--set", 'dataset.args.classes=["x"]']
    assert run_train("-c", path, "--set", *no_label) == 2
    assert "no image has a label, but training, validation and test" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists(), "nothing is made"

    assert run_train("-c", path, "--run-id", "a") == 0
    run = tmp_path / "runs" / "tiny" / "a"
    pool = json.loads((run / "cycle_00" / "pool.json").read_text())
    assert len(pool["labelled"]) == 32 and len(pool["unlabelled"]) == 160
    split = json.loads((run / "split.json").read_text())
    assert all(name < "i040" for name in (*pool["labelled"], *split["val"], *split["test"]))
    assert "report.html" in files_of(run)

    label_first(tmp_path, 60)
    assert run_train("--resume", run, "--set", "trainer.epochs=2") == 0, "more labels have come"
    said = (run / "train.log").read_text()
    assert re.search(r"\d+ images have got a label since this run began", said)
    assert json.loads((run / "cycle_00" / "pool.json").read_text()) == pool
    assert json.loads((run / "summary.json").read_text())["cycles"][0]["labelled_images"] == 32
    capsys.readouterr()
    assert run_test("-r", run) == 0
    assert "not that of the training" not in capsys.readouterr().out
    label_first(tmp_path, 39)
    assert run_train("--resume", run, "--set", "trainer.epochs=3") == 2, "a label is gone"
