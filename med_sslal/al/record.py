"""PoolRecord: what one inference pass over the pool saw, as memory-mapped columns.

Shape shorthand: N images, M detections of all images together, C classes with background, D
embedding length, P best proposals kept per image, F length of the RoI features. The detections of
image i are the rows `offsets[i]` to `offsets[i + 1]` of every [M, ...] column. Images are sorted
by id.

On disk a record is a folder: `header.json`, `labelled_embeddings.npy`, and one folder per section
(one section per view of the images; `plain` is the image as it is) with one .npy file per column.
A column that a view has in common with `plain` is stored in `plain` alone.
"""

import mmap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tokenize import TokenError
from types import MappingProxyType
from typing import Annotated, get_type_hints

import numpy as np

from med_sslal.utils.errors import DataError
from med_sslal.utils.util import read_versioned

FORMAT_VERSION = 4
HEADER_FILE = "header.json"
LABELLED_FILE = "labelled_embeddings.npy"
PLAIN = "plain"
HEAD_VIEW_PREFIX = "dropout_"
RECORD_FLOOR = 0.05

Array = np.ndarray


@dataclass(frozen=True)
class RecordHeader:
    """What was scored, by what, and what criteria need beside the detections."""

    images_fingerprint: str  # Of the images and their split.
    model_hash: str  # `weights_hash` of the model that scored.
    config_hash: str  # Hash of the resolved config.
    class_names: tuple[str, ...]  # Names without background; label i is `class_names[i - 1]`.
    record_floor: float = RECORD_FLOOR  # Detections with a score below it are not in the record.
    # Class name to number of boxes in the labelled set.
    class_counts: Mapping[str, int] = field(default_factory=dict)
    # Class name to the training difficulty (the hook ClassDifficulty); may be empty.
    class_difficulty: Mapping[str, float] = field(default_factory=dict)
    labels_fingerprint: str = ""  # Of the labels known then, those of val and test among them.


@dataclass(frozen=True)
class RecordSection:
    """The columns of one view. Boxes and proposals are in ORIGINAL pixels.

    The rows of a view of the image (`flip`, ...) are its own detections. The rows of a view of the
    heads (`dropout_1`, ...) are those of `plain`, seen again: same images, proposals and labels,
    other boxes, scores and class_probs, in the order of `plain` and without a floor.

    Each column says its kind of dtype and its shape; a letter stands for the size named above.
    Those that may be None are written on request, for `plain` alone (`PoolRecord.column` refuses
    them in words where they are missing).
    """

    image_ids: Annotated[Array, "U", ("N",)]  # Sorted.
    group_ids: Annotated[Array, "U", ("N",)]  # The patient of each image.
    orig_sizes: Annotated[Array, "i8", ("N", 2)]  # (height, width).
    offsets: Annotated[Array, "i8", ("N+1",)]  # First detection of each image, then M.
    boxes: Annotated[Array, "f4", ("M", 4)]  # Best score first within an image.
    labels: Annotated[Array, "i8", ("M",)]  # From 1 on.
    scores: Annotated[Array, "f4", ("M",)]  # At least `record_floor`.
    class_probs: Annotated[Array, "f4", ("M", "C")]  # Background first.
    proposals: Annotated[Array, "f4", ("M", 4)]  # What each box was regressed from.
    embeddings: Annotated[Array, "f4", ("N", "D")]
    # Best objectness first; all zero (no area) past an image's last proposal.
    top_proposals: Annotated[Array, "f4", ("N", "P", 4)]
    top_objectness: Annotated[Array, "f4", ("N", "P")]
    # What the box head made of each proposal.
    roi_features: Annotated[Array | None, "f4", ("M", "F")] = None
    # What the box head makes, for the same class, of each final box in place of its proposal.
    refined_boxes: Annotated[Array | None, "f4", ("M", 4)] = None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.image_ids)

    @property
    def counts(self) -> np.ndarray:
        """int64 [N], detections per image."""
        return np.diff(self.offsets)

    @property
    def owners(self) -> np.ndarray:
        """int64 [M], the row of the image that each detection belongs to."""
        return np.repeat(np.arange(len(self)), self.counts)

    def blocks(self, n_images: int) -> Iterator["RecordSection"]:
        """The section in pieces of at most `n_images` images, so that memory stays bounded."""
        for start in range(0, len(self), n_images):
            stop = min(start + n_images, len(self))
            first, last = int(self.offsets[start]), int(self.offsets[stop])
            rows = {"N": slice(start, stop), "M": slice(first, last)}
            parts = {
                name: getattr(self, name)[rows[str(shape[0])]]
                for name, (_, shape) in ALL_COLUMNS.items()
                if name != "offsets" and getattr(self, name) is not None
            }
            yield RecordSection(offsets=self.offsets[start : stop + 1] - first, **parts)
            self.release()

    def release(self) -> None:
        """Let go of the mapped pages, which count as this process's memory.

        The columns stay readable: what is read again comes from the system's cache, or the disk.
        """
        for name in ALL_COLUMNS:
            # What np.load mapped is an array over the mapping; made-up columns are not.
            mapping = getattr(getattr(self, name), "base", None)
            if isinstance(mapping, mmap.mmap) and hasattr(mapping, "madvise"):
                mapping.madvise(mmap.MADV_DONTNEED)


