"""COCO: one JSON file for all images, or one per split."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from med_sslal.base.base_dataset import BaseDataset, Labels
from med_sslal.base.types import ImageInfo
from med_sslal.data.bad_samples import BadSamples, OnBadSample
from med_sslal.data.pictures import (
    BoxRecord,
    PictureImages,
    class_labels,
    given_splits,
    make_annotation,
    picture_size,
)
from med_sslal.data.splits import Classes, EvalSplit, SplitFiles, split_by_group
from med_sslal.utils.errors import DataError
from med_sslal.utils.util import inside, read_json


class COCO(BaseDataset):
    """Annotations in COCO's detection format, pictures of 8 bits (PNG or JPEG) in a folder.

    The image id is `file_name` without its ending, because the numbers in the file change when it
    is written anew. `bbox` is (x, y, width, height) in continuous coordinates. `iscrowd` boxes
    become ignore regions. An image without any box is a valid negative.
    """

    def __init__(
        self,
        root: str,
        *,
        annotations: str | SplitFiles,
        images: str = "images",
        classes: Classes | None = None,
        eval_split: EvalSplit = 0.2,
        split_seed: int = 0,
        group_key: str | None = None,
        on_bad_sample: OnBadSample = "error",
    ) -> None:
        """Read all annotations and check that the image files are whole.

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
            on_bad_sample: "error" lists all bad files and boxes; "skip" leaves them out.

        Raises:
            ConfigError: An argument is wrong.
            DataError: A file is missing or is no COCO file, or something is bad and
                on_bad_sample is "error".
        """
        self.root = Path(root)
        self._folder = inside(self.root, images)
        self._group_key = group_key
        files = annotations if isinstance(annotations, dict) else {"all": annotations}
        if not self._folder.is_dir():
            gone = self._folder if self.root.is_dir() else self.root
            raise DataError(
                f"no COCO data at {root}: folder {gone} does not exist; set dataset.args.root and "
                "dataset.args.images"
            )
        bad = BadSamples(on_bad_sample, str(self.root))
        names: list[str] = []
        infos: dict[str, ImageInfo] = {}
        records: dict[str, list[BoxRecord]] = {}
        lists: dict[str, list[str]] = {}
        for split, name in files.items():
            path = inside(self.root, name)
            document = _document(path)
            categories = _categories(document["categories"], path)
            names += [each for each in categories.values() if each not in names]
            by_number = self._read_images(document["images"], path, infos, bad)
            lists[split] = list(by_number.values())
            records |= _read_boxes(document, path, categories, by_number, bad)

        labels = class_labels(names if classes is None else classes)
        made = {
            image_id: make_annotation(records[image_id], labels, info.orig_size, bad)
            for image_id, info in sorted(infos.items())
        }
        bad.finish()
        splits = (
            given_splits(infos, lists)
            if isinstance(annotations, dict)
            else split_by_group(infos, eval_split, split_seed)
        )
        super().__init__(PictureImages(self.root, infos, splits), Labels(tuple(labels), made))

    def _read_images(
        self,
        entries: Sequence[dict[str, Any]],
        path: Path,
        infos: dict[str, ImageInfo],
        bad: BadSamples,
    ) -> dict[int, str]:
        """Add the images of one file to `infos`; return the file's number to image id."""
        by_number: dict[int, str] = {}
        for position, entry in enumerate(entries):
            where = f"{path}, images[{position}]"
            try:
                info = self._image(entry, where)
                if info.image_id in infos:
                    raise DataError(
                        f"{where}: a second image '{info.image_id}' (file_name without its ending "
                        "must be unique, over all splits)"
                    )
                if entry["id"] in by_number:
                    raise DataError(f"{where}: a second image with id {entry['id']}")
            except DataError as error:
                bad.add(error)
                continue
            infos[info.image_id] = info
            by_number[entry["id"]] = info.image_id
        return by_number

    def _image(self, entry: dict[str, Any], where: str) -> ImageInfo:
        """Check one image's entry and file."""
        number, name = entry.get("id"), entry.get("file_name")
        if not isinstance(number, int) or not isinstance(name, str):
            raise DataError(f"{where}: it needs an id (whole number) and a file_name (text)")
        file = inside(self._folder, name)
        size = picture_size(file)
        told = (entry.get("height", size[0]), entry.get("width", size[1]))
        if told != size:
            raise DataError(
                f"{where}: it is said to have {told[1]}x{told[0]} pixels, but {file} has "
                f"{size[1]}x{size[0]}"
            )
        image_id = PurePosixPath(name.replace("\\", "/")).with_suffix("").as_posix()
        group = entry.get(self._group_key) if self._group_key else image_id
        if group is None or group == "":
            raise DataError(f"{where}: it has no '{self._group_key}' (group_key)")
        relative = file.relative_to(self.root).as_posix()
        return ImageInfo(image_id, str(group), relative, size)


def _document(path: Path) -> dict[str, Any]:
    """Read a COCO file and check its frame."""
    document = read_json(path)
    for key in ("images", "annotations", "categories"):
        part = document.get(key) if isinstance(document, dict) else None
        if not isinstance(part, list) or not all(isinstance(entry, dict) for entry in part):
            raise DataError(f"{path} is no COCO file: it needs a list of objects '{key}'")
    return document


def _categories(entries: Sequence[dict[str, Any]], path: Path) -> dict[int, str]:
    """Category id to class name, by id."""
    categories: dict[int, str] = {}
    for entry in entries:
        number, name = entry.get("id"), entry.get("name")
        if not isinstance(number, int) or not isinstance(name, str) or number in categories:
            raise DataError(f"{path}: a category needs an id of its own and a name, found {entry}")
        categories[number] = name
    if len(set(categories.values())) < len(categories):
        raise DataError(f"{path}: two categories have one name")
    return dict(sorted(categories.items()))


def _read_boxes(
    document: dict[str, Any],
    path: Path,
    categories: dict[int, str],
    by_number: dict[int, str],
    bad: BadSamples,
) -> dict[str, list[BoxRecord]]:
    """Image id to the boxes of one file; bad entries go to `bad`."""
    records: dict[str, list[BoxRecord]] = {image_id: [] for image_id in by_number.values()}
    skipped = {str(entry.get("id")) for entry in document["images"]} - set(map(str, by_number))
    for entry in document["annotations"]:
        number, where = entry.get("image_id"), f"{path}, annotation {entry.get('id')}"
        # The boxes of an image that was skipped go with it.
        if str(number) in skipped:
            continue
        try:
            if not isinstance(number, int) or number not in by_number:
                raise DataError(f"{where}: there is no image with id {number}")
            records[by_number[number]].append(_record(entry, categories, where))
        except DataError as error:
            bad.add(error)
    return records


def _record(entry: dict[str, Any], categories: dict[int, str], where: str) -> BoxRecord:
    """Read one annotation; raise DataError where it is incomplete."""
    number, box = entry.get("category_id"), entry.get("bbox")
    if not isinstance(number, int) or number not in categories:
        raise DataError(f"{where}: unknown category_id {number}")
    if (
        not isinstance(box, list)
        or len(box) != 4
        or not all(isinstance(value, int | float) for value in box)
    ):
        raise DataError(f"{where}: bbox must be [x, y, width, height], found {box}")
    x, y, width, height = box
    if width <= 0 or height <= 0:
        raise DataError(f"{where}: bbox {box} has no area ([x, y, width, height] is expected)")
    corners = (x, y, x + width, y + height)
    return BoxRecord(where, categories[number], corners, bool(entry.get("iscrowd", 0)))
