"""Where labels come from in research mode: they are known, and revealed on request."""

from collections.abc import Iterable, Mapping

from med_sslal.base.types import Annotation
from med_sslal.utils.errors import DataError


class SimulatedOracle:
    """Stands for the person who annotates: it knows every label and counts what it revealed."""

    def __init__(self, annotations: Mapping[str, Annotation]) -> None:
        """Hold the hidden labels.

        Args:
            annotations: Image id to label, for every image that may be asked for.
        """
        self._annotations = annotations
        self._revealed: set[str] = set()

    def label(self, image_ids: Iterable[str]) -> dict[str, Annotation]:
        """Reveal labels; asking again for the same image costs nothing.

        Returns:
            Image id to label, in the order asked.

        Raises:
            DataError: An id is unknown; nothing is revealed then.
        """
        wanted = tuple(image_ids)
        unknown = [image_id for image_id in wanted if image_id not in self._annotations]
        if unknown:
            raise DataError(
                f"the oracle has no label for {len(unknown)} image(s), the first is '{unknown[0]}':"
                " ask only for images of the data set's training split"
            )
        self._revealed.update(wanted)
        return {image_id: self._annotations[image_id] for image_id in wanted}

    @property
    def n_images(self) -> int:
        """Number of images revealed so far."""
        return len(self._revealed)

    @property
    def n_boxes(self) -> int:
        """Number of boxes revealed so far, ignore regions left out."""
        return sum(self._annotations[image_id].n_objects for image_id in self._revealed)
