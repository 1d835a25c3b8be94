"""The folder in which a query goes to a person: written whole or not at all, and read back."""

import base64
import json
import math
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from med_sslal.base.types import Prediction, Selected, Selection
from med_sslal.data.pictures import PictureImages
from med_sslal.practice.answers import Query, QueryImage
from med_sslal.practice.beside import Beside, PicturesBeside
from med_sslal.practice.formats.coco import coco_document
from med_sslal.practice.formats.cvat import cvat_labels
from med_sslal.practice.formats.label_studio import (
    has_beside,
    label_studio_tasks,
    labeling_config,
)
from med_sslal.practice.query_readme import query_readme
from med_sslal.utils.errors import DataError
from med_sslal.utils.util import (
    atomic_write,
    python_generator,
    read_versioned,
    sha256_file,
    whole_folder,
    write_json,
    write_versioned,
)

FORMAT_VERSION = 1
MAX_NAME = 100
_ID = re.compile(r"[0-9a-f]{12}")
# Two dots as well, which some tools take for a way out of their folder.
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]|\.(?=\.)")
_FILE_NAME = re.compile(r"[0-9]+_[A-Za-z0-9._-]*\.png")
_COLUMNS = {"boxes": np.float32, "labels": np.int64, "scores": np.float32}


class QueryFolder:
    """What lies where in the folder of a query."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = path / "manifest.json"  # Written last.
        self.coco = path / "coco.json"
        self.label_studio = path / "label_studio.json"
        self.labeling_config = path / "labeling_config.xml"
        self.cvat_labels = path / "cvat_labels.json"
        self.readme = path / "README.md"
        self.images = path / "images"  # The copies.
        self.related_images = self.images / "related_images"  # By copy, what is to be seen beside.
        self.corrections = path / "corrections.json"  # What readers did, and its page.
        self.correction_page = path / "corrections.html"

    def pictures(self, image: QueryImage) -> list[Path]:
        """The copy of an image, then what is to be seen beside it."""
        return [self.images / image.file_name, *sorted(self.beside(image).glob("*.png"))]

    def addresses(self, query: Query, start: str | None) -> dict[str, list[str]]:
        """By image id those of `pictures`, below the address `start`; None: they hold them."""
        return {
            image.image_id: [
                data_uri(path)
                if start is None
                else f"{start}/{path.relative_to(self.path).as_posix()}"
                for path in self.pictures(image)
            ]
            for image in query.images
        }

    def beside(self, image: QueryImage) -> Path:
        """The folder of what is to be seen beside an image."""
        return self.related_images / image.file_name.replace(".", "_")

    @classmethod
    def named(cls, parent: Path, query_id: str) -> "QueryFolder":
        """That of a query which was written into `parent`."""
        return cls(parent / f"query_{query_id}")


def write_query(
    parent: Path,
    images: PictureImages,
    selection: Selection,
    shown: Mapping[str, Prediction],
    *,
    run: str,
    cycle: int,
    model_hash: str,
    config_hash: str,
    class_names: Sequence[str],
    blind: float = 0.0,
    box_padding_px: float = 0.0,
    beside: Beside | None = None,
) -> Query:
    """Write the folder `query_<id>` into `parent`, which is made.

    What a kill leaves is for `remove_unfinished(parent)`.

    Args:
        parent: Folder of the queries.
        images: Those of the data set.
        selection: What to ask, in this order.
        shown: Detections that the reader is shown, by image id; an image without an entry has none.
        run: Name of the run.
        cycle: Number of the cycle.
        model_hash: Of the checkpoint that chose.
        config_hash: Of the run's config.
        class_names: Without background.
        blind: Share of the images, drawn by the run's seed, whose reader is shown nothing.
        box_padding_px: Padding of the labels that training began with.
        beside: What there is to look at beside each image; None for nothing.

    Raises:
        ConfigError: A class cannot be a label in CVAT.
        DataError: An image cannot be read.
        UserError: The folder cannot be written; nothing is left of it.
    """
    ids, generator = selection.image_ids, python_generator(selection.seed, "blind", cycle)
    drawn = set(generator.sample(ids, round(blind * len(ids))))
    query_id = secrets.token_hex(6)
    final = QueryFolder.named(parent, query_id)
    labels = cvat_labels(class_names)
    with whole_folder(final.path, "the query's folder") as partial:
        folder = QueryFolder(partial)
        folder.images.mkdir()
        more, none = PicturesBeside(beside or Beside(), images), Prediction.empty()
        copies = []
        for item in selection.items:
            is_blind = item.image_id in drawn
            seen = none if is_blind else shown.get(item.image_id, none)
            copies.append(_copy(folder, images, item, is_blind, seen))
            _put_beside(folder, copies[-1], more)
        told = (query_id, run, cycle, selection.seed, model_hash, config_hash)
        query = Query(*told, tuple(class_names), tuple(copies), box_padding_px)
        _write_files(folder, final.path.name, query, selection, labels)
        # What the copies show of the values, for who looks at them later.
        content = {"window": images.window, **_manifest(query)}
        write_versioned(folder.manifest, FORMAT_VERSION, content)
    return query


def _write_files(
    folder: QueryFolder,
    name: str,
    query: Query,
    selection: Selection,
    labels: Sequence[Mapping[str, Any]],
) -> None:
    """Write what the annotation tools read, and the README, of a folder that will have the name."""
    write_json(folder.coco, coco_document(query, _values(selection)))
    pictures = folder.addresses(query, f"/data/local-files/?d={name}")
    write_json(folder.label_studio, label_studio_tasks(query, pictures))
    atomic_write(folder.labeling_config, labeling_config(query.class_names, pictures))
    write_json(folder.cvat_labels, labels)
    text = query_readme(query, name, beside=has_beside(pictures))
    atomic_write(folder.readme, text.encode())


def read_query(folder: Path) -> Query:
    """The query of a folder; DataError where its manifest is missing, damaged or newer."""
    path = QueryFolder(folder).manifest
    content = read_versioned(path, FORMAT_VERSION)
    try:
        images = tuple(_query_image(entry) for entry in content["images"])
        names = tuple(_typed(name, str) for name in content["class_names"])
        texts = [_typed(content[key], str) for key in ("query_id", "run")]
        whole = [_typed(content[key], int) for key in ("cycle", "seed")]
        hashes = [_typed(content[key], str) for key in ("model_hash", "config_hash")]
        # Older manifests have none.
        padding = float(content.get("box_padding_px", 0))
        if not 0 <= padding < math.inf:
            raise ValueError(f"box_padding_px is {padding}")
        told = (*texts, *whole, *hashes, names, images, padding)
        query = Query(*told)
        if not _ID.fullmatch(query.query_id):
            raise ValueError(f"'{query.query_id}' is no id of a query")
        for keys in (names, [i.image_id for i in images], [i.file_name for i in images]):
            if len(set(keys)) != len(keys):
                raise ValueError("a class, an image or a file comes twice")
        if any((image.shown.labels > len(names)).any() for image in images):
            raise ValueError("what was shown has an unknown class")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{path} is damaged: {error!r}; take it from the folder as written") from (
            error
        )
    return query


def _copy(
    folder: QueryFolder,
    images: PictureImages,
    item: Selected,
    blind: bool,
    shown: Prediction,
) -> QueryImage:
    """Write the 8-bit copy of an image."""
    info, source = images.infos[item.image_id], images.path(item.image_id)
    stem = f"{item.rank:04d}_{_UNSAFE.sub('_', item.image_id)}"
    name = f"{stem[: MAX_NAME - len('.png')]}.png"
    picture = images.picture(item.image_id)
    atomic_write(folder.images / name, _png(picture))
    try:
        source_hash = sha256_file(source)
    except OSError as error:
        raise DataError(f"cannot read image file {source}: {error.strerror or error}") from error
    return QueryImage(
        image_id=item.image_id,
        file_name=name,
        source=info.file_name,
        source_sha256=source_hash,
        sha256=sha256_file(folder.images / name),
        width=picture.shape[1],
        height=picture.shape[0],
        rank=item.rank,
        blind=blind,
        shown=shown,
    )


def _put_beside(folder: QueryFolder, image: QueryImage, more: PicturesBeside) -> None:
    """Write what there is to look at beside an image, where CVAT shows it beside that."""
    place = folder.beside(image)
    for name, picture in more.of(image.image_id):
        place.mkdir(parents=True, exist_ok=True)
        atomic_write(place / f"{name}.png", _png(picture))


def _png(picture: np.ndarray) -> bytes:
    """The file of a picture in [0, 1]: 8 bits, in grey where it is grey."""
    pixels = np.rint(picture * 255).clip(0, 255).astype(np.uint8)
    grey = bool((pixels == pixels[..., :1]).all())
    return cv2.imencode(".png", pixels[..., 0] if grey else pixels[..., ::-1])[1].tobytes()


def data_uri(path: Path) -> str:
    """A picture's file as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _values(selection: Selection) -> dict[str, float | None]:
    """The first criterion's value of each image; None where it has none, or none that is finite."""
    found = {item.image_id: item.values.get(selection.criteria[0]) for item in selection.items}
    return {
        image_id: value if value is not None and math.isfinite(value) else None
        for image_id, value in found.items()
    }


