"""What a person can get wrong: one sentence, exit code 2, and nothing half-written."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from tiny import files_of, make_voc, quick_config, run_test, run_train, write_config

from med_sslal.phantom import generate

ROOT = Path(__file__).parents[1]
SHORT = ["--set", "al_settings.num_cycles=0", "--set", "trainer.epochs=1"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_voc(tmp_path / "voc")


@pytest.fixture
def config(data: Path, tmp_path: Path) -> dict[str, Any]:
    return quick_config(data, tmp_path / "runs")


class Refused:
    """Runs a command line that must be refused, and checks how."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys

    def __call__(self, config: dict[str, Any] | str, *words: str | Path, lines: int = 1) -> str:
        """The error's text; it has `lines` lines."""
        path = self.folder / "config.json"
        path.write_text(config if isinstance(config, str) else json.dumps(config, indent=4))
        return self.line("-c", path, *words, lines=lines)

    def line(self, *words: str | Path, lines: int = 1) -> str:
        """The same for a whole command line of train.py."""
        before = files_of(self.folder)
        self.capsys.readouterr()
        try:
            code = run_train(*words)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        error = self.capsys.readouterr().err
        assert code == 2, error
        assert files_of(self.folder) == before and not (self.folder / "runs").exists()
        text = error[error.index("error: ") :].removeprefix("error: ").rstrip("\n")
        assert text.count("\n") == lines - 1, text
        return text.replace(f"{self.folder}/", "")


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    return Refused(tmp_path, capsys)


