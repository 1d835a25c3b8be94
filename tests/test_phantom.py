"""The phantom: files as DeepLesion writes them, deterministic, plausible, worth learning from."""

import csv
import errno
import hashlib
import logging
import multiprocessing
import os
import signal
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest

from med_sslal.__main__ import main
from med_sslal.data.deeplesion import DeepLesion
from med_sslal.phantom import generate
from med_sslal.phantom.dataset import DeepLesionPhantom
from med_sslal.phantom.render import correlated_noise
from med_sslal.utils.errors import ConfigError, UserError
from med_sslal.utils.interrupt import Interrupted

DATA = os.environ.get("MED_SSLAL_TEST_DATA")
SIZE = 96


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    out = tmp_path_factory.mktemp("phantom") / "set"
    generate(out, patients=60, size=SIZE, seed=3)
    return out


def table(folder: Path, name: str = "DL_info.csv") -> list[dict[str, str]]:
    with (folder / name).open(newline="") as stream:
        return list(csv.DictReader(stream))


def numbers(text: str) -> list[float]:
    return [float(value) for value in text.split(",")]


def hu(folder: Path, file_name: str, step: int = 0) -> np.ndarray:
    series, index = file_name[:-4].rsplit("_", 1)
    path = folder / "Images_png" / series / f"{int(index) + step:03d}.png"
    picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert picture.dtype == np.uint16
    return picture.astype(np.int32) - 32768


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_same_arguments_give_same_bytes_and_patients_are_independent(tmp_path):
    generate(tmp_path / "a", patients=3, size=64, seed=1)
    generate(tmp_path / "b", patients=3, size=64, seed=1)
    generate(tmp_path / "more", patients=5, size=64, seed=1)
    generate(tmp_path / "other", patients=3, size=64, seed=2)
    first = digests(tmp_path / "a")
    assert first == digests(tmp_path / "b")
    pixels = {name: digest for name, digest in first.items() if name.endswith(".png")}
    assert pixels.items() <= digests(tmp_path / "more").items()
    assert not set(first.values()) & set(digests(tmp_path / "other").values())


def test_any_number_of_cores_gives_the_same_bytes(tmp_path, monkeypatch):
    arguments = {"patients": 16, "size": 64, "seed": 4, "hidden_fraction": 0.2}
    found = []
    for cores in (1, 3):
        monkeypatch.setattr("med_sslal.phantom.writer.usable_cores", partial(int, cores))
        generate(tmp_path / f"{cores}", **arguments)
        found.append(digests(tmp_path / f"{cores}"))
    assert found[0] == found[1] and len(found[0]) > 100


def test_a_full_disk_in_a_process_of_its_own_is_told(tmp_path, monkeypatch):
    """The folder of one patient cannot be written: the whole phantom is given up."""
    monkeypatch.setattr("med_sslal.phantom.writer.usable_cores", lambda: 2)
    monkeypatch.setattr(Path, "write_bytes", _no_space)
    with pytest.raises(UserError, match="No space left"):
        generate(tmp_path / "set", patients=16, size=64, seed=0)
    assert not list(tmp_path.iterdir())


def _no_space(path: Path, content: bytes) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_table_is_spelled_as_in_the_real_file(phantom):
    if DATA is None:
        pytest.skip("MED_SSLAL_TEST_DATA is not set")
    real = (Path(DATA) / "deeplesion_excerpt" / "DL_info.csv").read_bytes().splitlines()
    made = (phantom / "DL_info.csv").read_bytes().splitlines()
    assert made[0] == real[0]

    def shape(line: bytes) -> str:
        """The row with every number and letter blotted out."""
        text = next(csv.reader([line.decode()]))
        return str([", " * field.count(", ") for field in text]) + str(line.count(b'"'))

    assert {shape(line) for line in made[1:]} == {shape(real[1])}
    longest = max(
        len(value.strip("-").replace(".", "").lstrip("0"))
        for line in made[1:]
        for field in next(csv.reader([line.decode()]))[5:9]
        for value in field.split(", ")
        if "e" not in value
    )
    assert longest == 6  # significant digits


