"""What goes out to a person, and what comes back: boundary types of this room.

Boxes are float32 [N, 4] in xyxy order, ORIGINAL pixels; labels are int64 [N], from 1 on.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from med_sslal.base.types import Annotation, Prediction

# No answer means that an image is pending: never that it is empty. "in_progress" is a draft, and no
# answer either; "withdrawn" takes an earlier answer back.
State = Literal["labelled", "confirmed_empty", "skipped", "in_progress", "withdrawn"]


@dataclass(frozen=True)
class QueryImage:
    """An image of a query: what it is a copy of, and what its reader is shown."""

    image_id: str
    file_name: str  # of the copy, an 8-bit PNG in the query's folder
    source: str  # path of the original below the data root; a pseudonym for DICOM
    source_sha256: str  # of the original file
    sha256: str  # of the copy
    width: int  # of both, in pixels
    height: int
    rank: int  # 1 for the first of the selection
    blind: bool  # whether its reader is shown no prediction
    shown: Prediction  # what its reader is shown; empty where that is nothing


@dataclass(frozen=True)
class Query:
    """All that is known of a query, as its manifest keeps it."""

    query_id: str  # drawn when the query was written: no two have the same
    run: str  # name of the run folder
    cycle: int
    seed: int  # the run's
    model_hash: str  # of the checkpoint that chose
    config_hash: str
    class_names: tuple[str, ...]  # without background
    images: tuple[QueryImage, ...]  # in order of selection
    # Pixels by which the labels that training began with are wider than their object, on each side.
    box_padding_px: float = 0.0


@dataclass(frozen=True)
class Answer:
    """What a person said of one image."""

    image_id: str
    state: State
    boxes: np.ndarray  # none unless the image is labelled
    labels: np.ndarray
    reader: str = ""  # who, as the tool names them; "" where it does not
    seconds: float | None = None  # how long it took, where the tool tells

    @property
    def annotation(self) -> Annotation:
        """The label of an image that is labelled or confirmed empty."""
        return Annotation(self.boxes, self.labels, np.zeros(len(self.labels), bool))
