"""The program from Python: load a run, detect, choose."""

import logging
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from commands import blocks
from tiny import make_voc, quick_config, run_test, run_train, write_config
from torchvision.models import resnet18

import med_sslal
from med_sslal.base.base_dataset import BaseDataset
from med_sslal.eval.coco_utils import from_coco_predictions
from med_sslal.trainer.run_folder import RunFolder
from med_sslal.utils.errors import CheckpointError, ConfigError, DataError
from med_sslal.utils.util import read_json


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    base = tmp_path_factory.mktemp("api")
    config = quick_config(make_voc(base / "data"), base / "runs")
    config["al_settings"]["num_cycles"] = 1
    assert run_train("-c", write_config(base / "config.json", config), "--run-id", "r") == 0
    return RunFolder(base / "runs" / config["name"] / "r")


@pytest.fixture(scope="module")
def run(folder: RunFolder) -> med_sslal.Run:
    return med_sslal.load(folder.path)


def test_the_detections_are_those_of_the_run(folder: RunFolder, run: med_sslal.Run) -> None:
    stored = from_coco_predictions(read_json(folder.cycle(1).predictions), run.class_names)
    names = [run.images.infos[image_id].file_name for image_id in stored]
    root = Path(run.config["dataset"]["args"]["root"])
    as_files = run.predict([root / name for name in names], min_score=0)
    as_arrays = run.predict([run.images.read(image_id) for image_id in stored], min_score=0)
    for wanted, *found in zip(stored.values(), as_files, as_arrays, strict=True):
        for each in found:
            np.testing.assert_allclose(each.boxes, wanted.boxes, atol=0.01)
            np.testing.assert_allclose(each.scores, wanted.scores, atol=1e-4)
            assert (each.labels == wanted.labels).all()
    # Alone an image is rounded otherwise than among others.
    least = float(as_files[0].scores[0]) - 1e-5
    best = run.predict([root / names[0]], min_score=least)[0]
    assert 1 <= len(best.boxes) < len(as_files[0].boxes)


def test_grey_and_eight_bits_are_the_same_picture(run: med_sslal.Run) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (40, 64), dtype=np.uint8)
    forms = [grey, np.repeat(grey[..., None], 3, 2), grey / np.float32(255)]
    first, *others = run.predict(forms, min_score=0)
    assert len(first.boxes) and first.boxes[:, 3].max() <= 40
    for other in others:
        np.testing.assert_array_equal(first.boxes, other.boxes)


def test_fp32_is_that_here_too(run: med_sslal.Run) -> None:
    seen: list[bool] = []

    def note(*_: object) -> None:
        seen.append(torch.backends.cudnn.allow_tf32)

    hook = run.model.register_forward_pre_hook(note)
    run.predict([np.zeros((40, 40), np.uint8)])
    hook.remove()
    assert seen == [False] and torch.backends.cudnn.allow_tf32


def test_no_image_gives_no_detection(run: med_sslal.Run) -> None:
    assert run.predict([]) == []


def test_the_choice_is_that_of_the_command(run: med_sslal.Run) -> None:
    chosen = med_sslal.select(run.record, "entropy", budget=3)
    assert len(chosen.image_ids) == 3
    assert chosen.image_ids == med_sslal.select(run.record, "entropy", budget=3).image_ids
    spread = med_sslal.select(run.record, "entropy", "k_means_diversity", budget=3)
    assert spread.criteria == ("entropy", "k_means_diversity")
    with pytest.raises(ConfigError, match="Did you mean"):
        med_sslal.select(run.record, "entropi", budget=3)
    with pytest.raises(ConfigError, match="budget"):
        med_sslal.select(run.record, "entropy", budget=100)


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (np.zeros((8, 8, 4)), r"\[H, W\] or \[H, W, 3\]"),
        (np.full((8, 8), 200.0), "from 200.0 to 200.0"),
        (np.full((8, 8), np.nan), "in"),
        (np.zeros((0, 0)), "found float64"),
        (Path("missing.png"), "missing.png"),
    ],
)
def test_what_is_no_image_is_refused(
    run: med_sslal.Run, image: np.ndarray | Path, sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence):
        run.predict([image])


@pytest.mark.parametrize("images", ["a.png", Path("a.png"), np.zeros((8, 8))])
def test_one_image_is_no_list(run: med_sslal.Run, images: str | Path | np.ndarray) -> None:
    with pytest.raises(DataError, match="a list of images"):
        run.predict(images)  # type: ignore[arg-type]


def test_a_score_is_from_0_to_1(run: med_sslal.Run) -> None:
    with pytest.raises(DataError, match="min_score"):
        run.predict([], min_score=3)


def test_sixteen_bits_without_a_window_are_refused(run: med_sslal.Run, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "deep.png"), np.zeros((8, 8), dtype=np.uint16))
    with pytest.raises(DataError, match="16 bits"):
        run.predict([tmp_path / "deep.png"])


def test_the_weights_that_a_run_began_with_need_not_be_there(tmp_path: Path) -> None:
    config = quick_config(make_voc(tmp_path / "data"), tmp_path / "runs")
    config["arch"] |= {"type": "FasterRCNN"}
    config["arch"]["args"] |= {"backbone_name": "resnet18", "norm": "frozen"}
    config["al_settings"]["num_cycles"], config["trainer"]["epochs"] = 0, 1
    weights = tmp_path / "weights.pth"
    torch.save(resnet18().state_dict(), weights)
    config["arch"]["args"]["pretrained"] = str(weights)
    path = write_config(tmp_path / "config.json", config)
    assert run_train("-c", path, "--set", "trainer.steps_per_cycle=1", "--run-id", "r") == 0
    folder = tmp_path / "runs" / config["name"] / "r"
    image = np.random.default_rng(0).random((64, 64), dtype=np.float32)
    before = med_sslal.load(folder).predict([image], min_score=0)[0]
    weights.unlink()
    found = med_sslal.load(folder).predict([image], min_score=0)[0]
    np.testing.assert_array_equal(found.boxes, before.boxes)
    assert run_test("-r", folder) == 0


def test_what_is_no_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="latest"):
        med_sslal.load()
    with pytest.raises(AttributeError, match="lod"):
        _ = med_sslal.lod  # type: ignore[attr-defined]


def test_an_older_model_in_place_of_a_damaged_one_is_told(
    folder: RunFolder,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy = RunFolder(Path(shutil.copytree(folder.path, tmp_path / "run")))
    copy.cycle(1).best.write_bytes(b"damaged")
    # The commands' logging, which an earlier test has set up, keeps its lines to itself.
    monkeypatch.setattr(logging.getLogger("med_sslal"), "propagate", True)
    with caplog.at_level("WARNING"):
        assert med_sslal.load(copy.path).path == copy.cycle(0).best
    assert "is damaged" in caplog.text and "falling back" in caplog.text


def test_pool_labels_stay_out_of_reach(run: med_sslal.Run) -> None:
    assert not isinstance(run.images, BaseDataset) and not hasattr(run.images, "annotations")


def test_the_example_of_the_readme(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = blocks(Path(__file__).parents[1] / "README.md", "python")
    monkeypatch.setattr(med_sslal, "load", lambda path: med_sslal.api.load(folder.path))
    exec(example.replace("budget=10", "budget=2"), {})
    assert "('class0',)" in capsys.readouterr().out


def test_the_package_loads_without_torch() -> None:
    code = "import sys, med_sslal; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
