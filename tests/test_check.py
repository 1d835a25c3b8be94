"""`med-sslal check`: everything wrong with a data set at once, what suits it, a first config."""

import json
import logging
import sys
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from test_dicom import write_dicom
from tiny import make_voc, quick_config, run_train, write_config
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from med_sslal.__main__ import main
from med_sslal.cli.registries import registries
from med_sslal.config.parse_config import ConfigParser
from med_sslal.data.check import look_at_pixels, open_dataset
from med_sslal.data.image_folder import ImageFolder
from med_sslal.data.suggest import suggest_batch, suggest_image_size, suggest_window
from med_sslal.model.anchors import REACHED, best_overlap, grid_of, reached, suggest_anchors

SIDE = 64
GOOD = (10, 12, 20, 18)  # x, y, width and height of the one object of every picture


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)
    return path


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 200, (SIDE, SIDE), dtype=np.uint8)


class Lab:
    """A COCO set with one file a split, 4 pictures each, and a config of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "lab"
        self.documents: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for at, split in enumerate(("train", "val", "test")):
            numbers = range(4 * at, 4 * at + 4)
            for number in numbers:
                write(self.picture(number), noise(number))
            self.documents[split] = {
                "images": [
                    {"id": n, "file_name": f"i{n:02d}.png", "patient": f"p{n}"} for n in numbers
                ],
                "annotations": [
                    {"id": n, "image_id": n, "category_id": 1, "bbox": list(GOOD)} for n in numbers
                ],
                "categories": [{"id": 1, "name": "<b>cyst</b>"}],
            }

    def picture(self, number: int) -> Path:
        return self.root / "images" / f"i{number:02d}.png"

    def add_box(self, split: str, image: int, box: list[float], category: int = 1) -> None:
        known = self.documents[split]["annotations"]
        entry = {"id": 100 + len(known), "image_id": image, "category_id": category, "bbox": box}
        known.append(entry)

    def config(self, **args: Any) -> Path:
        for split, document in self.documents.items():
            (self.root / f"{split}.json").write_text(json.dumps(document))
        config = quick_config(self.root, self.folder / "runs")
        config["dataset"] = {
            "type": "COCO",
            "args": {
                "root": str(self.root),
                "annotations": {split: f"{split}.json" for split in self.documents},
                "group_key": "patient",
                **args,
            },
        }
        return write_config(self.folder / "config.json", config)

    def check(self, code: int, *words: str, **args: Any) -> dict[str, Any]:
        """Run the command, which must end with `code`; returns check.json."""
        out = self.folder / f"out{len(list(self.folder.glob('out*')))}"
        assert main(["check", "-c", str(self.config(**args)), "--out", str(out), *words]) == code
        self.page = (out / "check.html").read_text()
        return json.loads((out / "check.json").read_text())


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def texts(found: dict[str, Any], level: str) -> list[str]:
    return [each["text"] for each in found["findings"] if each["level"] == level]


def test_a_good_data_set(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    found = lab.check(0)
    said = capsys.readouterr().out
    assert found["findings"] == [] and "0 error(s), 0 warning(s)" in said
    assert found["pixels"]["8-bit grey"]["images"] == 12
    assert found["shapes"] == [{"height": SIDE, "width": SIDE, "images": 12}]
    train = found["splits"]["train"]
    assert (train["images"], train["groups"], train["objects"]) == (4, 4, 4)
    assert train["classes"]["<b>cyst</b>"] == {
        "0-8": 0, "8-16": 0, "16-32": 4, "32-64": 0, "64-128": 0, "128+": 0
    }  # fmt: skip
    assert "&lt;b&gt;cyst" in lab.page and "<b>cyst" not in lab.page
    assert lab.page.count("<figure>") == 12 and "http" not in lab.page.replace("www.w3.org", "")
    assert not (lab.folder / "runs").exists()


def damage(lab: Lab) -> None:
    """Everything at once."""
    content = lab.picture(0).read_bytes()
    lab.picture(0).write_bytes(content[:-20])
    middle = bytearray(lab.picture(1).read_bytes())
    middle[1000:1100] = bytes(100)
    lab.picture(1).write_bytes(middle)
    write(lab.picture(5), noise(2))  # of val, the same as one of train
    write(lab.picture(3), np.full((SIDE, SIDE), 7, dtype=np.uint8))
    lab.documents["val"]["images"][2]["patient"] = "p2"  # of train
    lab.documents["test"]["images"][2]["patient"] = "p3"  # of train
    lab.add_box("train", 2, [float("nan"), 1, 5, 5])
    lab.add_box("train", 2, [1, 1, 0, 5])
    lab.add_box("train", 2, [60, 60, 40, 40])
    lab.add_box("train", 2, [1, 1, 5, 5], category=9)
    lab.add_box("val", 4, [50, 50, 20, 10])
    lab.add_box("val", 4, [0, 0, 63, 64])
    lab.add_box("test", 8, [10, 12, 20, 18.2])
    lab.add_box("test", 9, [1, 1, 1.5, 30])


ERRORS = {
    "truncated": "i00.png is truncated",
    "damaged in the middle": "i01.png is damaged: its pixels cannot be decoded",
    "not a number": "box (nan, 1, nan, 6) is not finite",
    "no area": "bbox [1, 1, 0, 5] has no area",
    "outside": "box (60, 60, 100, 100) lies for more than half outside",
    "class": "unknown category_id 9",
    "group of val": "group (patient) 'p2' is in split 'train' and in 'val'",
    "group of test": "group (patient) 'p3' is in split 'train' and in 'test'",
    "twice": "2 images are the same picture: i02, i05; they are in train and val",
}
WARNINGS = {
    "cut": "box (50, 50, 70, 60) is cut at its image's edge",
    "covers": "i04: <b>cyst</b> box (0, 0, 63, 64) covers 98% of its image",
    "drawn twice": "i08: <b>cyst</b> box (10, 12, 30, 30) is there twice",
    "small": "i09: <b>cyst</b> box (1, 1, 2.5, 31) is 1.5 px wide or high at image_size, under 2",
    "groups": "for the rest of this check each image stands by itself",
    "flat": "i03: all pixels have one value",
}


def test_everything_that_is_wrong_is_told_at_once(lab: Lab, capsys) -> None:
    damage(lab)
    found = lab.check(2)
    said = capsys.readouterr().out
    for level, wanted in (("error", ERRORS), ("warning", WARNINGS)):
        told = texts(found, level)
        for case, words in wanted.items():
            assert sum(words in text for text in told) == 1, f"{case}: {told}"
            assert words in said, case
        assert len(told) == len(wanted), told
    assert (found["errors"], found["warnings"]) == (len(ERRORS), len(WARNINGS))
    assert "is damaged: its pixels" in lab.page and "With a finding" in lab.page

    # Headers and labels alone show nothing of the pixels.
    told = texts(lab.check(2, "--fast"), "error")
    assert len(told) == len(ERRORS) - 2 and not any("same picture" in text for text in told)


def test_what_a_run_would_leave_out_is_a_warning(lab: Lab) -> None:
    lab.add_box("train", 2, [1, 1, 0, 5])
    assert lab.check(2)["errors"] == 1
    found = lab.check(0, on_bad_sample="skip")
    (text,) = texts(found, "warning")
    assert text.endswith("has no area ([x, y, width, height] is expected) (left out)")


def test_a_config_that_does_not_fit_and_a_data_set_that_cannot_be_opened(lab: Lab) -> None:
    (text,) = texts(lab.check(2, "--set", "arch.args.num_classes=5"), "error")
    assert "set it to 2" in text
    found = lab.check(2, images="elsewhere")
    assert "does not exist" in texts(found, "error")[0] and found["splits"] == {}
    config, out = str(lab.config()), lab.folder / "taken"
    write(out / "a.png", noise(0))
    assert main(["check", "-c", config, "--out", str(out)]) == 2, "never into a folder with files"
    assert len(list(out.iterdir())) == 1


def test_a_wrong_field_of_the_patient(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence, of `train` too, and the fields that there are; skipping is no way around it."""
    for policy in ("error", "skip"):
        (text,) = texts(lab.check(2, group_key="pateint", on_bad_sample=policy), "error")
        assert "group_key: unknown field 'pateint'. Did you mean 'patient'?" in text
        assert "Allowed: id, file_name, patient (of the images in" in text
        capsys.readouterr()
        assert run_train("-c", lab.folder / "config.json") == 2
        assert capsys.readouterr().err == f"error: {text}\n"