def test_boxes_are_recist_extremes_and_padding_counted_from_one(phantom):
    for row in table(phantom):
        points = np.array(numbers(row["Measurement_coordinates"])).reshape(4, 2)
        expected = [*(points.min(0) - 5), *(points.max(0) + 5)]
        np.testing.assert_allclose(numbers(row["Bounding_boxes"]), expected, rtol=1e-5)
        assert (points >= 1).all()
        assert (points <= SIZE).all()
        long, short = numbers(row["Lesion_diameters_Pixel_"])
        np.testing.assert_allclose(np.linalg.norm(points[1] - points[0]), long, atol=1e-3)
        np.testing.assert_allclose(np.linalg.norm(points[3] - points[2]), short, atol=1e-3)


def test_every_row_has_its_slices_two_millimetres_either_side(phantom):
    for row in table(phantom):
        first, last = numbers(row["Slice_range"])
        step, key = numbers(row["Spacing_mm_px_"])[2], int(row["Key_slice_index"])
        assert min(key - first, last - key) * step >= 2
        for index in range(int(first), int(last) + 1):
            assert hu(phantom, row["File_name"], index - key).shape == (SIZE, SIZE)


def test_hounsfield_units_are_those_of_a_body(phantom):
    lung = fat = soft = 0.0
    rows = table(phantom)
    for row in rows:
        picture = hu(phantom, row["File_name"])
        assert picture.min() >= -1024
        assert picture.max() <= 3071
        lung += (abs(picture + 860) < 80).mean() / len(rows)
        fat += (abs(picture + 100) < 40).mean() / len(rows)
        soft += ((picture > 10) & (picture < 160)).mean() / len(rows)
    assert 0.3 < lung < 0.8
    assert 0.01 < fat < 0.2
    assert 0.1 < soft < 0.5


def test_noise_is_grainy():
    noise = correlated_noise((400, 400), np.random.default_rng(0))
    assert noise.std() == pytest.approx(1, abs=0.03)
    for a, b in ((noise[1:], noise[:-1]), (noise[:, 1:], noise[:, :-1])):
        assert 0.4 < np.corrcoef(a.ravel(), b.ravel())[0, 1] < 0.55


def test_mix_of_difficulties_and_types(phantom):
    lesions = table(phantom, "phantom_lesions.csv")
    share = {k: n / len(lesions) for k, n in Counter(r["Difficulty"] for r in lesions).items()}
    for name, expected, tolerance in (
        ("easy", 0.65, 0.10),
        ("medium", 0.20, 0.08),
        ("tiny", 0.08, 0.05),
        ("rare", 0.05, 0.04),
        ("outlier", 0.02, 0.02),
    ):
        assert share.get(name, 0) == pytest.approx(expected, abs=tolerance), name
    rare = {row["File_name"][:6] for row in lesions if row["Difficulty"] == "rare"}
    assert 1 <= len(rare) <= 5
    types = Counter(row["Coarse_lesion_type"] for row in table(phantom))
    assert types["5"] > 0.7 * types.total()
    assert len(types) >= 4


@pytest.mark.parametrize(
    ("difficulty", "low", "high"),
    [
        pytest.param("easy", 4, 70, id="no easy lesion is lost in a vessel's size"),
        pytest.param("tiny", 1, 7, id="tiny"),
    ],
)
def test_sizes_in_millimetres(phantom, difficulty, low, high):
    rows = table(phantom, "phantom_lesions.csv")
    sizes = [float(row["Diameter_mm"]) for row in rows if row["Difficulty"] == difficulty]
    assert low < min(sizes)
    assert max(sizes) < high


def test_images_per_patient_and_split(phantom):
    images = {row["File_name"]: row for row in table(phantom)}
    per_patient = Counter(row["Patient_index"] for row in images.values())
    assert len(per_patient) == 60
    assert 3 <= np.median(list(per_patient.values())) <= 5
    assert max(per_patient.values()) > 12
    sides = defaultdict(set)
    for row in images.values():
        sides[row["Patient_index"]].add(row["Train_Val_Test"])
    assert Counter(tuple(side) for side in sides.values()) == {("1",): 42, ("2",): 9, ("3",): 9}


