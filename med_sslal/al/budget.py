"""Budgets in images, boxes or seconds: what an image will probably cost, and what it did cost."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from med_sslal.al.arrays import round_scores
from med_sslal.al.criteria.base import BLOCK_IMAGES
from med_sslal.al.record import PLAIN, PoolRecord

BudgetUnit = Literal["images", "boxes", "seconds"]

# Medians of Su, Deng and Fei-Fei, Crowdsourcing Annotations for Visual Object Detection (HCOMP
# 2012), photographs: 7.8 s to see that no object of an image is left out; 25.5 s to draw a box and
# 9.0 s to check it. Readers of CT differ: measure your own.
SECONDS_PER_IMAGE = 7.8
SECONDS_PER_BOX = 34.5

# Sums of costs may miss a budget that they meet exactly by their last bits.
SLACK = 1e-6

# Name of the column that a cost budget adds to the values of a query.
PREDICTED_COST = "predicted_cost"


@dataclass(frozen=True)
class CostModel:
    """What labels cost in the unit of the budget: 1 an image, 1 a box, or see `seconds`."""

    unit: BudgetUnit = "images"
    seconds_per_image: float = SECONDS_PER_IMAGE
    seconds_per_box: float = SECONDS_PER_BOX

    def seconds(self, n_images: int, n_boxes: int) -> float:
        """Estimated time of annotation: n_images x seconds_per_image + n_boxes x seconds_per_box.

        Example:
            >>> CostModel(seconds_per_image=2.0, seconds_per_box=10.0).seconds(3, 4)
            46.0
        """
        return n_images * self.seconds_per_image + n_boxes * self.seconds_per_box

    def cost(self, n_images: int, n_boxes: int) -> float:
        """What labelled images with so many boxes cost, in the unit."""
        if self.unit == "seconds":
            return self.seconds(n_images, n_boxes)
        return n_boxes if self.unit == "boxes" else n_images

    def most_images(self, budget: float) -> int:
        """How many images a plan within `budget` holds at most."""
        return int((budget + SLACK) // self.seconds_per_image if self.unit == "seconds" else budget)

    def predicted(self, record: PoolRecord) -> np.ndarray:
        """What each pool image will probably cost: float64 [N], more than 0, rounded to 1e-4.

        With boxes an image counts as one at least, so that a plan is no list of all the images
        without detections, which cost nothing as long as the predictions are right.
        """
        if self.unit == "images":
            return np.ones(len(record.image_ids))
        boxes = predicted_boxes(record)
        if self.unit == "boxes":
            return boxes.clip(min=1.0)
        return round_scores(self.seconds_per_image + self.seconds_per_box * boxes)


def predicted_boxes(record: PoolRecord) -> np.ndarray:
    """How many boxes each pool image probably has: float64 [N], rounded to 1e-4.

    Formula: b_i = a * (sum of the scores of image i's detections). The sum is the expected number
    of true detections if scores are probabilities; as they seldom are, a makes the mean over the
    pool that of the labelled images. Where no image has a detection, each has that mean; where no
    label is known, a = 1.
    """
    blocks = record.section(PLAIN).blocks(BLOCK_IMAGES)
    found = (np.bincount(block.owners, round_scores(block.scores), len(block)) for block in blocks)
    sums = np.concatenate([np.zeros(0), *found])
    n_boxes = sum(record.header.class_counts.values())
    if not len(sums) or not record.labelled_ids or not n_boxes:
        return round_scores(sums)
    known = n_boxes / len(record.labelled_ids)
    mean = sums.mean()
    return round_scores(sums * (known / mean) if mean > 0 else np.full(len(sums), known))


def n_affordable(costs: np.ndarray, budget: float) -> int:
    """How many images, of costs [K] more than 0, can be paid for in a row; the first in any case.

    Example:
        >>> n_affordable(np.array([2.0, 3.0, 1.0]), 5)
        2
    """
    n_images = int(np.searchsorted(np.cumsum(costs), budget + SLACK, side="right"))
    return min(max(n_images, 1), len(costs))