def test_16_bits_without_a_window(lab: Lab) -> None:
    for number in range(12):
        write(lab.picture(number), noise(number).astype(np.uint16) * 10 + 1000)
    found = lab.check(2)
    told = texts(found, "error")
    assert len(told) == 12 and all("set dataset.args.window" in text for text in told)
    assert found["pixels"]["16-bit grey"] == {"images": 12, "range": [1000, 2990]}
    (window,) = (e for e in found["suggestions"] if e["key"] == "dataset.args.window")
    low, high = window["suggested"]
    assert 1000 <= low <= 1020 and 2970 <= high <= 2990
    assert lab.check(0, window=[1000, 3000])["findings"] == []


def test_pascal_voc_of_16_bits_without_a_window(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "voc")
    for number, path in enumerate(sorted((root / "JPEGImages").iterdir())):
        write(path.with_suffix(".png"), noise(number).astype(np.uint16) * 10)
        path.unlink()
    config = quick_config(root, tmp_path / "runs")
    words = ["check", "-c", str(write_config(tmp_path / "config.json", config)), "--out"]
    assert main([*words, str(tmp_path / "out")]) == 2
    found = json.loads((tmp_path / "out" / "check.json").read_text())
    told = texts(found, "error")
    assert len(told) == 24 and all("set dataset.args.window" in text for text in told)
    assert found["pixels"]["16-bit grey"]["images"] == 24


