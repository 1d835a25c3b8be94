"""DeepLesion: the real annotation excerpt, and small trees of real 16-bit files."""

import csv
import logging
import os
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest

from med_sslal.config.signature import signature, wrong_arguments
from med_sslal.data.bad_samples import BadSamples
from med_sslal.data.deeplesion import DeepLesion
from med_sslal.data.deeplesion_csv import COLUMNS, read_csv
from med_sslal.utils.errors import ConfigError, DataError

SIDE = 48


def row(patient: int, index: int = 10, **changes: object) -> dict[str, object]:
    """A row of DL_info.csv as DeepLesion writes it; `changes` by column."""
    series = f"{patient:06d}_01_02"
    values = (
        f"{series}_{index:03d}.png",
        patient,
        1,
        2,
        index,
        "16, 16, 26, 31, 14, 24, 27, 22",
        "11, 11, 31, 36",
        "18.0, 12.5",
        "0.3, 0.4, 0.5",
        5,
        0,
        f"{index - 2}, {index + 2}",
        "0.8, 0.8, 5",
        f"{SIDE}, {SIDE}",
        "-1500, 500",
        "F",
        "NaN",
        1 + patient % 3,
    )
    return {**dict(zip(COLUMNS, values, strict=True)), **changes}


def write_tree(
    root: Path,
    rows: list[dict[str, object]],
    layout: str = "{series}/{index:03d}.png",
    place: str = "Images_png",
    neighbours: int = 1,
) -> Path:
    """Write DL_info.csv and, for each row, its slice and neighbours; HU = 10 * index + x."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / "DL_info.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    for values in rows:
        series, key = str(values["File_name"])[:12], int(str(values["File_name"])[13:16])
        for index in range(key - neighbours, key + neighbours + 1):
            hu = 10.0 * index + np.arange(SIDE)[None, :] + np.zeros((SIDE, 1))
            path = root / place / layout.format(series=series, index=index)
            path.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(path), (hu + 32768).astype(np.uint16))
    return root


def patients(count: int = 6, **changes: object) -> list[dict[str, object]]:
    return [row(patient, **changes) for patient in range(1, count + 1)]


def hu_of(image: np.ndarray, channel: int) -> float:
    """HU of the first pixel, under the default window."""
    return float(image[0, 0, channel]) * 4095 - 1024


def test_real_excerpt_parses():
    folder = os.environ.get("MED_SSLAL_TEST_DATA")
    if not folder:
        pytest.skip("MED_SSLAL_TEST_DATA is not set")
    table = Path(folder) / "deeplesion_excerpt" / "DL_info.csv"
    lesions = read_csv(table, BadSamples("error", "the excerpt"))
    assert len(lesions) == 158
    assert len({lesion.image_id for lesion in lesions}) == 152
    assert len({lesion.patient for lesion in lesions}) == 12
    first = lesions[0]
    assert (first.image_id, first.series) == ("000089_01_01_037", "000089_01_01")
    assert first.box == pytest.approx((131.977, 170.808, 164.939, 213.029))
    assert {lesion.lesion_type for lesion in lesions if lesion.split == "train"} == {""}
    assert sum(lesion.lesion_type == "lung" for lesion in lesions) == 5


@pytest.mark.parametrize(
    ("place", "layout", "neighbours"),
    [
        pytest.param("Images_png", "{series}/{index:03d}.png", 1, id="as NIH unpacks"),
        pytest.param("Images_png/Images_png", "{series}/{index:03d}.png", 1, id="nested"),
        pytest.param("Images_png", "{series}_{index:03d}.png", 0, id="flat key slices"),
        pytest.param("Key_slices", "{series}_{index:03d}.png", 0, id="archive of key slices"),
        pytest.param(".", "{series}/{index:03d}.png", 1, id="right in the root"),
    ],
)
def test_layouts(tmp_path: Path, place, layout, neighbours):
    data = DeepLesion(str(write_tree(tmp_path, patients(), layout, place, neighbours)))
    assert list(data.images.infos) == [f"{p:06d}_01_02_010" for p in range(1, 7)]
    info = data.images.infos["000003_01_02_010"]
    assert info.group_id == "000003" and info.orig_size == (SIDE, SIDE)
    assert info.spacing_mm == pytest.approx(0.8)
    assert (tmp_path / info.file_name).is_file()
    image = data.images.read("000003_01_02_010")
    assert image.shape == (SIDE, SIDE, 3) and image.dtype == np.float32
    # 2 mm of 5 mm: 0.4 slices, 10 HU each; without neighbours the key slice three times.
    step = 4.0 * neighbours
    assert [hu_of(image, c) for c in range(3)] == pytest.approx(
        [100 - step, 100, 100 + step], abs=2e-3
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        pytest.param({}, (96, 100, 104), id="2 mm of 5 mm"),
        pytest.param({"slice_step_mm": 5.0}, (90, 100, 110), id="5 mm"),
        pytest.param({"slice_mode": "raw"}, (90, 100, 110), id="raw"),
        pytest.param({"slice_mode": "repeat"}, (100, 100, 100), id="repeat"),
        pytest.param({"slice_step_mm": 12.0}, (90, 100, 110), id="step back where slices end"),
    ],
)
def test_slice_modes(tmp_path: Path, arguments, expected):
    data = DeepLesion(str(write_tree(tmp_path, patients(3))), **arguments)
    image = data.images.read("000001_01_02_010")
    assert [hu_of(image, c) for c in range(3)] == pytest.approx(expected, abs=2e-3)


def test_window_and_cache_and_pickle(tmp_path: Path):
    root = str(write_tree(tmp_path / "data", patients(3)))
    plain = DeepLesion(root, window=(0, 200))
    cached = DeepLesion(root, window=(0, 200), cache_dir=str(tmp_path / "cache"))
    image = plain.images.read("000001_01_02_010")
    assert image[0, 0, 1] == pytest.approx(0.5) and image.max() <= 1 and image.min() >= 0
    for _ in range(2):
        assert (cached.images.read("000001_01_02_010") == image).all()
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 3
    # Loader workers may be started by spawn.
    assert (pickle.loads(pickle.dumps(cached)).images.read("000001_01_02_010") == image).all()


def test_boxes_are_zero_based_clipped_and_measured(tmp_path: Path):
    rows = [*patients(3), row(1, Bounding_boxes="-3, 40, 20, 60", Coarse_lesion_type=4)]
    data = DeepLesion(str(write_tree(tmp_path, rows)))
    label = data.labels.annotations["000001_01_02_010"]
    assert label.boxes.tolist() == [[10, 10, 30, 35], [0, 39, 19, 48]]
    assert label.sizes_mm == pytest.approx([14.4, 14.4]) and label.subtypes == ("lung", "liver")
    assert label.labels.tolist() == [1, 1] and not label.ignore.any()
    assert len(data.images.infos) == 3


def test_noisy_and_other_types_are_ignore_regions(tmp_path: Path, caplog):
    rows = [
        *patients(4),
        row(1, Possibly_noisy=1, Bounding_boxes="1, 1, 9, 9"),
        row(1, Coarse_lesion_type=4, Bounding_boxes="21, 1, 29, 9"),
        row(5, Coarse_lesion_type=4),
        row(6, Possibly_noisy=1),
        row(7, Coarse_lesion_type=-1),
    ]
    root = str(write_tree(tmp_path, rows))
    with caplog.at_level(logging.INFO):
        data = DeepLesion(root, lesion_type="lung")
    assert list(data.images.infos) == [f"{p:06d}_01_02_010" for p in range(1, 5)]
    assert data.labels.annotations["000001_01_02_010"].ignore.tolist() == [False, True, True]
    assert "only slices with such a lesion" in caplog.text
    assert "2 ignore regions" in caplog.text
    everything = DeepLesion(root)
    assert len(everything.images.infos) == 6
    assert everything.labels.annotations["000001_01_02_010"].ignore.tolist() == [False, True, False]


def test_split_by_patient_and_official(tmp_path: Path):
    rows = [row(p, index) for p in range(1, 11) for index in (10, 20)]
    root = str(write_tree(tmp_path, rows))
    data = DeepLesion(root, eval_split=0.4)
    groups = {name: {i[:6] for i in ids} for name, ids in data.images.splits.items()}
    assert [len(groups[name]) for name in ("train", "val", "test")] == [6, 2, 2]
    assert len(set.union(*groups.values())) == 10
    assert DeepLesion(root, eval_split=0.4, split_seed=1).images.splits != data.images.splits
    official = DeepLesion(root, dataset_type="official")
    assert official.images.splits["val"] == tuple(
        f"{p:06d}_01_02_{i:03d}" for p in (1, 4, 7, 10) for i in (10, 20)
    )
    assert official.images.fingerprint() != data.images.fingerprint()


def test_official_split_without_typed_training_images(tmp_path: Path):
    rows = [row(p, Coarse_lesion_type=-1 if p % 3 == 0 else 5) for p in range(1, 10)]
    root = str(write_tree(tmp_path, rows))
    with pytest.raises(ConfigError, match=r"no image in train.*non-specified"):
        DeepLesion(root, dataset_type="official", lesion_type="lung")
    assert len(DeepLesion(root, lesion_type="lung").images.infos) == 6


def test_official_split_must_keep_patients_together(tmp_path: Path):
    root = write_tree(tmp_path, [*patients(), row(1, 20, Train_Val_Test=3)])
    with pytest.raises(DataError, match="000001"):
        DeepLesion(str(root), dataset_type="official")


def test_full_file_with_other_counts_is_warned_of(tmp_path: Path, caplog):
    root = write_tree(tmp_path, patients())
    rest = [row(1 + i % 900, 100 + i % 800, Possibly_noisy=1) for i in range(32735 - 6)]
    write_rows(root, [*patients(), *rest[1:]])
    DeepLesion(str(root), dataset_type="official")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    write_rows(root, [*patients(), *rest])
    DeepLesion(str(root), dataset_type="official")
    assert "known to give 22901 boxes on 22478 images" in caplog.text


def damage(root: Path, kind: str) -> str:
    """Spoil the first patient's key slice (or a neighbour); return words of the complaint."""
    folder = root / "Images_png" / "000001_01_02"
    key = folder / "010.png"
    if kind == "missing":
        key.unlink()
        return "key slice 000001_01_02_010.png is missing"
    if kind == "missing series":
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        return "key slice 000001_01_02_010.png is missing"
    if kind == "8 bit":
        cv2.imwrite(str(key), np.zeros((SIDE, SIDE), np.uint8))
        return "must be 16-bit grey"
    if kind == "other size":
        cv2.imwrite(str(key), np.zeros((SIDE, SIDE - 1), np.uint16))
        return f"has {SIDE - 1}x{SIDE} pixels"
    key.write_bytes(key.read_bytes()[: {"truncated": -9, "empty": 0}[kind]])
    return kind


