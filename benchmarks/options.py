"""What a benchmark is made with, and the config of ours that it means."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from med_sslal.config.overrides import Override

ANCHORS = ((12,), (20,), (32,), (56,), (96,))
# Those of config.json; where none is given, ours and torchvision's defaults are the same.
LIGHT = {
    "rpn_pre_nms_top_n_train": 400,
    "rpn_post_nms_top_n_train": 200,
    "rpn_pre_nms_top_n_test": 200,
    "rpn_post_nms_top_n_test": 100,
    "box_batch_size_per_image": 64,
}


@dataclass(frozen=True)
class Options:
    """The options of the command line that shape what is measured, under their names there."""

    pairs: int
    image_size: int
    batch_size: int
    steps: int
    patients: int
    workers: int
    in_memory: bool
    backbone: str
    norm: str
    full: bool
    precision: str
    bare_precision: str
    train_steps: int
    eval_images: int
    device: str | None = None
    overrides: Sequence[Override] = ()
    switches: Sequence[Override] = ()

    @property
    def knobs(self) -> dict[str, Any]:
        """Arguments that ours and torchvision's detector both take."""
        return {} if self.full else LIGHT

    @property
    def box_head_size(self) -> int:
        """Width of the box head."""
        return 1024 if self.full else 256

    def config(self, root: str, cache: str) -> dict[str, Any]:
        """The config of ours: a training without an end, at a rate that changes nothing much.

        Args:
            root: Folder that gets the phantom.
            cache: Folder of its decoded slices.
        """
        return {
            "name": "benchmark",
            "n_workers": self.workers,
            "batch_size": self.batch_size,
            "image_size": self.image_size,
            "arch": {
                "type": "FasterRCNN",
                "args": {
                    "num_classes": 2,
                    "backbone_name": self.backbone,
                    # The architecture that pretrained weights imply; none are read.
                    "pretrained": self.norm == "frozen",
                    "norm": self.norm,
                    "anchor_sizes": [list(sizes) for sizes in ANCHORS],
                    "box_head_size": self.box_head_size,
                    **self.knobs,
                },
            },
            "dataset": {
                "type": "DeepLesionPhantom",
                "args": {
                    "root": root,
                    "patients": self.patients,
                    "size": min(max(self.image_size, 64), 512),
                    "cache_dir": cache,
                    "eval_split": 0.5,
                },
            },
            "optimizer": {"type": "AdamW", "args": {"lr": 1e-6}},
            "metrics": ["sensitivity_k_fps", "coco_ap"],
            "al_settings": {
                "num_cycles": 0,
                "type": "ActiveLearningHelper",
                "args": {"init_num": "all", "budget_num": 1, "al_criterion": ["random"]},
            },
            "trainer": {
                "epochs": 10**6,
                "checkpoint_seconds": 1e9,
                "precision": self.precision,
                "monitor": "off",
                "early_stop": 0,
                "tensorboard": False,
            },
        }
