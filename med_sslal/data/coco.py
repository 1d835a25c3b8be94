"""COCO: one JSON file for all images, or one per split; read and written."""

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from med_sslal.base.base_dataset import BaseDataset, Images, Labels
from med_sslal.base.types import ImageInfo
from med_sslal.data.bad_samples import BadSamples, OnBadSample
from med_sslal.data.pictures import (
    BoxRecord,
    PictureImages,
    Window,
    make_labels,
    make_splits,
    picture_size,
)
from med_sslal.data.splits import Classes, EvalSplit, FolderInRoot, SplitFiles
from med_sslal.logger.progress import track
from med_sslal.utils.errors import ConfigError, DataError
from med_sslal.utils.names import unknown
from med_sslal.utils.util import inside, read_json, write_json


class COCO(BaseDataset):
    """Annotations in COCO's detection format, pictures (PNG, JPEG or TIFF) in a folder.

    The image id is `file_name` without its ending, because the numbers in the file change when it
    is written anew. `bbox` is (x, y, width, height) in continuous coordinates. `iscrowd` boxes
    become ignore regions. An image without any box is a valid negative.

    Args:
        root: Folder of the data.
        annotations: JSON file in root; or one each for train, val and test, instead of
            eval_split.
        images: Folder in root that `file_name` starts from.
        classes: Class names in order of their labels; null takes the file's categories in
            order of their ids.
        eval_split: Share of groups held out, half for validation and half for test.
        split_seed: Seed of the split.
        group_key: Field of an image's entry that names its patient. null: every image by
            itself.
        window: Lowest and highest value of 16-bit grey pixels, mapped to 0 and 1; null: all
            pictures have 8 bits.
        on_bad_sample: "error" lists all bad files and boxes; "skip" leaves them out.
    """

    def __init__(
        self,
        root: str,
        *,
        annotations: str | SplitFiles,
        images: FolderInRoot = "images",
        classes: Classes | None = None,
        eval_split: EvalSplit = 0.2,
        split_seed: int = 0,
        group_key: str | None = None,
        window: Window | None = None,
        on_bad_sample: OnBadSample = "error",
    ) -> None:
        folder, pictures = Path(root), Path(root) / images
        if not pictures.is_dir():
            gone = pictures if folder.is_dir() else folder
            raise DataError(
                f"no COCO data at {root}: folder {gone} does not exist; set dataset.args.root and "
                "dataset.args.images"
            )

        def find(entry: dict[str, Any], name: str, where: str) -> ImageInfo:
            file = inside(pictures, name)
            plain = PurePosixPath(name.replace("\\", "/"))
            # Two names of one picture would be two images, in two splits perhaps.
            if ".." in plain.parts:
                raise DataError(f"{where}: file_name '{name}' must not contain '..'")
            size, image_id = picture_size(file, window), plain.with_suffix("").as_posix()
            group = entry.get(group_key) if group_key else image_id
            if group is None or group == "":
                raise DataError(f"{where}: it has no '{group_key}' (dataset.args.group_key)")
            return ImageInfo(image_id, str(group), file.relative_to(folder).as_posix(), size)

        bad = BadSamples(on_bad_sample, str(folder))
        names: dict[str, None] = {}
        infos: dict[str, ImageInfo] = {}
        records: dict[str, list[BoxRecord]] = {}
        lists: dict[str, list[str]] = {}
        files = annotations if isinstance(annotations, dict) else {"all": annotations}
        for split, name in files.items():
            path = inside(folder, name)
            class_names, found, boxes = load_coco(
                path, read_json(path), find, bad, infos, group_key
            )
            names |= dict.fromkeys(class_names)
            lists[split] = list(found)
            infos |= found
            records |= boxes
        labels = make_labels(records, list(names) if classes is None else classes, infos, bad)
        bad.finish()
        given = lists if files is annotations else None
        splits = make_splits(infos, given, eval_split, split_seed)
        super().__init__(PictureImages(folder, infos, splits, window), labels)