@pytest.mark.parametrize(
    "kind", ["missing", "missing series", "8 bit", "other size", "truncated", "empty"]
)
def test_bad_key_slices(tmp_path: Path, caplog, kind):
    root = write_tree(tmp_path, patients())
    words = damage(root, kind)
    with pytest.raises(DataError, match="on_bad_sample") as caught:
        DeepLesion(str(root))
    assert words in str(caught.value)
    data = DeepLesion(str(root), on_bad_sample="skip")
    assert len(data.images.infos) == 5 and "000001_01_02_010" not in data.images.infos
    assert words in caplog.text and "bad sample(s) skipped" in caplog.text


def test_damaged_neighbour_counts_as_missing(tmp_path: Path, caplog):
    root = write_tree(tmp_path, patients(), neighbours=2)
    for name, keep in (("012.png", 20), ("008.png", 0)):
        path = root / "Images_png" / "000001_01_02" / name
        path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"2 bad[\s\S]*0(12|08)\.png"):
        DeepLesion(str(root), slice_step_mm=10)
    data = DeepLesion(str(root), slice_step_mm=10, on_bad_sample="skip")
    image = data.images.read("000001_01_02_010")
    assert [hu_of(image, c) for c in range(3)] == pytest.approx([90, 100, 110], abs=2e-3)
    assert len(data.images.infos) == 6


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"Bounding_boxes": "nan, 1, 5, 5"}, "finite", id="NaN box"),
        pytest.param({"Bounding_boxes": "1, 1, inf, 5"}, "finite", id="infinite box"),
        pytest.param({"Bounding_boxes": "5, 5, 5, 9"}, "positive area", id="zero-area box"),
        pytest.param({"Bounding_boxes": "9, 9, 5, 5"}, "positive area", id="turned box"),
        pytest.param({"Bounding_boxes": "60, 60, 70, 70"}, "outside", id="outside box"),
        pytest.param({"Bounding_boxes": "1, 2, 3"}, "4 number", id="three numbers"),
        pytest.param({"Bounding_boxes": ""}, "4 number", id="no box"),
        pytest.param({"Patient_index": 9}, "does not agree", id="another patient"),
        pytest.param({"Key_slice_index": 9}, "does not agree", id="another slice"),
        pytest.param({"File_name": "../../etc/passwd.png"}, "form PPPPPP", id="leaves the root"),
        pytest.param({"File_name": "/000001_01_02_010.png"}, "form PPPPPP", id="absolute"),
        pytest.param({"Coarse_lesion_type": 9}, "Coarse_lesion_type", id="unknown type"),
        pytest.param({"Possibly_noisy": "x"}, "Possibly_noisy", id="no number"),
        pytest.param({"Train_Val_Test": 0}, "Train_Val_Test", id="unknown split"),
        pytest.param({"Image_size": "0, 5"}, "Image_size", id="no pixels"),
    ],
)
def test_bad_rows(tmp_path: Path, caplog, changes, words):
    root = write_tree(tmp_path, patients())
    rows = [*patients(), row(1, **changes)]
    write_rows(root, rows)
    with pytest.raises(DataError, match=words):
        DeepLesion(str(root))
    data = DeepLesion(str(root), on_bad_sample="skip")
    assert len(data.images.infos) == 6 and words in caplog.text
    assert len(data.labels.annotations["000001_01_02_010"].boxes) == 1


