"""Objectness that no detection explains: a proxy for missed objects."""

import numpy as np

from med_sslal.al.arrays import round_scores
from med_sslal.al.criteria.aggregate import TOP_K
from med_sslal.al.criteria.base import BLOCK_IMAGES, Criterion
from med_sslal.al.record import PLAIN, PoolRecord, RecordSection
from med_sslal.utils.boxes import paired_iou
from med_sslal.utils.errors import DataError

EXPLAINED_IOU = 0.3


class UnexplainedObjectness(Criterion):
    """Unexplained objectness: proposals look like objects where nothing was detected.

    Formula: sum of the 5 highest objectness values among the image's stored proposals whose IoU
    with every detection of the image, of any class, is below 0.3. Source: this project. It is the
    only criterion that can see a missed object. An image without a detection has all its proposals
    unexplained, so there is no `empty_images`, and the sum is built in. Only the best proposals are
    in the record (`arch.args.top_proposals`): where detections explain them all the value is 0.
    """

    name = "unexplained_objectness"
    needs = ("objectness",)

    def image_values(self, record: PoolRecord, seed: int) -> np.ndarray:
        """The sum of every image, block by block."""
        section = record.section(PLAIN)
        if len(section) and not section.top_objectness.shape[1]:
            raise DataError(
                f"record {record.path} holds no proposals, which {self.name} needs: score the pool "
                "with a detector that gives them (FasterRCNN: arch.args.top_proposals above 0)"
            )
        return np.concatenate([np.zeros(0), *map(_unexplained, section.blocks(BLOCK_IMAGES))])


def _unexplained(section: RecordSection) -> np.ndarray:
    """Sum of the highest unexplained objectness of each image of a block, [N]."""
    owners = section.owners
    objectness = round_scores(section.top_objectness)
    # One proposal of each image at a time, so that memory grows with the detections alone.
    for place in range(objectness.shape[1]):
        iou = round_scores(paired_iou(section.top_proposals[owners, place], section.boxes))
        objectness[owners[iou >= EXPLAINED_IOU], place] = 0.0
    return np.sort(objectness, axis=1)[:, -TOP_K:].sum(axis=1)