def load_coco(
    path: Path,
    document: Any,
    find: Callable[[dict[str, Any], str, str], ImageInfo],
    bad: BadSamples,
    known: dict[str, ImageInfo] | None = None,
    group_key: str | None = None,
) -> tuple[list[str], dict[str, ImageInfo], dict[str, list[BoxRecord]]]:
    """Read the `document` of a COCO file; `bad` notes images and boxes that are wrong.

    `find` is called with an image's entry, its `file_name`, and where both stand; it gives the
    image, or raises DataError. `known` are images of other files, whose ids may not come again.
    Returns class names in order of their ids, the images, and the boxes of each; DataError where it
    is no such file, ConfigError where no entry of an image has the field `group_key`.
    """
    for key in ("images", "annotations", "categories"):
        part = document.get(key) if isinstance(document, dict) else None
        if not isinstance(part, list) or not all(isinstance(entry, dict) for entry in part):
            raise DataError(f"{path} is no COCO file: it needs a list of objects '{key}'")
    categories = _categories(path, document["categories"])
    by_number: dict[int, ImageInfo] = {}
    infos: dict[str, ImageInfo] = {}
    listed = document["images"]
    fields = dict.fromkeys(name for entry in listed for name in entry)
    if group_key and listed and group_key not in fields:
        wrong = unknown("field", group_key, fields)
        raise ConfigError(f"dataset.args.group_key: {wrong} (of the images in {path})")
    for position, entry in enumerate(track(listed, f"checking {path.name}", len(listed))):
        where = f"{path}, images[{position}]"
        with bad.noted():
            number, name = entry.get("id"), entry.get("file_name")
            if not isinstance(number, int) or not isinstance(name, str):
                raise DataError(f"{where}: it needs an id (whole number) and a file_name (text)")
            info = find(entry, name, where)
            height, width = info.orig_size
            # Some tools write null, or 0.
            told = (entry.get("height") or height, entry.get("width") or width)
            if told != info.orig_size:
                found = f"{info.file_name} has {width}x{height}"
                raise DataError(
                    f"{where}: it is said to be {told[1]}x{told[0]} pixels, but {found}"
                )
            if info.image_id in infos or info.image_id in (known or {}):
                raise DataError(
                    f"{where}: a second image '{info.image_id}' (file_name without its ending "
                    "must be unique, over all splits)"
                )
            if number in by_number:
                raise DataError(f"{where}: a second image with id {number}")
            infos[info.image_id] = by_number[number] = info
    records: dict[str, list[BoxRecord]] = {image_id: [] for image_id in infos}
    skipped = {str(entry.get("id")) for entry in document["images"]} - set(map(str, by_number))
    for entry in document["annotations"]:
        number, where = entry.get("image_id"), f"{path}, annotation {entry.get('id')}"
        # The boxes of an image that was skipped go with it.
        if str(number) in skipped:
            continue
        with bad.noted():
            if not isinstance(number, int) or number not in by_number:
                raise DataError(f"{where}: there is no image with id {number}")
            records[by_number[number].image_id].append(_record(entry, categories, where))
    return list(categories.values()), infos, records


def _categories(path: Path, entries: list[dict[str, Any]]) -> dict[int, str]:
    """Id to name, in order of the ids."""
    categories: dict[int, str] = {}
    for entry in entries:
        number, name = entry.get("id"), entry.get("name")
        if not isinstance(number, int) or not isinstance(name, str):
            raise DataError(f"{path}: a category needs an id and a name, found {entry}")
        if number in categories or name in categories.values():
            raise DataError(f"{path}: two categories have one id or name, found {entry}")
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{path}: the class {name!r} is not UTF-8: rename it") from error
        categories[number] = name
    return dict(sorted(categories.items()))


def save_coco(path: Path, images: Images, labels: Labels, *, folder: str = ".") -> None:
    """Write the labelled images and their labels as a COCO file, which `COCO` reads back.

    The patient is written as `group_id`, which `group_key` can name; file names start from
    `folder` below the data root. UserError where the file cannot be written.
    """
    document: dict[str, list[dict[str, Any]]] = {
        "images": [],
        "annotations": [],
        "categories": [
            {"id": number, "name": name} for number, name in enumerate(labels.class_names, start=1)
        ],
    }
    for number, (image_id, label) in enumerate(sorted(labels.annotations.items()), start=1):
        info = images.infos[image_id]
        document["images"].append(
            {
                "id": number,
                "file_name": PurePosixPath(info.file_name).relative_to(folder).as_posix(),
                "height": info.orig_size[0],
                "width": info.orig_size[1],
                "group_id": info.group_id,
            }
        )
        columns = (label.boxes.tolist(), label.labels.tolist(), label.ignore.tolist())
        for (x1, y1, x2, y2), category, crowd in zip(*columns, strict=True):
            document["annotations"].append(
                {
                    "id": len(document["annotations"]) + 1,
                    "image_id": number,
                    "category_id": category,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(crowd),
                }
            )
    write_json(path, document)


def _record(entry: dict[str, Any], categories: dict[int, str], where: str) -> BoxRecord:
    number: Any = entry.get("category_id")
    box: Any = entry.get("bbox")
    attributes = entry.get("attributes")
    if isinstance(attributes, dict) and attributes.get("rotation", 0) != 0:
        raise DataError(f"{where}: box is rotated: draw it upright")
    if not isinstance(number, int) or number not in categories:
        raise DataError(f"{where}: unknown category_id {number}")
    try:
        x, y, width, height = (float(value + 0) for value in box)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: bbox must be [x, y, width, height], found {box}") from error
    except OverflowError as error:
        raise DataError(f"{where}: bbox has a number that no image is as large as") from error
    if width <= 0 or height <= 0:
        raise DataError(f"{where}: bbox {box} has no area ([x, y, width, height] is expected)")
    corners = (x, y, x + width, y + height)
    return BoxRecord(where, categories[number], corners, bool(entry.get("iscrowd", 0)))
