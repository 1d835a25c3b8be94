"""The contract of a criterion: a pure function of the pool record, higher = more informative.

Notation of the files beside this one: box j of an image, p_j its class probabilities with
background, P_j its highest foreground probability, B_j the final box and R_j the proposal it came
from, both in ORIGINAL pixels. N images, M boxes of all images, C classes with background.
"""

from abc import ABC, abstractmethod
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Interval

from med_sslal.al.arrays import round_scores
from med_sslal.al.criteria.aggregate import Aggregate, EmptyImages, aggregate_boxes, fill_empty
from med_sslal.al.record import OPTIONAL_COLUMNS, PLAIN, PoolRecord, RecordSection

# Images handled at once: a block of 100 boxes each and 81 classes takes some 300 MB as float64.
BLOCK_IMAGES = 4096
# Where a criterion rates the box alone: below it there is mostly no object to fit one to.
BOX_FLOOR = 0.3


class Reader(ABC):
    """What reads a pool record: a criterion, or a second stage.

    Attributes:
        name: Its name in the config and in selection.json.
        views: Sections of the record that it reads; each costs an inference pass over the pool,
            or one of the heads. An argument may decide them: then `__init__` sets them.
        needs: What else the detector must give, keys of `base_model.ABILITIES`; a run is refused at
            its start where it does not. Views imply theirs. The OPTIONAL_COLUMNS of the record
            among them are recorded.
    """

    name: ClassVar[str]
    views: tuple[str, ...] = (PLAIN,)
    needs: tuple[str, ...] = ()


class Criterion(Reader):
    """One value per pool image from the record alone: no model, image or label in reach.

    A subclass sets `name` and `views` and implements `image_values`.
    """

    def __call__(self, record: PoolRecord, seed: int) -> np.ndarray:
        """Rate every image of the record.

        Args:
            record: What the pass over the pool saw.
            seed: For what is random in the criterion.

        Returns:
            float64 [N] in the order of `record.image_ids`, rounded to 1e-4 and finite.

        Raises:
            DataError: The record lacks something that the criterion reads.
            ValueError: The subclass returned another shape, NaN or infinity.
        """
        values = round_scores(self.image_values(record, seed))
        if values.shape != record.image_ids.shape or not np.isfinite(values).all():
            raise ValueError(
                f"criterion {self.name} must return {len(record.image_ids)} finite values, found "
                f"shape {list(values.shape)}, {int((~np.isfinite(values)).sum())} not finite"
            )
        return values

    def columns(self, record: PoolRecord, seed: int) -> dict[str, np.ndarray]:
        """What a selection keeps of the rating: name to value of every image, itself first."""
        return {self.name: self(record, seed)}

    @abstractmethod
    def image_values(self, record: PoolRecord, seed: int) -> np.ndarray:
        """The raw values, [N], higher = more informative."""


class DetectionCriterion(Criterion):
    """A criterion that rates images by their detections, and so needs a rule for those without.

    A subclass implements `block_values`, which is called on a block of images at a time.

    Args:
        empty_images: Place of images without a detection: first, last, median or random.
    """

    needs: tuple[str, ...] = ("class_probs",)

    def __init__(self, *, empty_images: EmptyImages = "median") -> None:
        self.empty_images: EmptyImages = empty_images

    @abstractmethod
    def block_values(self, record: PoolRecord) -> np.ndarray:
        """Value of every image, [N], higher = more informative; NaN without a detection."""

    def image_values(self, record: PoolRecord, seed: int) -> np.ndarray:
        """The values block by block, then the policy for empty images."""
        # A pool without images lacks a view or a column just as well.
        for view in self.views:
            record.section(view)
        for name in OPTIONAL_COLUMNS.keys() & self.needs:
            record.column(name)
        blocks = map(self.block_values, record.blocks(BLOCK_IMAGES))
        values = np.concatenate([np.zeros(0), *blocks])
        return fill_empty(round_scores(values), record.image_ids, self.empty_images, seed)


class BoxCriterion(DetectionCriterion):
    """A criterion that rates boxes and aggregates them to images.

    A subclass sets the defaults and implements `box_values`.

    Args:
        aggregate: max, mean, sum, top_k (mean of the 5 highest), top_3 or score_weighted; null
            takes the criterion's own default.
        floor: Boxes with a P_j below it do not count; an image that has no others is one
            without a detection. null takes the criterion's own default, mostly 0.

    Attributes:
        default_aggregate: What is used when the config leaves `aggregate` out.
        default_floor: The same of `floor`. An argument may decide both: then `__init__` sets them
            first.
    """

    default_aggregate: Aggregate = "mean"
    default_floor: float = 0.0

    def __init__(
        self,
        *,
        aggregate: Aggregate | None = None,
        empty_images: EmptyImages = "median",
        floor: Annotated[float, Interval(ge=0, le=1)] | None = None,
    ) -> None:
        super().__init__(empty_images=empty_images)
        self.aggregate: Aggregate = aggregate or self.default_aggregate
        self.floor = self.default_floor if floor is None else floor

    @abstractmethod
    def box_values(self, record: PoolRecord) -> np.ndarray:
        """Value of every box of the plain section, [M], higher = more informative."""

    def block_values(self, record: PoolRecord) -> np.ndarray:
        """The values of the boxes, aggregated to images."""
        section = record.section(PLAIN)
        values, sure = round_scores(self.box_values(record)), confidence(section)
        counted = sure >= self.floor
        offsets = np.append(0, np.cumsum(counted))[section.offsets]
        return aggregate_boxes(values[counted], sure[counted], offsets, self.aggregate)


def confidence(section: RecordSection, rows: np.ndarray | None = None) -> np.ndarray:
    """P_j, the highest foreground probability of each box or of `rows`: float64 [M], to 1e-4."""
    probs = section.class_probs if rows is None else section.class_probs[rows]
    return round_scores(probs[:, 1:].max(axis=1, initial=0.0))