SETTINGS: dict[str, tuple[list[str], str]] = {
    "unknown key": (
        ["trainer.epoch=3"],
        "--set trainer.epoch: unknown key. Did you mean 'epochs' (default 50)?",
    ),
    "wrong type": (["trainer.epochs=ten"], 'trainer.epochs: found the string "ten"; allowed:'),
    "number as text": (['batch_size="10"'], 'batch_size: found the string "10"'),
    "unknown criterion": (
        ['al_settings.args.al_criterion=["localisation_tightness"]'],
        "Did you mean 'localization_tightness'?",
    ),
    "two uncertainty criteria": (
        ['al_settings.args.al_criterion=["entropy","localization_tightness"]'],
        "'localization_tightness' is a criterion, and stands in the first place",
    ),
    "second stage first": (
        ['al_settings.args.al_criterion=["k_means_diversity"]'],
        "'k_means_diversity' is a second stage and needs a criterion before it",
    ),
    "pool too small": (
        ["al_settings.args.init_num=10"],
        "init_num 10 + budget_num 5 is more than the 12 images of the pool",
    ),
    "initial set too large": (
        ["al_settings.args.init_num=13", "al_settings.num_cycles=0"],
        "init_num 13 + budget_num 0 is more than the 12 images of the pool",
    ),
    "fewer patients than the budget": (
        ["dataset.args.group_pattern=(.)$", "al_settings.args.max_per_group=1"],
        "max_per_group 1 leaves 4 images of 4 patients, fewer than the budget of 5",
    ),
    "num_classes": (
        ["arch.args.num_classes=5"],
        "arch.args.num_classes is 5, but the data has 1 class(es) (class0) and background",
    ),
    "data root": (["dataset.args.root=nowhere"], "no Pascal VOC data at nowhere"),
    "unknown metric": (['metrics=["AP"]'], "unknown metric 'AP'"),
    "monitor of no metric": (
        ["trainer.monitor=max val_auc"],
        "trainer.monitor: no value 'val_auc'; there are",
    ),
    "monitor of a metric that is not measured": (
        ["trainer.monitor=max val_AP50", 'metrics=["sensitivity_k_fps"]'],
        "no value 'val_AP50'",
    ),
    "fp16 on the CPU": (["trainer.precision=fp16"], "fp16 needs a GPU"),
    "GPUs that are not there": (["n_gpu=64"], "64 GPU(s) asked for"),
    "a schedule that ends too soon": (
        [
            'lr_scheduler={"type":"OneCycleLR","args":{"max_lr":0.02,"total_steps":5},'
            '"interval":"step"}'
        ],
        "OneCycleLR ends after 5 moves (lr_scheduler.args), but a cycle may take 6: "
        "set total_steps to 6 in a new run, for one that goes on keeps its schedule",
    ),
    "a rate that the schedule overrules": (
        [
            'lr_scheduler={"type":"OneCycleLR","args":{"max_lr":0.01,"total_steps":900},'
            '"interval":"step"}'
        ],
        "optimizer.args.lr is 0.02, but OneCycleLR goes by lr_scheduler.args.max_lr",
    ),
    "a plateau the wrong way round": (
        ['lr_scheduler={"type":"ReduceLROnPlateau"}', "trainer.monitor=max val_AP50"],
        'set lr_scheduler.args.mode to "max"',
    ),
    "a rate below zero": (["optimizer.args.lr=-1"], "SGD refuses these arguments"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_a_wrong_value(config: dict[str, Any], refused: Refused, case: str) -> None:
    settings, words = SETTINGS[case]
    line = [word for setting in settings for word in ("--set", setting)]
    assert words in refused(config, *line)


def test_a_cosine_that_rises_again_is_told(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_config(tmp_path / "config.json", config)
    longer = ("--dry-run", *SHORT, "--set", "trainer.epochs=7")
    assert run_train("-c", path, *longer) == 0
    assert "is at its lowest after 5 moves (lr_scheduler.args), but a cycle may take 7" in (
        capsys.readouterr().out
    )
    assert run_train("-c", path, *longer, "--set", "lr_scheduler.args.T_max=7") == 0
    assert "lowest" not in capsys.readouterr().out


def test_an_unknown_key_says_where(config: dict[str, Any], refused: Refused) -> None:
    config["trainer"]["epoch"] = config["trainer"].pop("epochs")
    text = json.dumps(config, indent=4)
    number = next(n for n, line in enumerate(text.splitlines(), 1) if '"epoch"' in line)
    assert refused(text) == (
        f"config.json:{number}:9 trainer.epoch: unknown key. Did you mean 'epochs' (default 50)?"
    )


def test_all_problems_at_once(config: dict[str, Any], refused: Refused) -> None:
    config["trainer"]["save_dirr"] = 1
    config["batch_size"] = 0
    config["al_settings"]["args"]["al_criterion"] = ["tightness"]
    error = refused(config, lines=3)
    assert all(word in error for word in ("save_dirr", "batch_size", "'tightness'"))


def test_malformed_json_says_line_and_column(refused: Refused) -> None:
    error = refused('{\n    "name": "x",\n    "seed" 3\n}\n')
    assert error.startswith("config.json:3:12 malformed JSON: expected")


def test_a_config_that_is_not_there(refused: Refused) -> None:
    assert refused.line("-c", "gone.json") == (
        "cannot read the config gone.json: No such file or directory"
    )


# Behind whatever this machine has.
THERE = torch.cuda.device_count()


@pytest.mark.parametrize("device", [f"{THERE + 7}", f"{THERE + 2},{THERE + 3}", "cuda:0"])
def test_a_device_that_is_not_there(
    config: dict[str, Any], refused: Refused, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = dict(os.environ)
    error = refused(config, "--device", device)
    assert "--device" in error and device in error
    assert "cpu" in error
    assert dict(os.environ) == before


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def replace_box(data: Path, image: str, **corners: str) -> None:
    """Put other corners into the first box of an image."""
    path = data / "Annotations" / f"{image}.xml"
    text = path.read_text()
    for name, value in corners.items():
        start = text.index(f"<{name}>")
        end = text.index(f"</{name}>")
        text = f"{text[:start]}<{name}>{value}{text[end:]}"
    path.write_text(text)


def rename_class(data: Path) -> None:
    path = data / "Annotations" / "image005.xml"
    path.write_text(path.read_text().replace("class0", "clas0"))


def to_png(data: Path) -> None:
    path = data / "JPEGImages" / "image005.jpg"
    cv2.imwrite(str(path.with_suffix(".png")), cv2.imread(str(path)))
    path.unlink()
    truncate(path.with_suffix(".png"))


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated PNG": (to_png, "image005.png is truncated"),
    "truncated JPEG": (
        lambda data: truncate(data / "JPEGImages" / "image005.jpg"),
        "image005.jpg is truncated",
    ),
    "no picture": (
        lambda data: (data / "JPEGImages" / "image005.jpg").unlink(),
        "image 'image005' has no picture",
    ),
    "not XML": (
        lambda data: (data / "Annotations" / "image005.xml").write_text("<annotation>"),
        "image005.xml is not valid XML",
    ),
    "zero-area box": (
        lambda data: replace_box(data, "image005", xmin="9", xmax="9"),
        "image005.xml, object 1 (class0): box (9,",
    ),
    "NaN box": (
        lambda data: replace_box(data, "image005", ymin="nan"),
        "image005.xml, object 1",
    ),
    "box outside": (
        lambda data: replace_box(data, "image005", xmin="900", xmax="930"),
        "image005.xml, object 1: box (899,",
    ),
    "unknown class": (rename_class, "unknown class 'clas0'; the classes are class0"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_an_error(
    config: dict[str, Any], data: Path, refused: Refused, case: str
) -> None:
    spoil, words = BAD_FILES[case]
    spoil(data)
    config["dataset"]["args"]["classes"] = ["class0"]
    error = refused(config, lines=2)
    assert words in error and "1 bad sample(s); mend them, or leave them out" in error


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_left_out(
    config: dict[str, Any],
    data: Path,
    tmp_path: Path,
    case: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil, words = BAD_FILES[case]
    spoil(data)
    config["dataset"]["args"]["classes"] = ["class0"]
    path = write_config(tmp_path / "config.json", config)
    line = ["--set", "dataset.args.on_bad_sample=skip", "--dry-run"]
    assert run_train("-c", path, *line) == 0
    said = capsys.readouterr().out
    assert words in said and "1 bad sample(s) skipped" in said


def test_images_without_a_box_are_valid(config: dict[str, Any], data: Path, tmp_path: Path) -> None:
    config["dataset"]["args"]["classes"] = ["class0"]
    for path in sorted((data / "Annotations").iterdir())[::2]:
        text = path.read_text()
        path.write_text(text[: text.index("<object>")] + "</annotation>")
    path = write_config(tmp_path / "config.json", config)
    assert run_train("-c", path, "--run-id", "x", *SHORT) == 0
    row = json.loads((tmp_path / "runs/tiny/x/summary.json").read_text())["cycles"][0]
    assert row["labelled_boxes"] < row["labelled_images"] == 4
    assert row["val_loss"] is not None


@pytest.mark.slow
def test_a_data_set_without_any_box_is_valid(
    config: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    config["dataset"]["args"]["classes"] = ["class0"]
    for path in (data / "Annotations").iterdir():
        text = path.read_text()
        path.write_text(text[: text.index("<object>")] + "</annotation>")
    config["al_settings"]["num_cycles"] = 1
    config["trainer"]["monitor"] = "max val_sens_mean"
    path = write_config(tmp_path / "config.json", config)
    assert run_train("-c", path, "--run-id", "x") == 0
    rows = json.loads((tmp_path / "runs/tiny/x/summary.json").read_text())["cycles"]
    assert [row["labelled_boxes"] for row in rows] == [0, 0]
    assert rows[0]["test_sens_mean"] is None and rows[0]["test_AP50"] is None


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad") / "phantom"
    generate(folder, patients=4, size=64, seed=0)
    return folder


def eight_bits(path: Path) -> None:
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(path), (image // 256).astype(np.uint8))


SPOILT_SLICES: dict[str, tuple[Callable[[Path], object], str]] = {
    "8-bit PNG where 16-bit is due": (
        eight_bits,
        "must be 16-bit grey, found 1 channel(s) of 8 bits",
    ),
    "truncated PNG": (truncate, "is truncated"),
    "missing": (lambda path: path.unlink(), "is missing"),
}


@pytest.mark.parametrize("case", SPOILT_SLICES)
def test_a_bad_slice(
    config: dict[str, Any], phantom: Path, tmp_path: Path, refused: Refused, case: str
) -> None:
    root = Path(shutil.copytree(phantom, tmp_path / "phantom"))
    name = (root / "DL_info.csv").read_text().splitlines()[1].split(",")[0]
    (key,) = root.glob(f"**/{name[:12]}/{name[13:16]}.png")
    spoil, words = SPOILT_SLICES[case]
    spoil(key)
    config["dataset"] = {"type": "DeepLesion", "args": {"root": str(root), "eval_split": 0.5}}
    error = refused(config, lines=2)
    assert words in error and (key.name in error or name in error)


def test_deeplesion_that_is_not_there_says_where_to_get_it(
    config: dict[str, Any], refused: Refused
) -> None:
    config["dataset"] = {"type": "DeepLesion", "args": {"root": "nowhere"}}
    error = refused(config)
    for words in ("data root nowhere does not exist", "download deeplesion", "phantom --out"):
        assert words in error


@pytest.mark.parametrize("place", ["save_dir", "its parent", "the experiment", "latest"])
def test_a_save_dir_that_cannot_be_written(
    config: dict[str, Any], tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # Tests may run as root, who can write into any folder: so a file stands in the way.
    runs = tmp_path / "x" / "runs"
    config["trainer"]["save_dir"] = str(runs)
    blocked = {
        "save_dir": runs,
        "its parent": runs.parent,
        "the experiment": runs / "tiny",
        "latest": runs / "latest" / "folder",
    }[place]
    blocked.parent.mkdir(parents=True, exist_ok=True)
    blocked.write_text("in the way")
    path = write_config(tmp_path / "config.json", config)
    before = files_of(tmp_path)
    assert run_train("-c", path) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(runs) in error
    assert "exists already" not in error
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("loss", ["training", "validation"])
def test_a_loss_that_is_not_finite_stops_with_the_images(
    config: dict[str, Any], tmp_path: Path, loss: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config["trainer"] |= {"grad_clip": None, "steps_per_cycle": 1 if loss == "validation" else 9}
    config["trainer"]["val_steps"] = 9
    path = write_config(tmp_path / "config.json", config)
    assert run_train("-c", path, "--run-id", "x", "--lr", "1e30", *SHORT) == 2
    error = capsys.readouterr().err
    assert ("the loss is" in error) is (loss == "training")
    assert "image0" in error and re.search("optimizer.args.lr|learning rate", error)
    assert error.count("\n") == 1
    assert "ended by an error" in (tmp_path / "runs/tiny/x/train.log").read_text()


def foreign_files(folder: Path) -> dict[str, Path]:
    """Files that are no checkpoints."""
    files = {
        "text": b"# a readme\n",
        "json": b'{"a": 1}\n',
        "csv": b"image,box\n1,2\n",
        "empty": b"",
        "zip": b"PK\x03\x04" + bytes(50),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    torch.save({"w": torch.zeros(2)}, folder / "weights")
    return {name: folder / name for name in (*files, "weights")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one short training."""
    folder = tmp_path_factory.mktemp("other")
    path = write_config(
        folder / "config.json", quick_config(make_voc(folder / "voc"), folder / "runs")
    )
    assert run_train("-c", path, "--run-id", "x", *SHORT) == 0
    return folder / "runs" / "tiny" / "x"


@pytest.mark.parametrize("kind", ["text", "json", "csv", "empty", "zip", "weights"])
def test_a_file_that_is_no_checkpoint(
    config: dict[str, Any], refused: Refused, tmp_path: Path, kind: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = foreign_files(tmp_path)[kind]
    for words in (
        refused.line("--resume", path),
        refused(config, "--init-from", path),
        refused(config, "--set", f"arch.args.pretrained={path}"),
    ):
        assert kind in words
    assert run_test("-r", path) == 2
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize("named", ["nowhere", "nowhere/cycle_00/checkpoint_last.pth", ""])
def test_no_run_there(refused: Refused, tmp_path: Path, named: str) -> None:
    error = refused.line("--resume", tmp_path / named)
    assert "there is no checkpoint or run folder" in error or "is no run folder" in error


def test_a_checkpoint_of_another_architecture(
    finished: Path, config: dict[str, Any], refused: Refused, tmp_path: Path
) -> None:
    best = finished / "cycle_00" / "model_best.pth"
    error = refused(config, "--init-from", best, "--set", "arch.args.backbone_name=resnet18")
    assert "another architecture" in error and "model_best.pth" in error
    error = refused.line("--resume", finished, "--set", "arch.args.box_head_size=64")
    assert "arch.args.box_head_size was 32 and cannot become 64" in error
    # A foreign checkpoint, put into a run's own folder.
    run = Path(shutil.copytree(finished, tmp_path / "there" / "run"))
    settings = json.loads((run / "config.json").read_text())
    settings["arch"]["args"]["box_head_size"] = 64
    (run / "config.json").write_text(json.dumps(settings))
    error = refused.line("--resume", run / "cycle_00" / "checkpoint_last.pth")
    assert "another architecture" in error


def test_a_run_without_a_finished_cycle_cannot_be_tested(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / "cycle_00" / "training.json").unlink()
    before = files_of(run)
    assert run_test("-r", run) == 2
    assert "no cycle of" in capsys.readouterr().err
    assert run_test("-r", run / "initial.pth") == 2
    assert "has no config in it" in capsys.readouterr().err
    assert files_of(run) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [["-c", "gone.json"], ["-r", "README.md"], ["-c", "config.json", "-d", "63"]],
    ids=" ".join,
)
def test_the_script_itself(words: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "train.py", *words, "--set", f"trainer.save_dir={tmp_path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not files_of(tmp_path)
