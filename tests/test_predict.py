"""Detections of a trained run on a folder of files: what is written, skipped and gone on with."""

import csv
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from commands import blocks, run_command
from onnxruntime import InferenceSession
from pycocotools.coco import COCO as ReferenceCOCO
from safetensors.torch import load_file
from small_detectors import SmallRCNN
from test_distributed import free_port
from tiny import files_of, make_voc, quick_config, run_train, write_config

import med_sslal
from med_sslal.__main__ import main
from med_sslal.data.voc import PascalVOC
from med_sslal.eval.coco_utils import from_coco_predictions
from med_sslal.model.detectors import FasterRCNN
from med_sslal.model.onnx_file import write_onnx
from med_sslal.trainer.prediction_folder import Journal
from med_sslal.trainer.run_folder import RunFolder
from med_sslal.utils.boxes import paired_iou
from med_sslal.utils.util import read_json, sha256_file

RESULTS = ("predictions.json", "predictions.csv", "skipped.txt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    base = tmp_path_factory.mktemp("predict")
    config = quick_config(make_voc(base / "data", classes=2), base / "runs")
    config["arch"]["args"]["num_classes"] = 3
    config["al_settings"]["num_cycles"] = 0
    config["trainer"]["epochs"] = 8
    assert run_train("-c", write_config(base / "config.json", config), "--run-id", "r") == 0
    return RunFolder(base / "runs" / config["name"] / "r")


def predict(run: RunFolder, images: Path, out: Path, *more: str) -> int:
    return main(["predict", "-r", str(run), "--images", str(images), "--out", str(out), *more])


def pictures_of(run: RunFolder) -> Path:
    return Path(read_json(run.config)["dataset"]["args"]["root"]) / "JPEGImages"


@pytest.fixture
def scans(tmp_path: Path, folder: RunFolder) -> Path:
    """Eight pictures of several kinds, with names that are no easy ones."""
    source = sorted(pictures_of(folder).iterdir())
    root = tmp_path / "scans"
    for number, name in enumerate(
        ("a/x.png", "a/x.tif", 'b, "ü".png', "-r.png", "n" * 200 + ".PNG")
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(root / name), cv2.imread(str(source[number])))
    shutil.copy(source[6], root / "a" / "x.jpg")
    shutil.copy(source[7], os.fsencode(root) + b"/\xff.jpg")
    cv2.imwrite(str(root / "wide.png"), cv2.resize(cv2.imread(str(source[8])), (150, 40)))
    (root / "notes.txt").write_text("no image")
    return root


def test_what_is_written_is_what_the_detector_finds(
    folder: RunFolder, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (scans / "bad.png").write_bytes(b"no picture")
    whole = (scans / "wide.png").read_bytes()
    # Its pixels alone are damaged: that shows when they are decoded.
    (scans / "cut.png").write_bytes(whole[:60] + bytes(len(whole) - 80) + whole[-20:])
    cv2.imwrite(str(scans / "deep.png"), np.zeros((8, 8), dtype=np.uint16))
    out = tmp_path / "out"
    assert predict(folder, scans, out, "--threshold", "0.2", "--overlays", "3") == 0
    skipped = (out / "skipped.txt").read_text().splitlines()
    for name, why in (("bad", "damaged"), ("cut", "decoded"), ("deep", "16 bits, whose range")):
        assert sum(f"{name}.png" in line and why in line for line in skipped) == 1, skipped
    assert len(skipped) == 3
    content, run = read_json(out / "predictions.json"), med_sslal.load(folder.path)
    names = [image["file_name"] for image in content["images"]]
    assert len(names) == 8 and {"a/x.png", "a/x.tif", "a/x.jpg"} < set(names)
    found = from_coco_predictions(content, run.class_names)
    expected = run.predict([scans / name for name in names], min_score=0.2)
    for (name, each), wanted in zip(found.items(), expected, strict=True):
        np.testing.assert_allclose(each.boxes, wanted.boxes, atol=0.01, err_msg=name)
        np.testing.assert_allclose(each.scores, wanted.scores, atol=1e-4)
    assert found["wide.png"].boxes[:, 2].max() > 64, "original pixels"
    n_found = sum(len(each.scores) for each in found.values())
    assert n_found and f"{n_found} detections on 8 images: {out}" in capsys.readouterr().out
    with (out / "predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == n_found and {row["class"] for row in rows} <= {"class0", "class1"}
    assert len(ReferenceCOCO(str(out / "predictions.json")).anns) == n_found
    tops = [max(each.scores, default=0) for each in found.values()]
    best = sorted(range(8), key=lambda place: -tops[place])[:3]
    assert files_of(out / "overlays") == {f"{place + 1:06d}.png" for place in best}


def test_false_positives_of_validation_choose_the_score(folder: RunFolder, tmp_path: Path) -> None:
    """What is found on the validation images is the sensitivity that the run has measured."""
    val, seen = read_json(folder.split)["val"], set()
    (tmp_path / "val").mkdir()
    for image_id in val:
        shutil.copy(pictures_of(folder) / f"{image_id}.jpg", tmp_path / "val")
    data = PascalVOC(**read_json(folder.config)["dataset"]["args"]).labels
    measured = read_json(folder.cycle(0).metrics)["val"]["values"]
    for fps in ("0.5", "2", "16"):
        assert predict(folder, tmp_path / "val", tmp_path / fps, "--fps", fps) == 0
        content = read_json(tmp_path / fps / "predictions.json")
        found = from_coco_predictions(content, data.class_names)
        for number, name in enumerate(data.class_names, start=1):
            hits = []
            for image_id in val:
                each, truth = found[f"{image_id}.jpg"], data.annotations[image_id]
                boxes = each.boxes[each.labels == number]
                for box in truth.boxes[truth.labels == number]:
                    overlaps = paired_iou(np.repeat(box[None], len(boxes), 0), boxes)
                    hits.append(bool((overlaps >= 0.5).any()))
            assert np.mean(hits) == pytest.approx(measured[f"sens_{fps}fp/{name}"]), (fps, name)
            seen.add(np.mean(hits))
    assert len(seen) > 1, "the limits tell something apart"


def start(run: RunFolder, images: Path, out: Path) -> Any:
    """The command in a process of its own, which need not load anything anew."""
    words = (run, images, out, "--threshold", "0.01")
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=lambda: sys.exit(predict(*words)), daemon=True)
    process.start()
    return process


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_command_ends_with_the_same_files(
    folder: RunFolder, tmp_path: Path, number: signal.Signals
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for copy in range(2):
        for picture in sorted(pictures_of(folder).iterdir()):
            shutil.copy(picture, images / f"{copy}{picture.name}")
    (images / "1bad.jpg").write_bytes((images / "1image003.jpg").read_bytes()[:200])
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert predict(folder, images, whole, "--threshold", "0.01") == 0
    process, journal = start(folder, images, cut), cut / "found.jsonl"
    while not journal.exists() or journal.read_bytes().count(b"\n") < 3:
        assert process.is_alive()
        time.sleep(0.005)
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == (143 if number == signal.SIGTERM else -9)
    done = journal.read_bytes()
    assert 3 <= done.count(b"\n") < 12
    with journal.open("ab") as stream:
        stream.write(b'[["half a li')
    assert predict(folder, images, cut, "--threshold", "0.01") == 0
    assert journal.read_bytes().startswith(done[: done.rindex(b"\n")])
    for name in RESULTS:
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
    assert files_of(cut) == files_of(whole)


def test_a_folder_of_other_detections_is_left_alone(
    folder: RunFolder, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert predict(folder, scans, out, "--threshold", "0.3") == 0
    before = {name: (out / name).read_bytes() for name in RESULTS}
    assert predict(folder, scans, out, "--threshold", "0.4") == 2
    assert "detections of other scores: name another folder" in capsys.readouterr().err
    shutil.copy(scans / "-r.png", scans / "new.png")
    assert predict(folder, scans, out, "--threshold", "0.3") == 2
    assert "detections of other images" in capsys.readouterr().err
    assert before == {name: (out / name).read_bytes() for name in RESULTS}
    (scans / ".mine.partial").mkdir()
    (scans / ".mine.partial" / "thesis.txt").touch()
    assert predict(folder, scans, scans, "--threshold", "0.3") == 2
    assert "is not empty" in capsys.readouterr().err
    assert (scans / ".mine.partial" / "thesis.txt").exists()


def test_two_commands_do_not_fill_one_folder(
    folder: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, fork = ("--threshold", "0.3"), multiprocessing.get_context("fork")
    assert predict(folder, pictures_of(folder), tmp_path, *words) == 0
    ready, done = fork.Event(), fork.Event()

    def other() -> None:
        journal = Journal(tmp_path / "found.jsonl")
        # To read it does not give it up.
        assert len(list(journal.read())) > 0
        ready.set()
        done.wait(300)
        journal.close()

    process = fork.Process(target=other, daemon=True)
    process.start()
    assert ready.wait(300)
    assert predict(folder, pictures_of(folder), tmp_path, *words) == 2
    assert f"another process is at work in {tmp_path}" in capsys.readouterr().err
    done.set()
    process.join()
    assert predict(folder, pictures_of(folder), tmp_path, *words) == 0


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--images", "none"], "folder none does not exist"),
        (["--images", "empty"], "folder empty holds no picture"),
        (["--images", "bad"], "no file of bad can be read"),
        (["-r", "stray.pth"], "no score is known for --fps 1, give --threshold"),
    ],
    ids=["no folder", "no picture", "none readable", "no validation"],
)
def test_what_cannot_be_detected_on(
    folder: RunFolder,
    tmp_path: Path,
    more: list[str],
    told: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "bad"):
        Path(name).mkdir()
    Path("bad/x.png").write_bytes(b"no picture")
    shutil.copy(folder.cycle(0).best, "stray.pth")
    assert predict(folder, pictures_of(folder), tmp_path / "out", *more) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_sixteen_bits_by_a_window(
    folder: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("flat", "deep"):
        (tmp_path / kind).mkdir()
    for picture in sorted(pictures_of(folder).iterdir())[:3]:
        grey = cv2.imread(str(picture), cv2.IMREAD_GRAYSCALE)
        cv2.imwrite(str(tmp_path / "flat" / f"{picture.stem}.png"), grey)
        deep = grey.astype(np.uint16) * 10 + 1000
        cv2.imwrite(str(tmp_path / "deep" / f"{picture.stem}.png"), deep)
    found = []
    for kind, more in (("flat", []), ("deep", ["--window=1000,3550"])):
        out = tmp_path / f"of {kind}"
        assert predict(folder, tmp_path / kind, out, "--threshold", "0.2", *more) == 0
        content = read_json(out / "predictions.json")
        found.append([each["bbox"] for each in content["annotations"]])
    assert found[0] and np.allclose(*found, atol=0.01)
    other = ("--threshold", "0.2", "--window=0,3550")
    assert predict(folder, tmp_path / "deep", tmp_path / "of deep", *other) == 2
    assert "detections of other window: name another" in capsys.readouterr().err


def test_an_exported_detector_is_the_same(
    folder: RunFolder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["export", "-r", str(folder), "--onnx", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    content = read_json(tmp_path / "out" / "model.json")
    assert content["class_names"] == ["class0", "class1"] and content["window"] is None
    assert content["image_size"] == [64, 64] and content["image_std"] == [0.229, 0.224, 0.225]
    weights = tmp_path / "out" / content["weights"]
    assert sha256_file(weights) == content["sha256"]
    model = SmallRCNN(**content["arch"]["args"], load_pretrained=False).eval()
    model.load_state_dict(load_file(weights))
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        own = med_sslal.load(folder.path).model
        pairs = (each(images).detections for each in (model, own))
        for found, wanted in zip(*pairs, strict=True):
            assert len(found.scores)
            torch.testing.assert_close(found.boxes, wanted.boxes)
    graph = tmp_path / "out" / content["onnx"]["file"]
    assert sha256_file(graph) == content["onnx"]["sha256"]
    (given,) = InferenceSession(graph, providers=["CPUExecutionProvider"]).get_inputs()
    assert {given.name: given.shape} == content["onnx"]["input"]
    before = weights.read_bytes()
    assert main(words) == 2 and "is not empty" in capsys.readouterr().err
    assert weights.read_bytes() == before
    for package in ("onnx", "safetensors"):
        monkeypatch.setitem(sys.modules, package, None)
        assert main([*words[:-1], str(tmp_path / "other")]) == 2
        assert f"pip install {package}" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_the_commands_of_the_page_export_one_after_the_other(
    folder: RunFolder, tmp_path: Path
) -> None:
    page = Path(__file__).parents[1] / "docs" / "predict.md"
    commands = [block for block in blocks(page, "sh") if " export " in block]
    assert len(commands) == 2
    for command in commands:
        told = command.strip().replace("-r latest", f"-r {folder.path}")
        assert run_command(told, tmp_path) == 0


@pytest.mark.filterwarnings("error::FutureWarning")
def test_an_onnx_file_finds_the_same(tmp_path: Path) -> None:
    """However many boxes an image has, none among them."""
    args: dict[str, Any] = {"num_classes": 3, "backbone_name": "resnet18", "norm": "group"}
    args |= {"fpn_channels": 16, "box_head_size": 16}
    torch.manual_seed(0)
    model = FasterRCNN(**args, box_score_thresh=0.0).eval()
    images = torch.rand(5, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        best = sorted(float(found.scores.max()) for found in model(images).detections)
        # What the best detection of one image does not reach.
        above = FasterRCNN(**args, box_score_thresh=(best[0] + best[1]) / 2).eval()
        above.load_state_dict(model.state_dict())
        detections = above(images).detections
    counts = {len(found.scores) for found in detections}
    assert 0 in counts and len(counts) > 2
    write_onnx(tmp_path / "model.onnx", above, (64, 96))
    session = InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for image, wanted in zip(images, detections, strict=True):
        boxes, labels, scores = session.run(None, {"image": image[None].numpy()})
        np.testing.assert_allclose(boxes, wanted.boxes, atol=1e-3)
        np.testing.assert_array_equal(labels, wanted.labels)
        np.testing.assert_allclose(scores, wanted.scores, atol=1e-5)


@pytest.mark.slow
def test_two_processes_find_what_one_does(folder: RunFolder, scans: Path, tmp_path: Path) -> None:
    whole = (scans / "a" / "x.jpg").read_bytes()
    (scans / "bad.jpg").write_bytes(whole[:300] + b"\xff\xd9")
    words = ["predict", "-r", str(folder), "--images", str(scans), "--threshold", "0.01", "--out"]
    assert main([*words, str(tmp_path / "one")]) == 0
    launch = ["torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    command = [sys.executable, "-m", *launch, "-m", "med_sslal", *words, str(tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = (read_json(tmp_path / name / "predictions.json") for name in ("one", "two"))
    assert two["images"] == one["images"]
    boxes = ([each["bbox"] for each in content["annotations"]] for content in (one, two))
    np.testing.assert_allclose(*boxes, atol=0.01)
    assert (tmp_path / "one/skipped.txt").read_text() == (tmp_path / "two/skipped.txt").read_text()
