"""Writes a PoolRecord as a stream: shards while the model runs, then one merge by image id."""

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap

from med_sslal.al.record import (
    ALL_COLUMNS,
    COLUMNS,
    FORMAT_VERSION,
    HEADER_FILE,
    LABELLED_FILE,
    OPTIONAL_COLUMNS,
    PLAIN,
    PoolRecord,
    RecordHeader,
    column_shape,
    is_aligned,
)
from med_sslal.base.types import Detections, ImageInfo
from med_sslal.utils.errors import UserError
from med_sslal.utils.util import fsync_folder, write_versioned

_IMAGE_COLUMNS = ("image_ids", "group_ids", "orig_sizes")
# The columns that come from detections, shard by shard.
_STREAMED = tuple(name for name in COLUMNS if name not in (*_IMAGE_COLUMNS, "offsets"))
_PER_BOX = tuple(name for name, (_, shape) in ALL_COLUMNS.items() if shape[0] == "M")
# All that a view of the heads changes.
_PER_HEAD = ("boxes", "scores", "class_probs")
# The columns that tell the size of a letter.
_WIDTHS = {"embeddings": "D", "top_objectness": "P", "roi_features": "F"}
_SHARD_BYTES = 2**26


class RecordWriter:
    """Collects detections in any order; memory holds one shard, plus the labelled embeddings.

    Use it as a context manager: the folder appears under its name when `close` has written
    everything, and an interrupted pass leaves nothing under that name.

    Args:
        path: Folder of the record; an older record there is replaced by `close`.
        header: What is scored and by what; its `record_floor` decides what is kept.
        views: The sections to write; `plain` is always one of them.
        columns: Those of OPTIONAL_COLUMNS that the plain detections bring and that are kept.
        shard_size: Images held in memory before they are written; fewer where they are large.

    Raises:
        UserError: The folder cannot be written.
    """

    def __init__(
        self,
        path: Path,
        header: RecordHeader,
        *,
        views: Sequence[str] = (PLAIN,),
        columns: Sequence[str] = (),
        shard_size: int = 512,
    ) -> None:
        self.path = path
        self.header = header
        self.shard_size = shard_size
        self._partial = path.with_name(f".{path.name}.partial")
        self._shared = {view: _shared_columns(view) for view in dict.fromkeys((PLAIN, *views))}
        self._columns = {
            view: [name for name in _STREAMED if name not in shared]
            for view, shared in self._shared.items()
        }
        self._columns[PLAIN] += columns
        self._waiting: list[tuple[ImageInfo, dict[str, Detections]]] = []
        self._n_bytes = 0
        self._shards: list[Path] = []
        # What is small for each image, shard by shard after an empty one.
        self._small: dict[str, list[np.ndarray]] = {
            "image_ids": [np.zeros(0, dtype="<U1")],
            "group_ids": [np.zeros(0, dtype="<U1")],
            "orig_sizes": [np.zeros((0, 2), dtype=np.int64)],
            **{view: [np.zeros(0, dtype=np.int64)] for view in self._columns},
        }
        self._widths = Counter[tuple[str, str]]()
        self._labelled: dict[str, np.ndarray] = {}
        with _writing(path):
            shutil.rmtree(self._partial, ignore_errors=True)
            for view in self._columns:
                (self._partial / view).mkdir(parents=True)

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(self, *_: object) -> None:
        """Remove what an unfinished pass has written."""
        shutil.rmtree(self._partial, ignore_errors=True)

    def add(
        self,
        info: ImageInfo,
        detections: Detections,
        others: Mapping[str, Detections] = MappingProxyType({}),
    ) -> None:
        """Take the detections (on the CPU) of one unlabelled image, `others` by further view.

        ValueError where the views are not the record's, or a view of the heads has other rows than
        the plain detections.
        """
        found = {PLAIN: detections, **others}
        if found.keys() != self._columns.keys():
            raise ValueError(f"found views {list(found)}, the record has {list(self._columns)}")
        for view, item in found.items():
            if is_aligned(view) and len(item.scores) != len(detections.scores):
                raise ValueError(
                    f"image {info.image_id}: view {view} has {len(item.scores)} rows, {PLAIN} has "
                    f"{len(detections.scores)}"
                )
            names = [name for name in self._columns[view] if name in _PER_BOX]
            self._n_bytes += sum(getattr(item, name).nbytes for name in names)
        self._waiting.append((info, found))
        if len(self._waiting) >= self.shard_size or self._n_bytes >= _SHARD_BYTES:
            self._write_shard()

    def add_labelled(self, info: ImageInfo, detections: Detections) -> None:
        """Take the embedding of one labelled image."""
        if info.image_id in self._labelled:
            raise ValueError(f"labelled image {info.image_id} was scored twice")
        self._labelled[info.image_id] = detections.embedding.numpy().copy()

    def take_labelled(self, record: PoolRecord) -> None:
        """Take the labelled images of another record, scored by the same model."""
        self._labelled |= zip(
            record.labelled_ids, np.array(record.labelled_embeddings), strict=True
        )

    def close(self) -> PoolRecord:
        """Merge the shards by image id, put the record under its name and open it.

        Raises:
            ValueError: An image was added twice, or both as labelled and as unlabelled.
            UserError: The folder cannot be written.
        """
        if self._waiting:
            self._write_shard()
        with _writing(self.path):
            labelled_ids = sorted(self._labelled)
            sizes = self._merge()
            shape = (len(labelled_ids), sizes[PLAIN]["D"])
            embeddings = np.array([self._labelled[name] for name in labelled_ids], np.float32)
            np.save(self._partial / LABELLED_FILE, embeddings.reshape(shape))
            content = {
                "header": asdict(self.header),
                "labelled_ids": labelled_ids,
                "sections": sizes,
                "optional_columns": [
                    name for name in OPTIONAL_COLUMNS if name in self._columns[PLAIN]
                ],
                "shared": self._shared,
            }
            write_versioned(self._partial / HEADER_FILE, FORMAT_VERSION, content)
            # An older record makes way in the same moment.
            old = self.path.with_name(f".{self.path.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            if self.path.exists():
                self.path.rename(old)
            self._partial.rename(self.path)
            fsync_folder(self.path.parent)
            shutil.rmtree(old, ignore_errors=True)
        return PoolRecord.open(self.path)

    def _write_shard(self) -> None:
        """Write the images in memory, without detections under the floor."""
        infos = [info for info, _ in self._waiting]
        seen = {view: [found[view] for _, found in self._waiting] for view in self._columns}
        for name in _IMAGE_COLUMNS:
            told = [getattr(info, name.removesuffix("s")) for info in infos]
            self._small[name].append(np.array(told))
        kept = {
            view: np.concatenate([d.scores.numpy() for d in found]) >= self.header.record_floor
            for view, found in seen.items()
            if not is_aligned(view)
        }
        columns: dict[str, Any] = {}
        for view, detections in seen.items():
            keep = kept[_rows_of(view)]
            owners = np.repeat(np.arange(len(infos)), [len(d.scores) for d in detections])
            self._small[view].append(np.bincount(owners[keep], minlength=len(infos)))
            for name in self._columns[view]:
                if name == "embeddings":
                    values = torch.stack([d.embedding for d in detections])
                elif name in _PER_BOX:
                    values = torch.cat([getattr(d, name) for d in detections])[keep]
                else:
                    rows = [getattr(d, name) for d in detections]
                    values = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
                columns[f"{view}.{name}"] = values.numpy()
                if name in _WIDTHS:
                    key = (view, _WIDTHS[name])
                    self._widths[key] = max(self._widths[key], values.shape[1])
        shard = self._partial / f"shard_{len(self._shards):05d}.npz"
        with _writing(self.path):
            np.savez(shard, **columns)
        self._shards.append(shard)
        self._waiting, self._n_bytes = [], 0

    def _merge(self) -> dict[str, dict[str, int]]:
        """Write the final columns, one of one shard at a time; view to the sizes N, M, C, ..."""
        small = {name: np.concatenate(parts) for name, parts in self._small.items()}
        ids = small["image_ids"]
        names, counts = np.unique(ids, return_counts=True)
        twice = [*names[counts > 1].tolist(), *(set(names.tolist()) & set(self._labelled))]
        if twice:
            raise ValueError(f"{len(twice)} image(s) were added twice, the first is {twice[0]}")
        order = np.argsort(ids, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(ids))
        for name in _IMAGE_COLUMNS:
            np.save(self._partial / PLAIN / f"{name}.npy", small[name][order])
        sections = {}
        for view, columns in self._columns.items():
            offsets = np.append(0, np.cumsum(small[view][order]))
            widths = {letter: self._widths[_rows_of(view), letter] for letter in _WIDTHS.values()}
            widths["D"] = max([widths["D"], *map(len, self._labelled.values())])
            n_classes = len(self.header.class_names) + 1
            sections[view] = {"N": len(ids), "M": int(offsets[-1]), "C": n_classes, **widths}
            if not is_aligned(view):
                np.save(self._partial / view / "offsets.npy", offsets)
            for name in columns:
                self._merge_column(view, name, rank, offsets, sections[view])
        for shard in self._shards:
            shard.unlink()
        return sections

    def _merge_column(
        self, view: str, name: str, rank: np.ndarray, offsets: np.ndarray, sizes: Mapping[str, int]
    ) -> None:
        """Write one column of a view in the order of the image ids."""
        file = self._partial / view / f"{name}.npy"
        dtype, shape = np.dtype(ALL_COLUMNS[name][0]), column_shape(name, sizes)
        open_memmap(file, mode="w+", dtype=dtype, shape=shape).flush()
        start = 0
        for shard, n_boxes in zip(self._shards, self._small[view][1:], strict=True):
            # The others of the shard stay on disk.
            with np.load(shard, allow_pickle=False) as columns:
                part = columns[f"{view}.{name}"]
            rows = rank[start : start + len(n_boxes)]
            start += len(n_boxes)
            # Mapped anew for each shard: pages of a mapping count as this process's memory.
            merged = open_memmap(file, mode="r+")
            if name in _PER_BOX:
                shift = offsets[rows] - (np.cumsum(n_boxes) - n_boxes)
                merged[np.repeat(shift, n_boxes) + np.arange(len(part))] = part
            else:
                # Embeddings are as long as the whole record's, or it is refused; others are padded.
                width = None if name == "embeddings" else part.shape[1]
                merged[rows, :width] = part
            merged.flush()


def _rows_of(view: str) -> str:
    """The view whose detections decide the rows of `view`."""
    return PLAIN if is_aligned(view) else view


def _shared_columns(view: str) -> tuple[str, ...]:
    """The columns that a section has in common with `plain`, which stores them."""
    if is_aligned(view):
        return tuple(name for name in COLUMNS if name not in _PER_HEAD)
    return () if view == PLAIN else _IMAGE_COLUMNS


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn a full or read-only disk into a sentence."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
