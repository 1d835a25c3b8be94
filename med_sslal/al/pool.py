"""Which images are labelled and which are not: ids only, so no label can leak through it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Pool:
    """The training images of a run, split into ids; ValueError where one occurs twice."""

    labelled: tuple[str, ...]  # In the order of labelling.
    unlabelled: tuple[str, ...]  # The others, sorted, whatever order they came in.
    answers: int = 0  # Imports of a person's answers that it stands on; see `Journal`.

    def __post_init__(self) -> None:
        object.__setattr__(self, "labelled", tuple(self.labelled))
        object.__setattr__(self, "unlabelled", tuple(sorted(self.unlabelled)))
        if len({*self.labelled, *self.unlabelled}) != len(self):
            twice = sorted(set(self.labelled) & set(self.unlabelled))
            raise ValueError(f"labelled and unlabelled ids must be distinct, found twice: {twice}")

    def __len__(self) -> int:
        """Number of images, labelled or not."""
        return len(self.labelled) + len(self.unlabelled)

    def label(self, image_ids: Sequence[str]) -> "Pool":
        """The pool after unlabelled images got labels, in that order; ValueError for others."""
        moved = set(image_ids)
        strangers = sorted(moved - set(self.unlabelled))
        if strangers or len(moved) != len(image_ids):
            raise ValueError(f"only unlabelled images can be labelled, once each: {strangers}")
        rest = (image_id for image_id in self.unlabelled if image_id not in moved)
        return replace(self, labelled=(*self.labelled, *image_ids), unlabelled=tuple(rest))

    def state_dict(self) -> dict[str, Any]:
        """Plain containers, for a checkpoint."""
        ids = {"labelled": list(self.labelled), "unlabelled": list(self.unlabelled)}
        return {**ids, "answers": self.answers}
