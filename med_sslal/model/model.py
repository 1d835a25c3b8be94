"""The registry of detectors: what `arch.type` may name."""

from collections.abc import Mapping

from med_sslal.base.base_model import BaseModel
from med_sslal.model.detectors import FasterRCNN, RetinaNet

MODELS: Mapping[str, type[BaseModel]] = {"FasterRCNN": FasterRCNN, "RetinaNet": RetinaNet}