def test_names_that_are_not_utf_8(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    coco_of(tmp_path / "lab", 0)
    (tmp_path / "lab" / "i00.png").rename(tmp_path / "lab" / "\udcfc.png")
    write(tmp_path / "lab" / "i01.png", cv2.imread("lab/i02.png", cv2.IMREAD_UNCHANGED))
    (tmp_path / "lab" / "i01.png").rename(tmp_path / "lab" / "\udcfd.png")
    (tmp_path / "lab" / "\udcfe.png").write_bytes(b"")
    assert main(["check", "--images", "lab", "--write-config", "my.json"]) == 2
    said = capsys.readouterr().out
    assert r"\udcfe.png is empty" in said and r"same picture: i02, \udcfd" in said
    assert "config: my.json; mend the errors above, then go on with: " in said


def test_threads_leave_the_filters_of_warnings_as_they_were(tmp_path: Path, monkeypatch) -> None:
    """They are those of the whole process, and what threads change in turns stays changed."""
    for number in range(40):
        write(tmp_path / f"{number}.tif", noise(number))
        write_dicom(tmp_path / f"d{number}.dcm", noise(number), number=number)
    data = ImageFolder(str(tmp_path), dicom_key=str(tmp_path / "key"))
    monkeypatch.setattr("med_sslal.data.check.usable_cores", lambda: 8)
    monkeypatch.setattr("med_sslal.data.check._AT_ONCE", 2)
    before, interval = list(warnings.filters), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(3):
            assert not look_at_pixels(data.images, fast=False).problems
            assert warnings.filters == before and not logging.getLogger("pydicom").disabled
    finally:
        sys.setswitchinterval(interval)
        warnings.filters[:] = before


def test_the_best_anchor_is_the_best_of_all(lab: Lab) -> None:
    """Against every anchor that torchvision places; also where the places end before the image."""
    config = ConfigParser.from_file(lab.config(), registries())
    detector, shape = config.init_obj("arch"), (96, 80)
    grid = grid_of(detector, shape)
    assert grid is not None
    corners = np.random.default_rng(0).uniform(0, 60, (200, 2))
    boxes = np.concatenate(
        [corners, corners + np.random.default_rng(1).uniform(3, 36, (200, 2))], 1
    )
    for tried in (grid, suggest_anchors(grid, boxes)):
        generator = AnchorGenerator(tried.sizes, (tried.ratios,) * len(tried.sizes))
        levels = [torch.zeros(1, 1, *cells) for cells in tried.cells]
        (anchors,) = generator(ImageList(torch.zeros(1, 3, 96, 96), [(96, 96)]), levels)
        expected = box_iou(torch.from_numpy(boxes), anchors.double()).max(1).values
        np.testing.assert_allclose(best_overlap(tried, boxes), expected, atol=1e-6)
    assert reached(tried, boxes) > reached(grid, boxes) and REACHED == 0.5


def test_what_is_suggested() -> None:
    shapes = np.array([[480, 640]] * 5)
    assert suggest_image_size(shapes, np.full(100, 0.05))[0] == [192, 256]
    assert suggest_image_size(shapes, np.full(100, 0.001))[0] == [480, 640]
    assert suggest_image_size(np.array([[900, 900]]), np.zeros(0))[0] == 512
    assert [suggest_batch(size, n)[0] for size, n in (
        ((512, 512), 0), ((512, 512), 5), ((1024, 512), 90), ((2048, 2048), 90)
    )] == [8, 5, 4, 2]  # fmt: skip
    histogram = np.zeros(65536, dtype=np.int64)
    histogram[[7, 1000, 3000, 65535]] = (1, 500, 500, 1)
    assert suggest_window(histogram)[0] == [1000, 3000]


def coco_of(root: Path, labelled: int, *, folder: str = "", **entry: Any) -> None:
    """12 pictures below root, the first with labels in a COCO file."""
    for number in range(12):
        write(root / folder / f"i{number:02d}.png", noise(number))
    document = {
        "images": [{"id": n, "file_name": f"i{n:02d}.png"} | entry for n in range(labelled)],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1, "bbox": list(GOOD)} for n in range(labelled)
        ],
        "categories": [{"id": 1, "name": "cyst"}],
    }
    for n, image in enumerate(document["images"]):
        image |= {key: f"{value}{n // 2}" for key, value in entry.items()}
    (root / "labels.json").write_text(json.dumps(document))