def write_rows(root: Path, rows: list[dict[str, object]]) -> None:
    with (root / "DL_info.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def test_all_bad_things_are_listed_at_once(tmp_path: Path):
    root = write_tree(tmp_path, patients())
    write_rows(root, [*patients(), row(1, Bounding_boxes="5, 5, 5, 9")])
    (root / "Images_png" / "000002_01_02" / "010.png").unlink()
    (root / "Images_png" / "000003_01_02" / "010.png").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        DeepLesion(str(root))
    text = str(caught.value)
    assert "3 bad sample(s)" in text and "line 8" in text
    assert "000002_01_02_010.png is missing" in text and "is empty" in text


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        pytest.param(lambda root: None, "does not exist", id="no root"),
        pytest.param(lambda root: root.mkdir(), "DL_info.csv does not exist", id="no table"),
        pytest.param(
            lambda root: (root.mkdir(), write_rows(root, patients())), "no slices", id="no images"
        ),
    ],
)
def test_missing_data_says_where_to_get_it(tmp_path: Path, prepare, words):
    root = tmp_path / "DeepLesion"
    prepare(root)
    with pytest.raises(DataError, match=words) as caught:
        DeepLesion(str(root))
    assert "download deeplesion --links" in str(caught.value)
    assert "med_sslal phantom --out" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param("a,b\n1,2\n", "File_name, Patient_index", id="other table"),
        pytest.param(",".join(COLUMNS[:-1]) + "\n", "Train_Val_Test missing", id="17 columns"),
        pytest.param("\x00\x01", "column", id="binary"),
        pytest.param(",".join(COLUMNS) + "\n", "no usable lesion", id="no row"),
        pytest.param(",".join(COLUMNS) + "\na,b\n", "ends before", id="short row"),
    ],
)
def test_broken_table(tmp_path: Path, content, words):
    root = write_tree(tmp_path, patients(3))
    (root / "DL_info.csv").write_text(content)
    with pytest.raises((DataError, ConfigError), match=words):
        DeepLesion(str(root))


@pytest.mark.parametrize(
    "arguments",
    [
        {"lesion_type": "lungs"},
        {"dataset_type": "unspecified"},
        {"slice_mode": "nearest"},
        {"slice_step_mm": 0},
        {"window": [100, -100]},
        {"window": [0.0, float("nan")]},
        {"eval_split": 1.5},
        {"on_bad_sample": "ignore"},
    ],
    ids=str,
)
def test_wrong_arguments_name_their_key(arguments):
    [wrong] = wrong_arguments(DeepLesion, {"root": "nowhere", **arguments})
    assert wrong.name == next(iter(arguments)) and "llowed: " in wrong.message


def test_file_damaged_after_the_check(tmp_path: Path):
    root = write_tree(tmp_path, patients(3))
    data = DeepLesion(str(root))
    (root / data.images.infos["000001_01_02_010"].file_name).write_bytes(b"")
    with pytest.raises(DataError, match=r"010\.png is damaged"):
        data.images.read("000001_01_02_010")


def test_every_argument_has_a_meaning_for_help_config():
    for argument in signature(DeepLesion).arguments.values():
        assert len(argument.meaning) > 20, argument.name
