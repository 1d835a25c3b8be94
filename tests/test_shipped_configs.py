"""Every shipped config runs, shrunk by `--set` to what a test has time for."""

import json
import os
import shutil
from pathlib import Path

import pytest
from tiny import make_voc, run_test, run_train

from med_sslal.cli.registries import registries
from med_sslal.config.parse_config import ConfigParser
from med_sslal.phantom import generate

ROOT = Path(__file__).parents[1]
# Tried in test_study.py.
STUDIES = (
    "phantom",
    "bccd",
    "brain_mri",
    "brain_mri_patients",
    "ssl_brain_mri",
    "ssl_brain_mri_106",
    "ssl_labels",
    "ssl_parts",
    "ssl_selection",
    "ssl_bccd",
    "ssl_phantom",
    "ssl_phantom_unmarked",
)
SHRINK = {
    "n_workers": 1,
    "batch_size": 2,
    "image_size": 64,
    "trainer.steps_per_cycle": 4,
    "al_settings.num_cycles": 1,
    "al_settings.args.init_num": 4,
    "al_settings.args.budget_num": 2,
}


def check(name: str, folder: Path, **settings: object) -> None:
    """Run a config in `folder`, and test.py on what came out."""
    values = {**SHRINK, "trainer.save_dir": str(folder / "runs"), **settings}
    words = [
        word
        for key, value in values.items()
        for word in ("--set", f"{key.replace('__', '.')}={json.dumps(value)}")
    ]
    assert run_train("-c", ROOT / name, "-d", "cpu", "--run-id", "x", *words) == 0
    (run,) = (folder / "runs").glob("*/x")
    rows = json.loads((run / "summary.json").read_text())["cycles"]
    assert [row["labelled_images"] for row in rows] == [4, 6]
    assert all(row["test_sens_mean"] is not None for row in rows)
    assert run_test("-r", run, "-d", "cpu") == 0


def test_every_config_is_tried_here() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("**/configs/*.json")}
    studies = {f"configs/study_{name}.json" for name in STUDIES}
    single = ("bccd", "brain_mri", "deeplesion_lung")
    assert names == studies | {f"configs/{name}.json" for name in single}
    for name in ("config.json", *sorted(names - studies)):
        config = ConfigParser.from_file(ROOT / name, registries())
        assert ConfigParser(config.resolved, registries()).resolved == config.resolved


@pytest.mark.slow
def test_config_json(tmp_path: Path) -> None:
    check(
        "config.json",
        tmp_path,
        dataset__args__root=str(tmp_path / "phantom"),
        dataset__args__patients=8,
        dataset__args__size=64,
    )


@pytest.mark.slow
def test_bccd_on_a_made_set(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "voc", 20, side=96, classes=3)
    for path in (root / "Annotations").iterdir():
        text = path.read_text()
        for number, name in enumerate(("RBC", "WBC", "Platelets")):
            text = text.replace(f">class{number}<", f">{name}<")
        path.write_text(text)
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    names = [f"image{number:03d}" for number in range(20)]
    for split, part in (("train", names[:12]), ("val", names[12:16]), ("test", names[16:])):
        (lists / f"{split}.txt").write_text("\n".join(part) + "\n")
    check("configs/bccd.json", tmp_path, dataset__args__root=str(root))
    assert "test_AP50/Platelets" in (tmp_path / "runs/bccd/x/results.csv").read_text()


@pytest.mark.slow
def test_bccd_on_the_real_images(tmp_path: Path) -> None:
    folder = os.environ.get("MED_SSLAL_TEST_DATA")
    if not folder:
        pytest.skip("MED_SSLAL_TEST_DATA is not set")
    root, real = tmp_path / "bccd", Path(folder) / "bccd"
    shutil.copytree(real / "Annotations", root / "Annotations")
    (root / "JPEGImages").symlink_to(real / "JPEGImages")
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for split, count in (("train", 8), ("val", 4), ("test", 6)):
        lines = (real / "ImageSets" / "Main" / f"{split}.txt").read_text().splitlines()
        (lists / f"{split}.txt").write_text("\n".join(lines[:count]) + "\n")
    check("configs/bccd.json", tmp_path, dataset__args__root=str(root))


@pytest.mark.slow
def test_brain_mri_on_the_real_slices(tmp_path: Path) -> None:
    folder = Path(os.environ.get("MED_SSLAL_TEST_DATA", "none"))
    if not (folder / "brain_mri").is_dir():
        pytest.skip("MED_SSLAL_TEST_DATA is not set, or has no brain_mri")
    root = tmp_path / "brain_mri"
    root.mkdir()
    (root / "images").symlink_to(folder / "brain_mri" / "images")
    for split, count in (("train", 14), ("val", 4), ("test", 6)):
        content = json.loads((folder / "brain_mri" / f"{split}.json").read_text())
        content["images"] = content["images"][:count]
        kept = {image["id"] for image in content["images"]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
        (root / f"{split}.json").write_text(json.dumps(content))
    weights = folder / "weights" / "mobilenet_v2_imagenet_features.pth"
    check(
        "configs/brain_mri.json",
        tmp_path,
        dataset__args__root=str(root),
        arch__args__pretrained=str(weights),
    )


@pytest.mark.slow
def test_deeplesion_lung_on_a_phantom(tmp_path: Path) -> None:
    generate(tmp_path / "phantom", patients=12, size=64, seed=0)
    check(
        "configs/deeplesion_lung.json",
        tmp_path,
        dataset__args__root=str(tmp_path / "phantom"),
        dataset__args__eval_split=0.4,
        arch__args__backbone_name="resnet18",
        arch__args__pretrained=False,
        arch__args__fpn_channels=64,
        arch__args__box_head_size=32,
        arch__args__rpn_post_nms_top_n_train=50,
        arch__args__rpn_post_nms_top_n_test=30,
        arch__args__box_batch_size_per_image=32,
    )
