"""A full config, and registries of small classes that take its arguments."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from med_sslal.base.learning_rate import ConstantThenCosine
from med_sslal.config.jsonc import parse
from med_sslal.config.overrides import parse_set
from med_sslal.config.parse_config import ConfigParser
from med_sslal.config.torch_types import lr_schedulers, optimizers
from med_sslal.utils.errors import ConfigError
from med_sslal.utils.names import unknown

FULL = r"""// a full config
{
    "name": "lungs",
    "n_gpu": 1,             // not a "key": 5, really
    "seed": 202108,
    "n_workers": 2, "batch_size": 4,
    /* a block
       comment */
    "arch": {
        "type": "FasterRCNN",
        "args": {"backbone_name": "resnet50", "fpn": true, "pretrained": true, "num_classes": 2}
    },
    "dataset": {
        "type": "DeepLesion",
        "args": {"eval_split": 0.2, "root": "data//x", "dataset_type": "non-specified",
                 "lesion_type": "lung"}
    },
    "optimizer": {"type": "Adam", "args":{"lr": 3e-4, "weight_decay": 1e-8, "amsgrad": true}},
    "metrics": ["sensitivity_k_fps"],
    "lr_scheduler": {"type": "CosineAnnealingLR", "args": {"T_max": 30}},
    "al_settings": {
        "num_cycles": 3,
        "type": "ActiveLearningHelper" ,
        "args": {
            "init_num": 400, "budget_num": 200,
            "al_criterion": ["localization_tightness", \
                              "k_means_diversity"],
        }
    },
    "ssl_settings": {"include_pseudolabels":true},
    "trainer": {
        "epochs": 50, "save_dir": "exp_results", "save_period": 10, "verbosity": 2,
        "monitor": "min val_loss", "early_stop": 10, "tensorboard": true,
    }
}
"""


class FasterRCNN:
    """A detector.

    Args:
        num_classes: With background.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        backbone_name: Literal["resnet50", "resnet18"] = "resnet50",
        fpn: bool = True,
        pretrained: bool | str = True,
        anchor_sizes: tuple[tuple[int, ...], ...] = ((16,), (32,)),
        weights_dir: Path | None = None,
    ) -> None:
        self.values = (num_classes, backbone_name, fpn, pretrained, anchor_sizes, weights_dir)


class DeepLesion:
    def __init__(
        self,
        root: str,
        lesion_type: str = "all",
        dataset_type: str = "non-specified",
        eval_split: float = 0.2,
        window: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        self.values = (root, lesion_type, dataset_type, eval_split, window)


class DeepLesionPhantom(DeepLesion):
    def __init__(self, root: str, patients: int = 10, **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
        self.patients = patients


class TrainTransform:
    def __init__(self, image_size: int, *, seed: int, mirror: bool = True) -> None: ...


class StrongTransform(TrainTransform):
    def __init__(self, image_size: int, *, noise: float = 0.02, **kwargs: Any) -> None: ...


class ActiveLearningHelper:
    CRITERIA = ("entropy", "localization_tightness", "k_means_diversity")

    def __init__(
        self, init_num: int, budget_num: int, al_criterion: Sequence[str], *, seed: int
    ) -> None:
        """Make it.

        Args:
            init_num: Labels before
                the first query.
            budget_num: Labels per cycle.
        """

    @classmethod
    def check_args(cls, args: dict[str, Any]) -> list[tuple[str, str]]:
        return [
            ("al_criterion", unknown("criterion", name, cls.CRITERIA))
            for name in args["al_criterion"]
            if name not in cls.CRITERIA
        ]


class Oracle:
    def __init__(self, annotations: Any) -> None: ...


class PseudoLabeller:
    def __init__(self, threshold: float | None = None) -> None: ...


REGISTRIES: dict[str, dict[str, Any]] = {
    "arch": {"FasterRCNN": FasterRCNN},
    "dataset": {"DeepLesion": DeepLesion, "DeepLesionPhantom": DeepLesionPhantom},
    "augmentation": {"TrainTransform": TrainTransform},
    "pseudo_augmentation": {"StrongTransform": StrongTransform},
    "optimizer": optimizers(),
    "lr_scheduler": {"ConstantThenCosine": ConstantThenCosine, **lr_schedulers()},
    "al_settings": {"ActiveLearningHelper": ActiveLearningHelper},
    "oracle": {"simulated": Oracle},
    "ssl_settings": {"PseudoLabeller": PseudoLabeller},
    "metrics": {"sensitivity_k_fps": None, "coco_ap": None},
}


def full() -> dict[str, Any]:
    return parse(FULL, "full").value


def with_set(*settings: str) -> ConfigParser:
    return ConfigParser(full(), REGISTRIES, [parse_set(text) for text in settings])


def problems(config: dict[str, Any] | str, tmp_path: Path, *settings: str) -> list[str]:
    """The lines of the one error; the file's folder is cut off."""
    path = tmp_path / "config.json"
    path.write_text(config if isinstance(config, str) else json.dumps(config, indent=4))
    with pytest.raises(ConfigError) as caught:
        ConfigParser.from_file(path, REGISTRIES, [parse_set(text) for text in settings])
    return str(caught.value).replace(f"{tmp_path}/", "").splitlines()


def paths(config: Any, at: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(config, dict):
        return []
    return [
        found for key, value in config.items() for found in [(*at, key), *paths(value, (*at, key))]
    ]
