"""The detector of a trained run, and what it takes to give it new images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from med_sslal.base.base_model import BaseModel
from med_sslal.cli.build import detector_maker, devices_of, image_size_of, load_weights
from med_sslal.cli.registries import registries
from med_sslal.cli.test import find_model
from med_sslal.config.parse_config import ConfigParser
from med_sslal.data.coco import COCO
from med_sslal.data.image_folder import ImageFolder
from med_sslal.data.pictures import Window
from med_sslal.data.transforms import EvalTransform
from med_sslal.data.voc import PascalVOC
from med_sslal.trainer.run_folder import CycleFolder
from med_sslal.trainer.setup import Compute
from med_sslal.utils.distributed import ALONE, World
from med_sslal.utils.errors import DataError
from med_sslal.utils.train_util import autocast_dtype
from med_sslal.utils.util import read_json


@dataclass(frozen=True)
class Trained:
    """A run's detector with the weights of a checkpoint."""

    path: Path  # The checkpoint.
    complaints: list[str]  # Sentences on it that a user is to be told.
    config: ConfigParser  # The run's.
    class_names: tuple[str, ...]  # Without background.
    compute: Compute
    model: BaseModel  # In eval mode, on the main device of this process.

    @property
    def resize(self) -> EvalTransform:
        """Brings an image to the detector's frame."""
        return EvalTransform(image_size_of(self.config))

    @property
    def window(self) -> Window | None:
        """What the run maps 16-bit grey by.

        Raises:
            DataError: The run is on no pictures, so that a file alone is no image of it.
        """
        if not issubclass(self.config.init_class("dataset"), COCO | PascalVOC | ImageFolder):
            raise DataError(
                "files are read for runs on pictures (COCO, PascalVOC, ImageFolder), and this one "
                f"is on {self.config['dataset']['type']}: from Python, Run.predict takes arrays, "
                "such as those of run.images.read"
            )
        window: Window | None = self.config["dataset"]["args"].get("window")
        return window

    def least_scores(self, fps: str) -> dict[str, float]:
        """Least score of each class that admits `fps` false positives per image on validation.

        `fps` is one of the limits of FROC, such as "0.5". Each class has that many of its own.

        Raises:
            DataError: The run has no such measurement of this checkpoint.
        """
        cycle = CycleFolder.around(self.path.resolve())
        say = f"no score is known for --fps {fps}, give --threshold instead:"
        if cycle is None or not cycle.measured or self.path.resolve() != cycle.best.resolve():
            raise DataError(f"{say} {self.path} is not the best model of a cycle that is measured")
        details = read_json(cycle.metrics)["val"]["details"]
        if "sensitivity_k_fps" not in details:
            raise DataError(f"{say} the run has not measured sensitivity_k_fps")
        curves = details["sensitivity_k_fps"]["classes"]
        above = {name: curves[name]["score_above"][f"sens_{fps}fp"] for name in self.class_names}
        # What scores above is admitted; where there is no such score, everything is.
        return {
            name: 0.0 if score is None else float(np.nextafter(np.float32(score), np.float32(2)))
            for name, score in above.items()
        }


def load_trained(name: str, device: str | None, world: World = ALONE) -> Trained:
    """The detector of a checkpoint, a run folder (its last finished cycle) or `latest`.

    All processes of the run call it; the first one reads the file.

    Raises:
        UserError: There is no such run or device, or the checkpoint is damaged.
    """
    path, content, complaints = world.from_main(lambda: find_model(name))
    config = ConfigParser(content["config"], registries(), source=str(path))
    devices = devices_of(config, device, world)
    dtype = autocast_dtype(config.get("trainer.precision"), devices.main)
    model: Any = detector_maker(config, dtype)()
    load_weights(model, content, path)
    return Trained(
        path=path,
        complaints=complaints,
        config=config,
        class_names=tuple(content["class_names"]),
        compute=Compute(devices, dtype, config["batch_size"], config["n_workers"]),
        model=model.to(devices.main).eval(),
    )
