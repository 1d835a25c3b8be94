"""A tiny Pascal VOC set and a config that trains on it in seconds: shared by the run tests."""

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from med_sslal.__main__ import main

SIDE = 64


def make_voc(root: Path, n: int = 24, *, side: int = SIDE, classes: int = 1) -> Path:
    """Write n pictures, each with one bright rectangle per class and some noise."""
    generator = np.random.default_rng(7)
    for name in ("JPEGImages", "Annotations"):
        (root / name).mkdir(parents=True)
    for number in range(n):
        picture = generator.normal(60, 10, (side, side, 3))
        objects = []
        for label in range(classes):
            width, height = generator.integers(12, 24, 2)
            x, y = generator.integers(1, side - 25, 2)
            picture[y : y + height, x : x + width] = 120 + 100 * (label == 0)
            objects.append(
                f"<object><name>class{label}</name><difficult>0</difficult><bndbox><xmin>{x + 1}"
                f"</xmin><ymin>{y + 1}</ymin><xmax>{x + width}</xmax><ymax>{y + height}</ymax>"
                "</bndbox></object>"
            )
        stem = f"image{number:03d}"
        cv2.imwrite(str(root / "JPEGImages" / f"{stem}.jpg"), picture.clip(0, 255).astype(np.uint8))
        (root / "Annotations" / f"{stem}.xml").write_text(
            f"<annotation><filename>{stem}.jpg</filename><size><width>{side}</width><height>"
            f"{side}</height><depth>3</depth></size>{''.join(objects)}</annotation>"
        )
    return root


def tiny_config(data: Path, save_dir: Path) -> dict[str, Any]:
    """A config of every stage: two cycles, pseudo-labels, two metrics."""
    return {
        "name": "tiny",
        "n_gpu": 0,
        "seed": 3,
        "n_workers": 0,
        "batch_size": 4,
        "image_size": SIDE,
        "arch": {
            "type": "FasterRCNN",
            "args": {
                "backbone_name": "resnet18",
                "fpn": True,
                "fpn_channels": 64,
                "pretrained": False,
                "num_classes": 2,
                "norm": "group",
                "anchor_sizes": [[12], [16], [24], [32], [48]],
                "rpn_pre_nms_top_n_train": 100,
                "rpn_post_nms_top_n_train": 50,
                "rpn_pre_nms_top_n_test": 50,
                "rpn_post_nms_top_n_test": 20,
                "box_batch_size_per_image": 16,
                "box_head_size": 32,
            },
        },
        "dataset": {"type": "PascalVOC", "args": {"root": str(data), "eval_split": 0.5}},
        "augmentation": {"type": "TrainTransform", "args": {"rotation": 0}},
        "optimizer": {"type": "AdamW", "args": {"lr": 1e-3}},
        "metrics": ["sensitivity_k_fps", "coco_ap"],
        "lr_scheduler": {"type": "CosineAnnealingLR", "args": {"T_max": 5}},
        "al_settings": {
            "num_cycles": 1,
            "type": "ActiveLearningHelper",
            "args": {
                "init_num": 6,
                "budget_num": 3,
                "al_criterion": ["localization_tightness", "k_means_diversity"],
            },
        },
        "ssl_settings": {"include_pseudolabels": True, "args": {"threshold": 0.2}},
        "trainer": {
            "epochs": 2,
            "save_dir": str(save_dir),
            "save_period": 1,
            "verbosity": 0,
            "monitor": "min val_loss",
            "early_stop": 0,
            "tensorboard": False,
        },
    }


def write_config(path: Path, config: dict[str, Any]) -> Path:
    """Write a config file."""
    path.write_text(json.dumps(config, indent=2))
    return path


def small_config(data: Path, save_dir: Path) -> dict[str, Any]:
    """The same with a backbone of few tensors, whose files are small too."""
    config = tiny_config(data, save_dir)
    config["arch"]["type"] = "tests.small_detectors.SmallRCNN"
    config["arch"]["args"]["backbone_name"] = "small"
    return config


def quick_config(data: Path, save_dir: Path) -> dict[str, Any]:
    """A smaller one of three trainings: 4, 9 and all 12 images; a fourth finds nothing left."""
    config = small_config(data, save_dir)
    config["arch"]["args"]["box_batch_size_per_image"] = 8
    config["optimizer"] = {"type": "SGD", "args": {"lr": 0.02, "momentum": 0.9}}
    config["al_settings"]["num_cycles"] = 3
    config["al_settings"]["args"] |= {"init_num": 4, "budget_num": 5}
    config["ssl_settings"]["args"] = {"threshold": 0.05, "ignore_floor": 0.05}
    config["trainer"] |= {"grad_clip": 5.0, "checkpoint_seconds": 0}
    return config


# Beside `-c CONFIG`: no second training of each cycle.
SUPERVISED = ("--set", "ssl_settings.include_pseudolabels=false")


def run_train(*argv: str | Path) -> int:
    """`python train.py ARGV` in this process; returns the exit code."""
    return main(["train", *map(str, argv)])


def run_test(*argv: str | Path) -> int:
    """`python test.py ARGV` in this process; returns the exit code."""
    return main(["test", *map(str, argv)])


def wait_for(path: Path, process: subprocess.Popen[Any]) -> None:
    """Wait up to five minutes until a process has made a file, which it must do before it ends."""
    latest = time.monotonic() + 300
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        if time.monotonic() > latest:
            process.kill()
            raise AssertionError(f"{path} is not there after five minutes")
        time.sleep(0.02)


def files_of(folder: Path) -> set[str]:
    """Every file and link under a folder, as relative paths."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def cut(folder: Path, *names: str) -> Path:
    """Take back what came last: files or folders of a finished run."""
    for name in names:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return folder