def of_patients(root: Path) -> None:
    coco_of(root, 12, folder="images", patient="p")


def in_part(root: Path) -> None:
    coco_of(root, 8)


def deep(root: Path) -> None:
    coco_of(root, 12)
    for path in root.glob("*.png"):
        write(path, cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(np.uint16) * 20)


@pytest.mark.parametrize(
    ("make", "kind", "args"),
    [
        (of_patients, "COCO", {"group_key": "patient", "images": "images"}),
        (in_part, "ImageFolder", {"labels": "labels.json", "group_pattern": None}),
        (deep, "ImageFolder", {"labels": "labels.json", "window": [20, 3960]}),
        (make_voc, "PascalVOC", {"annotations": "Annotations", "images": "JPEGImages"}),
    ],
    ids=["COCO", "labelled in part", "16 bits", "Pascal VOC"],
)
def test_a_first_config_trains(
    tmp_path: Path, make: Any, kind: str, args: dict[str, Any], monkeypatch, capsys
) -> None:
    make(tmp_path / "my lab")
    monkeypatch.chdir(tmp_path)
    words = ["check", "--images", "my lab", "--write-config", "my.json"]
    assert main(words) == 0
    assert "config: my.json; go on with: " in capsys.readouterr().out
    (page,) = tmp_path.glob("exp_results/my_lab/check_*/check.html")
    config = ConfigParser.from_file(tmp_path / "my.json", registries())
    assert config["dataset"]["type"] == kind
    given = config.get("dataset.args")
    assert {name: given[name] for name in args} == args
    if make is in_part:
        small = ("n_workers=0", "n_gpu=0", "batch_size=2", "arch.args.norm=group", "image_size=64",
                 "arch.args.fpn_channels=64", "arch.args.box_head_size=32")  # fmt: skip
        sets = [word for each in small for word in ("--set", each)]
        assert run_train("-c", "my.json", "--dry-run", *sets) == 0

    before = (tmp_path / "my.json").read_text()
    assert main(words) == 2, "nothing is overwritten"
    assert main([*words[:-1], "nowhere/my.json"]) == 2
    assert (tmp_path / "my.json").read_text() == before
    assert list(tmp_path.glob("exp_results/my_lab/check_*/check.html")) == [page]


def test_a_first_config_without_a_label(tmp_path: Path, monkeypatch, capsys) -> None:
    for number in range(12):
        write(tmp_path / "lab" / f"case{number // 2}" / f"{number}.png", noise(number))
    monkeypatch.chdir(tmp_path)
    assert main(["check", "--images", "lab", "--write-config", "my.json", "--fast"]) == 0
    said = capsys.readouterr().out
    assert run_train("-c", "my.json") == 2
    refusal = capsys.readouterr().err.strip().removeprefix("error: ")
    assert "no image has a label" in refusal and said.strip().endswith(refusal)
    assert "go on with" not in said
    config = ConfigParser.from_file(tmp_path / "my.json", registries())
    assert config.get("dataset.args.group_pattern") == "^([^/]+)/"
    assert "a guess: 6 patients" in (tmp_path / "my.json").read_text()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"no picture")
    assert main(["check", "--images", "bad", "--write-config", "other.json"]) == 2
    assert "x.png is empty, damaged, or neither PNG" in capsys.readouterr().out
    (tmp_path / "lab" / "labels.json").write_text('{"images": [')
    assert main(["check", "--images", "lab", "--write-config", "other.json"]) == 2
    assert "labels.json is not valid JSON" in capsys.readouterr().err
    assert not (tmp_path / "other.json").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "give one of -c FILE"),
        (["-c", "x", "--images", "y"], "give one of -c FILE"),
        (["--images", "x"], "go together"),
        (["-c", "x", "--write-config", "y"], "go together"),
        (["--images", "x", "--write-config", "y", "--set", "seed=1"], "it goes with -c"),
    ],
)
def test_words_that_do_not_belong_together(words: list[str], sentence: str, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["check", *words])
    assert ended.value.code == 2 and sentence in capsys.readouterr().err


def test_memory_grows_little_with_the_files(tmp_path: Path) -> None:
    """By under 10 kB a file, so that 100,000 stay under 1 GB besides what the program takes."""
    content = write(tmp_path / "one.png", noise(0)).read_bytes()
    (tmp_path / "many").mkdir()
    peaks = []
    for start, stop in ((0, 100), (100, 600)):
        for number in range(start, stop):
            (tmp_path / "many" / f"{number}.png").write_bytes(content)
        tracemalloc.start()
        data, findings = open_dataset(ImageFolder, {"root": str(tmp_path / "many")})
        assert data is not None and not findings
        assert look_at_pixels(data.images, fast=True).kinds == {"8-bit grey": stop}
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 500 < 10_000