# Column name to (kind of dtype, shape).
ALL_COLUMNS: Mapping[str, tuple[str, tuple[str | int, ...]]] = MappingProxyType(
    {
        name: hint.__metadata__
        for name, hint in get_type_hints(RecordSection, include_extras=True).items()
    }
)
OPTIONAL_COLUMNS = MappingProxyType(
    {name: kind for name, kind in ALL_COLUMNS.items() if hasattr(RecordSection, name)}
)
COLUMNS = MappingProxyType(
    {name: kind for name, kind in ALL_COLUMNS.items() if name not in OPTIONAL_COLUMNS}
)


@dataclass(frozen=True)
class PoolRecord:
    """A finished record: everything that selects, explains or pseudo-labels reads only this."""

    path: Path
    header: RecordHeader
    labelled_ids: tuple[str, ...]  # Sorted.
    labelled_embeddings: np.ndarray  # float32 [len(labelled_ids), D], from the same pass.
    sections: Mapping[str, RecordSection]  # By view.

    @property
    def image_ids(self) -> np.ndarray:
        """The ids of the pool's images: str [N], sorted."""
        return self.section(PLAIN).image_ids

    def section(self, view: str) -> RecordSection:
        """The columns of one view; DataError where the record was written without it."""
        if view not in self.sections:
            raise DataError(
                f"record {self.path} has no view '{view}', only {', '.join(self.sections)}: "
                "score the pool again with a criterion that needs it"
            )
        return self.sections[view]

    def column(self, name: str) -> np.ndarray:
        """One of OPTIONAL_COLUMNS of the plain section: float32 [M, ...]; DataError without it."""
        values: np.ndarray | None = getattr(self.section(PLAIN), name)
        if values is None:
            raise DataError(
                f"record {self.path} has no {name}: score the pool again with a criterion or "
                "second stage that needs them"
            )
        return values

    def blocks(self, n_images: int) -> Iterator["PoolRecord"]:
        """The record in pieces of at most `n_images` images, the same ones in every section."""
        pieces = [section.blocks(n_images) for section in self.sections.values()]
        for sections in zip(*pieces, strict=True):
            yield replace(self, sections=dict(zip(self.sections, sections, strict=True)))

    @classmethod
    def open(cls, path: Path) -> "PoolRecord":
        """Map a record's files into memory; nothing but the header is read.

        DataError where a file is missing, damaged, or written by another version.
        """
        content = read_versioned(path / HEADER_FILE, FORMAT_VERSION, oldest=FORMAT_VERSION)
        try:
            names = tuple(content["header"]["class_names"])
            header = RecordHeader(**{**content["header"], "class_names": names})
            labelled_ids = tuple(content["labelled_ids"])
            sizes, shared = content["sections"], content.get("shared", {})
            names_of_plain = (*COLUMNS, *content["optional_columns"])
            sections = {PLAIN: _open_section(path / PLAIN, sizes[PLAIN], names_of_plain)}
            for view in [view for view in sizes if view != PLAIN]:
                same = {name: getattr(sections[PLAIN], name) for name in shared.get(view, ())}
                sections[view] = _open_section(path / view, sizes[view], COLUMNS, same)
            n_dims = int(sizes[PLAIN]["D"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DataError(
                f"{path / HEADER_FILE} is no header of a pool record: {error}"
            ) from error
        embeddings = _open_column(path / LABELLED_FILE, "f4", (len(labelled_ids), n_dims))
        return cls(path, header, labelled_ids, embeddings, MappingProxyType(sections))


def is_aligned(view: str) -> bool:
    """Whether a view is one of the heads: its rows are those of `plain`."""
    return view.startswith(HEAD_VIEW_PREFIX)


def column_shape(name: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Shape of a column, given the sizes N, M, C, D, P and F."""
    known = {**sizes, "N+1": sizes["N"] + 1}
    shape = ALL_COLUMNS[name][1]
    return tuple(d if isinstance(d, int) else known[d] for d in shape)


def _open_section(
    folder: Path,
    sizes: Mapping[str, int],
    names: Iterable[str],
    shared: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> RecordSection:
    """Map the columns of one section and check that they fit each other."""
    columns = dict(shared)
    for name in names:
        if name not in shared:
            shape = column_shape(name, sizes)
            columns[name] = _open_column(folder / f"{name}.npy", ALL_COLUMNS[name][0], shape)
    offsets = columns["offsets"]
    if offsets[0] != 0 or offsets[-1] != sizes["M"] or (np.diff(offsets) < 0).any():
        file = folder / "offsets.npy"
        raise DataError(f"{file} is damaged: score the pool again", file)
    return RecordSection(**columns)


def _open_column(file: Path, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Map one .npy file; DataError where it is missing, damaged or holds something else."""
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, TokenError) as error:
        raise DataError(f"cannot read {file}: {error}; score the pool again", file) from error
    fits = array.dtype.kind == "U" if kind == "U" else array.dtype == np.dtype(kind)
    if not fits or array.shape != shape:
        raise DataError(
            f"{file} holds {array.dtype} {list(array.shape)}, expected {kind} {list(shape)}: "
            "score the pool again",
            file,
        )
    return array