def centre_contrast(folder: Path, row: dict[str, str]) -> float:
    """Median HU at the centre of a box, less that of a ring around the box."""
    picture = hu(folder, row["File_name"])
    x1, y1, x2, y2 = (round(v) - 1 for v in numbers(row["Bounding_boxes"]))
    x, y = (x1 + x2) // 2, (y1 + y2) // 2
    ring = picture[max(0, y1) : y2, max(0, x1) : x2].copy().astype(float)
    ring[4:-4, 4:-4] = np.nan
    return float(np.median(picture[y - 1 : y + 2, x - 1 : x + 2]) - np.nanmedian(ring))


def test_easy_lesions_stand_out(phantom):
    kinds = [row["Difficulty"] for row in table(phantom, "phantom_lesions.csv")]
    contrast = defaultdict(list)
    for row, kind in zip(table(phantom), kinds, strict=True):
        contrast[kind].append(centre_contrast(phantom, row))
    easy = np.array(contrast["easy"])
    assert (easy > 80).mean() > 0.95
    assert np.median(easy) > 700
    assert np.median(np.abs(contrast["rare"])) < 350


def test_follow_ups_repeat_the_anatomy(phantom):
    series = defaultdict(dict)
    for row in table(phantom):
        series[row["Patient_index"], row["Series_ID"]][row["Study_index"]] = row["File_name"]

    def likeness(first: str, second: str) -> float:
        a, b = (cv2.blur(hu(phantom, n).astype(np.float32), (9, 9)) for n in (first, second))
        return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])

    repeated = [files for files in series.values() if {"1", "2"} <= files.keys()][:20]
    assert len(repeated) == 20
    same = [likeness(files["1"], files["2"]) for files in repeated]
    other = [
        likeness(a["1"], b["1"]) for a, b in zip(repeated, repeated[7:] + repeated[:7], strict=True)
    ]
    assert np.median(same) > 0.9
    assert np.median(same) > np.median(other) + 0.3


def test_hidden_lesions_are_in_the_side_file_only(tmp_path):
    generate(tmp_path / "h", patients=8, size=160, seed=0, hidden_fraction=0.5)
    marked, listed = table(tmp_path / "h"), table(tmp_path / "h", "phantom_lesions.csv")
    hidden = [row for row in listed if row["Hidden"] == "1"]
    assert 0.2 < len(hidden) / len(listed) < 0.7
    boxes = {(row["File_name"], row["Bounding_boxes"]) for row in marked}
    assert not boxes & {(row["File_name"], row["Bounding_boxes"]) for row in hidden}
    assert len(marked) == len(listed) - len(hidden)
    assert {row["File_name"] for row in hidden} <= {row["File_name"] for row in marked}


def test_interrupted_generation_leaves_nothing(tmp_path):
    def interrupt() -> None:
        assert any(tmp_path.iterdir())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "set", patients=3, size=64, seed=0, progress=interrupt)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=str)
def test_a_signal_while_it_is_made_leaves_nothing(tmp_path, number):
    def interrupt() -> None:
        os.kill(os.getpid(), number)

    with pytest.raises(Interrupted):
        generate(tmp_path / "set", patients=16, size=64, seed=0, progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_loser_of_a_race_keeps_the_winner(tmp_path):
    def overtake() -> None:
        if not (tmp_path / "set").exists():
            generate(tmp_path / "set", patients=3, size=64, seed=0)

    generate(tmp_path / "set", patients=3, size=64, seed=0, progress=overtake)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert table(tmp_path / "set")


def test_another_phantom_of_the_same_name_is_not_mistaken_for_it(tmp_path):
    def overtake() -> None:
        if not (tmp_path / "set").exists():
            generate(tmp_path / "set", patients=3, size=64, seed=1)

    with pytest.raises(UserError, match="cannot write"):
        generate(tmp_path / "set", patients=3, size=64, seed=0, progress=overtake)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        pytest.param({"patients": 2}, "3 or more", id="too few patients for three splits"),
        pytest.param({"size": 32}, "64 to 512", id="smaller than a lesion"),
        pytest.param({"hidden_fraction": 0.95}, "below 0.9", id="nearly all hidden"),
    ],
)
def test_wrong_arguments_create_nothing(tmp_path, arguments, match):
    with pytest.raises(ConfigError, match=match):
        generate(tmp_path / "set", **{"patients": 3, "size": 64, "seed": 0, **arguments})
    assert not list(tmp_path.iterdir())


