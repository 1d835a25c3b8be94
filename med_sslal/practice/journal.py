"""The journal of a run: every answer that a person gave, in the order in which they came.

A line of JSON is one import, with all of its answers, so that it is there as a whole or not at all:
a line without an end was cut by a kill. It is left out, and removed by the next import.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from med_sslal.base.types import Annotation
from med_sslal.practice.answers import Answer
from med_sslal.utils.errors import DataError, UserError
from med_sslal.utils.util import check_version, fsync_folder, open_alone

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Told:
    """Answers to a query that came together."""

    query_id: str
    files: tuple[Mapping[str, Any], ...]  # What they were read from: SHA-256, and how it was read.
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Journal:
    """What was told until now."""

    imports: tuple[Told, ...] = ()

    def __len__(self) -> int:
        return len(self.imports)

    def of(self, query_id: str) -> "Journal":
        """What was told of one query alone."""
        return Journal(tuple(told for told in self.imports if told.query_id == query_id))

    def standing(self, n_imports: int | None = None) -> dict[str, Answer]:
        """The answer of each image that holds after so many imports, or all: the last one.

        A draft ("in_progress") takes no answer's place. In the order in which they were given.
        """
        held: dict[str, Answer] = {}
        for told in self.imports[:n_imports]:
            for answer in told.answers:
                if answer.state == "in_progress" and answer.image_id in held:
                    continue
                held.pop(answer.image_id, None)
                if answer.state != "withdrawn":
                    held[answer.image_id] = answer
        return held

    def labels(self, n_imports: int | None = None) -> dict[str, Annotation]:
        """Likewise the labels of images that are labelled or confirmed empty."""
        return {
            name: answer.annotation
            for name, answer in self.standing(n_imports).items()
            if answer.state in ("labelled", "confirmed_empty")
        }


def read_journal(path: Path, class_names: Sequence[str]) -> Journal:
    """Read a journal, empty where there is none; DataError where it is damaged or newer."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return Journal()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    return _parse(content, path, class_names)[0]


class JournalWriter:
    """A journal that this process alone may add to; see `open_journal`."""

    def __init__(self, path: Path, stream: BinaryIO, class_names: Sequence[str]) -> None:
        self._path, self._stream, self._names = path, stream, class_names
        stream.seek(0)
        self.journal, self._end = _parse(stream.read(), path, class_names)

    def add(self, told: Told, sources: Mapping[str, str]) -> None:
        """Write answers, which are on the disk then; UserError where it is full.

        `sources` are the SHA-256 of the files that they are from, by image id; none is withdrawn by
        a file.
        """
        at = datetime.now(UTC).isoformat(timespec="seconds")
        line = {
            "format_version": FORMAT_VERSION,
            "query_id": told.query_id,
            "files": [dict(file) for file in told.files],
            "answers": [
                {
                    "at": at,
                    "query_id": told.query_id,
                    "image_id": answer.image_id,
                    "state": answer.state,
                    "boxes": answer.boxes.tolist(),
                    "labels": [self._names[label - 1] for label in answer.labels],
                    "reader": answer.reader,
                    "seconds": answer.seconds,
                    "file_sha256": sources.get(answer.image_id),
                }
                for answer in told.answers
            ],
        }
        text, file = json.dumps(line, allow_nan=False).encode() + b"\n", self._stream.fileno()
        left = text
        try:
            os.ftruncate(file, self._end)
            # Not by the stream, which would try again to write what a full disk did not take.
            while left:
                left = left[os.write(file, left) :]
            os.fsync(file)
            fsync_folder(self._path.parent)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(file, self._end)
            raise UserError(f"cannot write {self._path}: {error.strerror or error}") from error
        self._end += len(text)


@contextmanager
def open_journal(path: Path, class_names: Sequence[str]) -> Iterator[JournalWriter]:
    """Open a journal to add to it; UserError where another process does, or it is damaged."""
    busy = f"another import adds to {path}: wait for it, and give the command again"
    with open_alone(path, busy) as stream:
        yield JournalWriter(path, stream, class_names)


def _parse(content: bytes, path: Path, class_names: Sequence[str]) -> tuple[Journal, int]:
    """The journal, and how many bytes of the content are whole lines."""
    whole, end, _ = content.rpartition(b"\n")
    labels = {name: label for label, name in enumerate(class_names, start=1)}
    imports = []
    for number, line in enumerate(whole.split(b"\n") if end else (), start=1):
        where = f"{path}, line {number}"
        try:
            told = json.loads(line)
            check_version(told, FORMAT_VERSION, where)
            answers = tuple(_answer(row, labels) for row in told["answers"])
            imports.append(Told(told["query_id"], tuple(told["files"]), answers))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{where} is damaged ({error!r}): put back a copy of the file; no run may go on "
                "without the answers that it stands on"
            ) from error
    return Journal(tuple(imports)), len(whole) + len(end)


def _answer(row: Mapping[str, Any], labels: Mapping[str, int]) -> Answer:
    return Answer(
        image_id=row["image_id"],
        state=row["state"],
        boxes=np.array(row["boxes"], dtype=np.float32).reshape(-1, 4),
        labels=np.array([labels[name] for name in row["labels"]], dtype=np.int64),
        reader=row["reader"],
        seconds=row["seconds"],
    )
