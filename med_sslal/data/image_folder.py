"""A folder of pictures, with labels of all, some or none of them."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from med_sslal.base.base_dataset import BaseDataset, Labels
from med_sslal.base.types import ImageInfo
from med_sslal.data.bad_samples import BadSamples, OnBadSample
from med_sslal.data.coco import load_coco
from med_sslal.data.dicom import is_dicom, open_dicom
from med_sslal.data.pictures import (
    PictureImages,
    Window,
    find_pictures,
    make_labels,
    no_picture,
    read_infos,
)
from med_sslal.data.splits import (
    SPLIT_NAMES,
    Classes,
    EvalSplit,
    GroupPattern,
    split_by_group,
    splits_by,
)
from med_sslal.logger.progress import track
from med_sslal.utils.errors import DataError
from med_sslal.utils.util import inside, read_json


class ImageFolder(BaseDataset):
    """Every PNG, JPEG, TIFF and DICOM file below a folder, however deep; hidden ones are not.

    The image id is the path below the folder without its ending; that of a DICOM image, its patient
    and its file name are pseudonyms. The images that a COCO file names are labelled, those without
    a box there as confirmed empty. val and test are drawn from the groups (patients) all of whose
    images are labelled; everything else is the pool.
    """

    def __init__(
        self,
        root: str,
        *,
        labels: str | None = None,
        classes: Classes | None = None,
        group_pattern: GroupPattern | None = None,
        window: Window | None = None,
        dicom_key: str | None = None,
        eval_split: EvalSplit = 0.2,
        split_seed: int = 0,
        on_bad_sample: OnBadSample = "error",
    ) -> None:
        """List the pictures, check that they are whole, and read the labels.

        Args:
            root: The folder.
            labels: COCO file in root, whose `file_name` starts from root; null: no image has a
                label.
            classes: Class names in order of their labels; null takes the file's categories in
                order of their ids.
            group_pattern: Regular expression searched in the image id; its first group is the
                patient. null: every image by itself.
            window: Lowest and highest value of 16-bit grey pixels, mapped to 0 and 1, after slope
                and intercept in DICOM; null: all pictures have 8 bits, or DICOM's own window.
            dicom_key: File that keeps the key of the names of DICOM images; it is made.
            eval_split: Share of the wholly labelled groups held out, half for validation and half
                for test.
            split_seed: Seed of the split.
            on_bad_sample: "error" lists all bad files and boxes; "skip" leaves them out.
        """
        folder = Path(root)
        bad = BadSamples(on_bad_sample, str(folder))
        key = "dataset.args.root"
        images = open_pictures(folder, key, bad, group_pattern, window, dicom_key)
        infos = images.infos
        known = Labels(tuple(classes or ()), {})
        if labels is not None:
            by_name = {info.file_name: info for info in infos.values()}
            # Where a DICOM file is one image, its own name stands for it too.
            n_frames = Counter(frame.path for frame in images.frames.values())
            for image_id, frame in images.frames.items():
                if n_frames[frame.path] == 1:
                    by_name[frame.path.relative_to(folder).as_posix()] = infos[image_id]

            def find(entry: dict[str, Any], name: str, where: str) -> ImageInfo:
                plain = PurePosixPath(name).as_posix()
                if plain in by_name:
                    return by_name[plain]
                try:
                    why = "is bad itself" if inside(folder, name).is_file() else "is not there"
                except DataError as error:
                    if not images.frames:
                        raise
                    raise DataError(f"{where}: its picture leads out of {folder}") from error
                # The name of a DICOM file may say whose it is.
                what = "its picture" if images.frames else f"the picture {name}"
                raise DataError(f"{where}: {what} in {folder} {why}")

            path = inside(folder, labels)
            names, _, records = load_coco(path, read_json(path), find, bad)
            known = make_labels(records, names if classes is None else classes, infos, bad)
        bad.finish()
        splits = _split(infos, known, eval_split, split_seed)
        images = images.with_splits(splits)
        images.split_from_labels = True
        super().__init__(images, known)


def open_pictures(
    folder: Path,
    key: str,
    bad: BadSamples,
    group_pattern: str | None = None,
    window: Window | None = None,
    dicom_key: str | None = None,
    *,
    endings: bool = False,
) -> PictureImages:
    """All pictures below a folder that are whole, in no split; `bad` has the others.

    `endings` is as of `find_pictures`; DataError where there is no file (`key` names the folder).
    """
    pictures, others = find_pictures(folder, endings=endings)
    dicom = [path for path in others if is_dicom(path)]
    if not pictures and not dicom:
        raise no_picture(folder, key)
    listed = track(pictures.items(), f"headers of {folder}", len(pictures))
    infos, frames = read_infos(folder, listed, group_pattern, bad, window), {}
    if dicom:
        listed_too = track(dicom, f"DICOM headers of {folder}", len(dicom))
        found = open_dicom(folder, listed_too, dicom_key, group_pattern, bad, window)
        infos |= {image_id: info for image_id, (info, _) in found.items()}
        frames = {image_id: frame for image_id, (_, frame) in found.items()}
    return PictureImages(folder, infos, {}, window, frames)


def _split(
    infos: Mapping[str, ImageInfo], labels: Labels, eval_split: float, split_seed: int
) -> dict[str, tuple[str, ...]]:
    """Val and test from wholly labelled groups, all other images in train."""
    if not labels.annotations:
        return splits_by(infos, lambda info: "train")
    in_part = {info.group_id for name, info in infos.items() if name not in labels.annotations}
    whole = {name: info for name, info in infos.items() if info.group_id not in in_part}
    if len({info.group_id for info in whole.values()}) < len(SPLIT_NAMES):
        raise DataError(
            f"dataset.args.labels: {len(labels.annotations)} of {len(infos)} images have a label, "
            "but fewer than 3 patients have one on all of their images: validation and test need "
            "one each, and training one; label more, or give no labels at all"
        )
    drawn = split_by_group(whole, eval_split, split_seed)
    held_out = {image_id: name for name in ("val", "test") for image_id in drawn[name]}
    return splits_by(infos, lambda info: held_out.get(info.image_id, "train"))
