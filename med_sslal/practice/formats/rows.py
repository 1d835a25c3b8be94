"""What every reader of a returned file does: is it known, inside, and answered once?"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np

from med_sslal.data.bad_samples import BadSamples, ListedError
from med_sslal.practice.answers import Answer, Query, QueryImage, State
from med_sslal.utils.errors import DataError

# How far a box may reach over the edge, in sides of the image; what does is cut there.
OVER_THE_EDGE = 0.001
# Pixels; a side of one pixel between corners that were rounded to two decimals can come to this.
LEAST_SIDE = 0.99

# What an image without a box is, in a file that does not tell.
Unmarked = Literal["empty", "pending"]
# Corners x1, y1, x2, y2 in ORIGINAL pixels, and a label.
Box = tuple[list[float], int]


class Rows:
    """The answers of a returned file as they are read, and a sentence on each row that is wrong."""

    def __init__(self, path: Path, query: Query) -> None:
        self.path, self.query = path, query
        self.by_id = {image.image_id: image for image in query.images}
        names = {image.file_name: image for image in query.images}
        # As a tool names a file that was given to it alone, or with folders.
        folders = ("", "images/", f"query_{query.query_id}/images/")
        self.by_name = {f"{folder}{name}": names[name] for folder in folders for name in names}
        self._numbers = {name: label for label, name in enumerate(query.class_names, start=1)}
        self.bad = BadSamples("error", str(path))
        self._seen: set[str] = set()
        self._answers: list[Answer] = []

    def noted(self) -> AbstractContextManager[None]:
        """Note a DataError of the block, which ends there."""
        return self.bad.noted()

    def found(self, images: Mapping[str, QueryImage], key: Any, where: str) -> QueryImage:
        """The image of an id or a name, which may come once; DataError of any other one."""
        image = images.get(key) if isinstance(key, str) else None
        if image is None:
            raise DataError(f"{where}: image '{key}' is not in query {self.query.query_id}")
        if image.image_id in self._seen:
            raise DataError(
                f"{where}: image '{image.image_id}' comes a second time in this file: leave one"
            )
        self._seen.add(image.image_id)
        return image

    def label(self, name: Any, where: str) -> int:
        """The number of a class; DataError where there is none of that name."""
        if not isinstance(name, str) or name not in self._numbers:
            known = ", ".join(self._numbers)
            raise DataError(f"{where}: unknown class '{name}'; the classes are {known}")
        return self._numbers[name]

    def check_query(self, query_id: Any, where: str) -> None:
        """Refuse what was made for another query."""
        if query_id != self.query.query_id:
            raise DataError(
                f"{where}: it belongs to query '{query_id}' and not to {self.query.query_id}"
            )

    def check_bare(self, names: Sequence[str], unmarked: Unmarked | None, kind: str) -> None:
        """Note that images have no box, where nobody has said what that means."""
        if names and unmarked is None:
            with self.noted():
                raise DataError(
                    f"{self.path}: {len(names)} image(s) have no box ('{names[0]}'"
                    f"{', ...' * (len(names) > 1)}), and {kind} does not tell whether somebody has "
                    "looked: say --unmarked empty or --unmarked pending"
                )

    def add(
        self,
        image: QueryImage,
        state: State,
        boxes: Sequence[Box] = (),
        reader: str = "",
        seconds: float | None = None,
    ) -> None:
        """Take down an answer."""
        corners = np.array([box for box, _ in boxes], dtype=np.float32).reshape(-1, 4)
        labels = np.array([label for _, label in boxes], dtype=np.int64)
        self._answers.append(Answer(image.image_id, state, corners, labels, reader, seconds))

    def finish(self) -> list[Answer]:
        """The answers, if no row was wrong; else a ListedError of all that are."""
        if problems := self.bad.problems:
            head = f"{self.path}: {len(problems)} row(s) are wrong, so that none is taken:"
            raise ListedError(head, problems)
        return self._answers


def entries(holder: Any, key: str, where: str) -> Iterator[dict[str, Any]]:
    """The objects of the list `key` of an object; DataError where that is something else."""
    found = holder.get(key) if isinstance(holder, Mapping) else None
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise DataError(f"{where}: it needs a list of objects '{key}'")
    return iter(found)


def numbers(source: Any, keys: Sequence[str], where: str) -> list[float]:
    """Values of an object as numbers, finite or not; DataError where they are none."""
    values: list[Any] = [source.get(key) if isinstance(source, Mapping) else None for key in keys]
    # A whole number of JSON can be too large for a float.
    with suppress(OverflowError):
        if all(type(value) in (int, float) for value in values):
            return [float(value) for value in values]
    raise DataError(f"{where}: {', '.join(keys)} must be numbers, found {values}")


def check_size(told: tuple[Any, Any], image: QueryImage, where: str) -> None:
    """Refuse another (width, height) than that of the image."""
    if told != (image.width, image.height):
        raise DataError(
            f"{where}: it is about a picture of {told[0]}x{told[1]} pixels, and image "
            f"'{image.image_id}' has {image.width}x{image.height}"
        )


def corners_inside(corners: Sequence[float], image: QueryImage, where: str) -> list[float]:
    """Corners x1, y1, x2, y2 of a good box, cut at the image's edge.

    DataError where they are not finite, in the wrong order, over `OVER_THE_EDGE` outside, or under
    a pixel apart.
    """
    box, size = np.array(corners, np.float64), np.array([image.width, image.height] * 2, np.float64)
    told = f"{where}: box ({', '.join(f'{value:g}' for value in corners)})"
    if not np.isfinite(box).all():
        raise DataError(f"{told} is not finite")
    if (box[2:] <= box[:2]).any():
        raise DataError(f"{told} has no area: its left side or its top comes second")
    if (box < -OVER_THE_EDGE * size).any() or (box > (1 + OVER_THE_EDGE) * size).any():
        raise DataError(
            f"{told} lies outside its picture of {image.width}x{image.height} pixels, or partly"
        )
    cut = np.clip(box, 0, size)
    if (cut[2:] - cut[:2] < LEAST_SIDE).any():
        raise DataError(f"{told} is less than a pixel wide or high")
    return [float(value) for value in cut]
