"""Where labels come from. In research mode they are known, and revealed on request."""

from collections.abc import Iterable, Mapping

from med_sslal.al.budget import SLACK, CostModel
from med_sslal.base.types import Annotation
from med_sslal.utils.errors import DataError


class Oracle:
    """The only way from a training image to its label: it has those of the data by image id."""

    def __init__(self, annotations: Mapping[str, Annotation]) -> None:
        self._annotations = annotations

    def known(self, image_ids: Iterable[str]) -> tuple[str, ...]:
        """Those of the images that the data has a label of, in their order; none is revealed."""
        return tuple(image_id for image_id in image_ids if image_id in self._annotations)

    def label(self, image_ids: Iterable[str], answers: int = 0) -> dict[str, Annotation]:
        """Reveal labels, by image id in the order asked; asking again costs nothing.

        They are as of so many `answers` (`Pool.answers`). DataError where an id is unknown:
        nothing is revealed then.
        """
        told = self._as_of(answers)
        return {image_id: told[image_id] for image_id in _all_of(image_ids, told)}

    def audit(self, image_ids: Iterable[str]) -> dict[str, Annotation]:
        """Labels, where there are, of images never asked for, to measure what a simulation can.

        Such a figure is written down for the reader; no part of a run may depend on it, but where
        `ssl_settings.oracle` asks for the truth by name.
        """
        return {name: self._annotations[name] for name in image_ids if name in self._annotations}

    def _as_of(self, answers: int) -> Mapping[str, Annotation]:
        """All labels that can be given out."""
        return self._annotations


class SimulatedOracle(Oracle):
    """Stands for the person who annotates: it knows the labels of training images.

    Args:
        annotations: The labels, by image id.
    """

    def label_within(
        self, image_ids: Iterable[str], costs: CostModel, budget: float
    ) -> dict[str, Annotation]:
        """Reveal labels in order, as far as a budget in the unit of `costs` pays for them.

        A person draws the boxes of an image and may find that it has more than are left to pay
        for: the query ends before it, and its label stays hidden. An image that costs more than
        the whole budget can never be paid for; it is passed over. Image id to label of those paid
        for, in order: together they cost no more than the budget. DataError where an id is unknown.
        """
        paid: dict[str, Annotation] = {}
        n_boxes = 0
        for image_id in _all_of(image_ids, self._annotations):
            label = self._annotations[image_id]
            if costs.cost(1, label.n_objects) > budget + SLACK:
                continue
            if costs.cost(len(paid) + 1, n_boxes + label.n_objects) > budget + SLACK:
                break
            paid[image_id] = label
            n_boxes += label.n_objects
        return paid


def _all_of(image_ids: Iterable[str], told: Mapping[str, Annotation]) -> tuple[str, ...]:
    """The ids; DataError unless the label of each is told."""
    wanted = tuple(image_ids)
    unknown = [image_id for image_id in wanted if image_id not in told]
    if unknown:
        raise DataError(
            f"the oracle has no label for {len(unknown)} image(s), the first is '{unknown[0]}':"
            " ask only for images of the data set's training split"
        )
    return wanted