def _manifest(query: Query) -> dict[str, Any]:
    content = asdict(query)
    for image in content["images"]:
        image["shown"] = {name: image["shown"][name].tolist() for name in _COLUMNS}
    return content


def _query_image(entry: Mapping[str, Any]) -> QueryImage:
    """An image of a manifest; KeyError, TypeError, ValueError or OverflowError of a damaged one."""
    texts = ("image_id", "file_name", "source", "source_sha256", "sha256")
    whole = ("width", "height", "rank")
    # What is too large becomes infinite, and is refused below.
    with np.errstate(over="ignore"):
        columns = {
            name: np.array(entry["shown"][name], dtype=dtype) for name, dtype in _COLUMNS.items()
        }
    columns["boxes"] = columns["boxes"].reshape(-1, 4)
    if {column.shape[:1] for column in columns.values()} != {columns["labels"].shape}:
        raise ValueError("the columns of what was shown differ in length")
    if (columns["labels"] < 1).any() or not all(np.isfinite(c).all() for c in columns.values()):
        raise ValueError("what was shown has a bad number")
    if not _FILE_NAME.fullmatch(_typed(entry["file_name"], str)):
        raise ValueError(f"{json.dumps(entry['file_name'])} is no file name of a query")
    if min(_typed(entry[key], int) for key in whole) < 1:
        raise ValueError("a size or rank is below 1")
    return QueryImage(
        **{key: _typed(entry[key], str) for key in texts},
        **{key: entry[key] for key in whole},
        blind=_typed(entry["blind"], bool),
        shown=Prediction(**columns),
    )


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{value!r:.50} is no {kind.__name__}")
    return value
