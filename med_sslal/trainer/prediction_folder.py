"""The folder of detections on new images: filled batch by batch, and gone on with after a stop."""

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from med_sslal.base.types import ImageInfo, Prediction
from med_sslal.eval.coco_utils import FORMAT_VERSION, categories, coco_detections
from med_sslal.trainer.run_folder import File, Folder
from med_sslal.utils.errors import UserError
from med_sslal.utils.util import (
    atomic_write,
    open_alone,
    read_versioned,
    remove_unfinished,
    write_versioned,
)

REQUEST_VERSION = 1
# A file name need not be text.
_NO_TEXT = "backslashreplace"


class PredictionFolder(Folder):
    """What `predict` writes."""

    request = File("request.json")  # What the detections hang on: it may not change on the way.
    journal = File("found.jsonl")  # What was found, a line for each batch that is done.
    predictions = File("predictions.json")  # The detections in COCO's form.
    table = File("predictions.csv")  # The same as a table.
    skipped = File("skipped.txt")  # A sentence on each file or image that could not be read.
    overlays = File("overlays")  # Pictures with boxes.

    def open(self, request: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
        """Make the folder, or go on in it; returns the request of its beginning.

        What is `kept` stays as it was then.

        Raises:
            UserError: It cannot be written, holds something else, or had another request.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # A kill may have left a request half-written.
            own = f".{self.request.name}."
            taken = not all(path.name.startswith(own) for path in self.path.iterdir())
        except OSError as error:
            raise UserError(f"cannot make the folder {self}: {error.strerror or error}") from error
        if not taken:
            write_versioned(self.request, REQUEST_VERSION, {**request, **kept})
        elif not self.request.is_file():
            raise UserError(f"the folder {self} is not empty: name another one with --out")
        begun = read_versioned(self.request, REQUEST_VERSION)
        changed = [name for name, value in request.items() if begun.get(name) != value]
        if changed:
            raise UserError(
                f"{self} holds detections of other {' and '.join(changed)}: name another folder "
                "with --out, or remove it"
            )
        return begun


class Journal:
    """What was found, one line of JSON for each batch; a line that a kill has cut is dropped.

    A line is a list of [image id, rows of x1, y1, x2, y2, label, score], or of [image id, sentence]
    for an image that could not be read. The numbers are exact.
    """

    def __init__(self, path: Path) -> None:
        """Open or make it, for this process alone; UserError where another one has it."""
        busy = f"another process is at work in {path.parent}: wait for it, or stop it"
        self._stream = open_alone(path, busy)
        remove_unfinished(path.parent)
        self.done, good = 0, 0  # Batches.
        self._stream.seek(0)
        for line in self._stream:
            if not _is_whole(line):
                break
            self.done, good = self.done + 1, good + len(line)
        self._stream.truncate(good)

    def add(self, found: Mapping[str, Prediction | str]) -> None:
        """Write what was found on the next batch."""
        rows = [
            [image_id, each if isinstance(each, str) else _rows(each)]
            for image_id, each in found.items()
        ]
        self._stream.write(json.dumps(rows).encode() + b"\n")
        self._stream.flush()

    def read(self) -> Iterator[tuple[str, Prediction | str]]:
        """Image ids with detections or a sentence, in the order of the batches."""
        # By the one stream: to close another one of the file would give up the lock.
        place = 0
        while True:
            self._stream.seek(place)
            line = self._stream.readline()
            if not line:
                return
            place += len(line)
            for image_id, found in json.loads(line):
                yield image_id, found if isinstance(found, str) else _prediction(found)

    def found(self) -> Iterator[tuple[str, Prediction]]:
        """The same of the images that could be read."""
        for image_id, found in self.read():
            if isinstance(found, Prediction):
                yield image_id, found

    def close(self) -> None:
        """Bring it to the disk, and let others have it."""
        os.fsync(self._stream.fileno())
        self._stream.close()


def _is_whole(line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and isinstance(json.loads(line), list)
    except ValueError:
        return False


def _rows(found: Prediction) -> list[list[float]]:
    columns = (*found.boxes.T.tolist(), found.labels.tolist(), found.scores.tolist())
    return [list(row) for row in zip(*columns, strict=True)]


def _prediction(rows: list[list[float]]) -> Prediction:
    table = np.array(rows, dtype=np.float64).reshape(-1, 6)
    boxes, scores = table[:, :4].astype(np.float32), table[:, 5].astype(np.float32)
    return Prediction(boxes, table[:, 4].astype(np.int64), scores)


def write_results(
    folder: PredictionFolder,
    journal: Journal,
    infos: Mapping[str, ImageInfo],
    class_names: Sequence[str],
    problems: Sequence[str],
) -> tuple[int, int, int]:
    """Write COCO, table and list of skipped images; memory does not grow with their number.

    `problems` are sentences on files that were no image at first sight.

    Returns:
        Number of images, of detections, and of what was skipped.
    """

    def images() -> Iterator[dict[str, Any]]:
        for number, (image_id, _) in enumerate(journal.found(), start=1):
            info = infos[image_id]
            height, width = info.orig_size
            yield {"id": number, "image_id": image_id, "file_name": info.file_name,
                   "width": width, "height": height}  # fmt: skip

    def annotations() -> Iterator[dict[str, Any]]:
        number = 0
        for image, (_, found) in enumerate(journal.found(), start=1):
            for row in coco_detections(image, found):
                number += 1
                area = row["bbox"][2] * row["bbox"][3]
                yield {"id": number, **row, "area": area, "iscrowd": 0, "segmentation": []}

    def write(stream: BinaryIO) -> None:
        stream.write(b'{"format_version": %d,\n"images": [' % FORMAT_VERSION)
        counts["images"] = _write_items(stream, images())
        stream.write(b'],\n"annotations": [')
        counts["annotations"] = _write_items(stream, annotations())
        classes = json.dumps(categories(class_names)).encode()
        stream.write(b'],\n"categories": ' + classes + b"}\n")

    counts: dict[str, int] = {}
    atomic_write(folder.predictions, write)
    atomic_write(folder.table, lambda stream: _write_table(stream, journal, infos, class_names))
    skipped = [*problems, *(why for _, why in journal.read() if isinstance(why, str))]
    text = "".join(f"{sentence}\n" for sentence in skipped)
    atomic_write(folder.skipped, text.encode(errors=_NO_TEXT))
    return counts["images"], counts["annotations"], len(skipped)


def _write_items(stream: BinaryIO, items: Iterator[dict[str, Any]]) -> int:
    number = 0
    for number, item in enumerate(items, start=1):
        stream.write((b",\n" if number > 1 else b"\n") + json.dumps(item).encode())
    return number


def _write_table(
    stream: BinaryIO,
    journal: Journal,
    infos: Mapping[str, ImageInfo],
    class_names: Sequence[str],
) -> None:
    text = io.TextIOWrapper(stream, "utf-8", errors=_NO_TEXT, newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["file", "class", "score", "x1", "y1", "x2", "y2"])
    for image_id, found in journal.found():
        name, columns = infos[image_id].file_name, (found.labels, found.scores, found.boxes)
        for label, score, box in zip(*(column.tolist() for column in columns), strict=True):
            sides = [f"{value:.2f}" for value in box]
            table.writerow([name, class_names[label - 1], f"{score:.4f}", *sides])
    # Not closed: the file is.
    text.detach()