def test_occupied_folder_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        generate(tmp_path, patients=3, size=64, seed=0)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_progress_counts_patients(tmp_path):
    seen = []
    generate(tmp_path / "set", patients=3, size=64, seed=0, progress=lambda: seen.append(0))
    assert len(seen) == 3


def test_command_makes_a_phantom_that_says_so(tmp_path, capsys):
    out = tmp_path / "set"
    assert main(["phantom", "--out", str(out), "--patients", "3", "--size", "64"]) == 0
    assert "phantom" in capsys.readouterr().out
    text = (out / "PHANTOM.txt").read_text()
    assert "No pixel comes from a person" in text
    assert "seed: 0" in text
    assert main(["phantom", "--out", str(out)]) == 2


def test_dataset_is_made_once_and_read_as_deeplesion(tmp_path):
    arguments = {"root": str(tmp_path / "data"), "patients": 8, "size": 64, "eval_split": 0.5}
    dataset = DeepLesionPhantom(**arguments)
    (folder,) = (tmp_path / "data").iterdir()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    rows = table(folder)
    assert set(dataset.images.infos) == {row["File_name"][:-4] for row in rows}
    assert sum(len(label.boxes) for label in dataset.labels.annotations.values()) == len(rows)
    assert all(dataset.images.splits[name] for name in ("train", "val", "test"))
    image = dataset.images.read(next(iter(dataset.images.infos)))
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.float32
    assert DeepLesionPhantom(**arguments).images.fingerprint() == dataset.images.fingerprint()
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_share_of_the_lesions_can_be_without_a_mark(tmp_path):
    given = {"root": str(tmp_path / "data"), "patients": 4, "size": 64, "eval_split": 0.5}
    found = DeepLesionPhantom(**given, hidden_fraction=0.5).images
    generate(tmp_path / "same", patients=4, size=64, seed=0, hidden_fraction=0.5)
    same = DeepLesion(str(tmp_path / "same"), eval_split=0.5).images
    assert found.fingerprint() == same.fingerprint()
    assert all(np.array_equal(found.read(name), same.read(name)) for name in found.infos)
    all_marked = DeepLesionPhantom(**given).images
    assert all_marked.fingerprint() != found.fingerprint(), "it has a folder of its own"


def test_dataset_of_one_type_by_the_phantoms_own_split(tmp_path):
    dataset = DeepLesionPhantom(
        root=str(tmp_path), patients=12, size=64, lesion_type="lung", dataset_type="official"
    )
    assert {name for label in dataset.labels.annotations.values() for name in label.subtypes} == {
        "lung"
    }
    assert all(dataset.images.splits[name] for name in ("train", "val", "test"))


def test_a_phantom_that_another_process_has_just_finished_is_taken(tmp_path, caplog):
    class Other(logging.Handler):
        """Makes it between the look and the making."""

        def emit(self, record):
            if "making a phantom" in record.getMessage():
                generate(Path(record.args[1]), patients=3, size=64, seed=0)

    other, logger = Other(), logging.getLogger("med_sslal.phantom.dataset")
    logger.addHandler(other)
    try:
        with caplog.at_level(logging.INFO, logger=logger.name):
            found = DeepLesionPhantom(root=str(tmp_path), patients=3, size=64, eval_split=0.6)
    finally:
        logger.removeHandler(other)
    assert found.images.infos


def _open(root: str, queue: multiprocessing.Queue) -> None:
    queue.put(
        DeepLesionPhantom(root=root, patients=3, size=64, eval_split=0.6).images.fingerprint()
    )


@pytest.mark.slow
def test_two_processes_at_once_agree(tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=_open, args=(str(tmp_path), queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    prints = [queue.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    assert prints[0] == prints[1]
    assert len(list(tmp_path.iterdir())) == 1
