"""Writes a PoolRecord as a stream: shards while the model runs, then one merge by image id."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap

from med_sslal.al.record import (
    COLUMNS,
    FORMAT_VERSION,
    HEADER_FILE,
    LABELLED_FILE,
    PLAIN,
    PoolRecord,
    RecordHeader,
    column_shape,
)
from med_sslal.base.types import Detections, ImageInfo
from med_sslal.utils.errors import UserError
from med_sslal.utils.util import fsync_folder, write_json

_IMAGE_COLUMNS = ("image_ids", "group_ids", "orig_sizes")
_PER_IMAGE = ("embeddings", "top_proposals", "top_objectness")
_PADDED = ("top_proposals", "top_objectness")
_PER_BOX = ("boxes", "labels", "scores", "class_probs", "proposals")


class RecordWriter:
    """Collects detections in any order; memory holds one shard, plus the labelled embeddings.

    Use it as a context manager: the folder appears under its name when `close` has written
    everything, and an interrupted pass leaves nothing under that name.
    """

    def __init__(self, path: Path, header: RecordHeader, *, shard_size: int = 512) -> None:
        """Start a record.

        Args:
            path: Folder of the record; an older record there is replaced by `close`.
            header: What is scored and by what; its `record_floor` decides what is kept.
            shard_size: Images held in memory before they are written.

        Raises:
            UserError: The folder cannot be written.
        """
        self.path = path
        self.header = header
        self.shard_size = shard_size
        self._partial = path.with_name(f".{path.name}.partial")
        self._infos: list[ImageInfo] = []
        self._detections: list[Detections] = []
        self._shards: list[Path] = []
        self._labelled: dict[str, np.ndarray] = {}
        with _writing(path):
            shutil.rmtree(self._partial, ignore_errors=True)
            (self._partial / PLAIN).mkdir(parents=True)

    def __enter__(self) -> "RecordWriter":
        """The writer itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove what an unfinished pass has written."""
        shutil.rmtree(self._partial, ignore_errors=True)

    def add(self, info: ImageInfo, detections: Detections) -> None:
        """Take the detections (on the CPU) of one unlabelled image."""
        self._infos.append(info)
        self._detections.append(detections)
        if len(self._infos) >= self.shard_size:
            self._write_shard()

    def add_labelled(self, info: ImageInfo, detections: Detections) -> None:
        """Take the embedding of one labelled image."""
        if info.image_id in self._labelled:
            raise ValueError(f"labelled image {info.image_id} was scored twice")
        self._labelled[info.image_id] = detections.embedding.numpy().copy()

    def close(self) -> PoolRecord:
        """Merge the shards by image id, put the record under its name and open it.

        Raises:
            ValueError: An image was added twice, or both as labelled and as unlabelled.
            UserError: The folder cannot be written.
        """
        if self._infos:
            self._write_shard()
        with _writing(self.path):
            labelled_ids = sorted(self._labelled)
            sizes = self._merge()
            embeddings = np.zeros((len(labelled_ids), sizes["D"]), dtype=np.float32)
            for row, image_id in enumerate(labelled_ids):
                embeddings[row] = self._labelled[image_id]
            np.save(self._partial / LABELLED_FILE, embeddings)
            content = {
                "format_version": FORMAT_VERSION,
                "header": self.header.to_json(),
                "labelled_ids": labelled_ids,
                "sections": {PLAIN: sizes},
            }
            write_json(self._partial / HEADER_FILE, content)
            self._publish()
        return PoolRecord.open(self.path)

    def _write_shard(self) -> None:
        """Write the images in memory, without detections under the floor."""
        infos, detections = self._infos, self._detections
        counts = np.array([len(d.scores) for d in detections])
        columns: dict[str, Any] = {
            name: torch.cat([getattr(d, name) for d in detections]).numpy() for name in _PER_BOX
        }
        keep = columns["scores"] >= self.header.record_floor
        columns = {name: column[keep] for name, column in columns.items()}
        owners = np.repeat(np.arange(len(infos)), counts)[keep]
        columns["counts"] = np.bincount(owners, minlength=len(infos))
        columns["embeddings"] = torch.stack([d.embedding for d in detections]).numpy()
        for name in _PADDED:
            rows = [getattr(d, name) for d in detections]
            columns[name] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).numpy()
        columns["image_ids"] = np.array([info.image_id for info in infos], dtype=np.str_)
        columns["group_ids"] = np.array([info.group_id for info in infos], dtype=np.str_)
        columns["orig_sizes"] = np.array([info.orig_size for info in infos], dtype=np.int64)
        shard = self._partial / f"shard_{len(self._shards):05d}.npz"
        with _writing(self.path):
            np.savez(shard, **columns)
        self._shards.append(shard)
        self._infos, self._detections = [], []

    def _merge(self) -> dict[str, int]:
        """Write the final columns from the shards, one column of one shard at a time.

        Returns:
            The sizes N, M, C, D and P.
        """
        ids = _joined(self._shards, "image_ids", np.zeros(0, dtype="<U1"))
        counts = _joined(self._shards, "counts", np.zeros(0, dtype=np.int64))
        self._check_ids(ids)
        order = np.argsort(ids, kind="stable")
        offsets = np.concatenate([[0], np.cumsum(counts[order])]).astype(np.int64)
        sizes = self._sizes(len(ids), int(offsets[-1]))
        rank = np.empty_like(order)
        rank[order] = np.arange(len(ids))
        np.save(self._partial / PLAIN / "offsets.npy", offsets)
        for name in (*_IMAGE_COLUMNS, *_PER_IMAGE, *_PER_BOX):
            merged = open_memmap(
                self._partial / PLAIN / f"{name}.npy",
                mode="w+",
                dtype=self._dtype(name),
                shape=column_shape(name, sizes),
            )
            start = 0
            for shard in self._shards:
                part, n_boxes = _load(shard, name), _load(shard, "counts")
                rows = rank[start : start + len(n_boxes)]
                start += len(n_boxes)
                if name in _PER_BOX:
                    shift = offsets[rows] - (np.cumsum(n_boxes) - n_boxes)
                    rows = np.repeat(shift, n_boxes) + np.arange(len(part))
                if name in _PADDED:
                    merged[rows, : part.shape[1]] = part
                else:
                    merged[rows] = part
            merged.flush()
        for shard in self._shards:
            shard.unlink()
        return sizes

    def _check_ids(self, ids: np.ndarray) -> None:
        """Raise ValueError unless every image was added once, as one thing."""
        names, counts = np.unique(ids, return_counts=True)
        twice = [*names[counts > 1].tolist(), *(set(names.tolist()) & set(self._labelled))]
        if twice:
            raise ValueError(f"{len(twice)} image(s) were added twice, the first is {twice[0]}")

    def _sizes(self, n_images: int, n_detections: int) -> dict[str, int]:
        """The sizes of the merged section by their letters."""
        widths = {
            letter: [_load(shard, name).shape[1] for shard in self._shards]
            for letter, name in (("D", "embeddings"), ("P", "top_objectness"))
        }
        widths["D"] += [len(embedding) for embedding in self._labelled.values()]
        return {
            "N": n_images,
            "M": n_detections,
            "C": len(self.header.class_names) + 1,
            "D": max(widths["D"], default=0),
            "P": max(widths["P"], default=0),
        }

    def _dtype(self, name: str) -> np.dtype:
        """Dtype of a merged column; texts get the width of the longest one."""
        if COLUMNS[name][0] != "U":
            return np.dtype(COLUMNS[name][0])
        widths = [_load(shard, name).dtype.itemsize for shard in self._shards]
        return np.dtype(f"<U{max(widths, default=4) // 4}")

    def _publish(self) -> None:
        """Rename the finished folder to its name; an older record makes way in the same moment."""
        old = self.path.with_name(f".{self.path.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if self.path.exists():
            self.path.rename(old)
        self._partial.rename(self.path)
        fsync_folder(self.path.parent)
        shutil.rmtree(old, ignore_errors=True)


def _joined(shards: Sequence[Path], name: str, empty: np.ndarray) -> np.ndarray:
    """One column of all shards; only for columns that hold one small value per image."""
    return np.concatenate([_load(shard, name) for shard in shards]) if shards else empty


def _load(shard: Path, name: str) -> np.ndarray:
    """One column of a shard; the others stay on disk."""
    with np.load(shard, allow_pickle=False) as columns:
        return columns[name]


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn a full or read-only disk into a sentence."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
