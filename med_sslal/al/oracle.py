"""Where labels come from in research mode: they are known, and revealed on request."""

from collections.abc import Iterable, Mapping

from med_sslal.al.budget import CostModel
from med_sslal.base.types import Annotation
from med_sslal.utils.errors import DataError


class SimulatedOracle:
    """Stands for the person who annotates: it knows the labels of training images, by image id."""

    def __init__(self, annotations: Mapping[str, Annotation]) -> None:
        self._annotations = annotations

    def known(self, image_ids: Iterable[str]) -> tuple[str, ...]:
        """Those of the images that it has a label of, in their order; no label is revealed."""
        return tuple(image_id for image_id in image_ids if image_id in self._annotations)

    def label(self, image_ids: Iterable[str]) -> dict[str, Annotation]:
        """Reveal labels, by image id in the order asked; asking again costs nothing.

        DataError where an id is unknown: nothing is revealed then.
        """
        return {image_id: self._annotations[image_id] for image_id in self._wanted(image_ids)}

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
        for image_id in self._wanted(image_ids):
            label = self._annotations[image_id]
            if costs.cost(1, label.n_objects) > budget:
                continue
            if costs.cost(len(paid) + 1, n_boxes + label.n_objects) > budget:
                break
            paid[image_id] = label
            n_boxes += label.n_objects
        return paid

    def audit(self, image_ids: Iterable[str]) -> dict[str, Annotation]:
        """Labels, where there are, of images never asked for, to measure what a simulation can.

        Such a figure is written down for the reader; no part of a run may depend on it, but where
        `ssl_settings.oracle` asks for the truth by name.
        """
        return {name: self._annotations[name] for name in image_ids if name in self._annotations}

    def _wanted(self, image_ids: Iterable[str]) -> tuple[str, ...]:
        """The ids; DataError unless every label is known."""
        wanted = tuple(image_ids)
        unknown = [image_id for image_id in wanted if image_id not in self._annotations]
        if unknown:
            raise DataError(
                f"the oracle has no label for {len(unknown)} image(s), the first is '{unknown[0]}':"
                " ask only for images of the data set's training split"
            )
        return wanted
