"""A first config for an own folder of images: how its labels are kept, and a text that trains."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from med_sslal.base.base_dataset import BaseDataset
from med_sslal.data.dicom import is_dicom
from med_sslal.data.pictures import find_pictures, no_picture
from med_sslal.data.splits import SPLIT_NAMES
from med_sslal.utils.errors import DataError
from med_sslal.utils.util import read_json

# Fields of an image's entry that name its patient, best first.
GROUP_KEYS = ("patient", "patient_id", "group_id", "subject", "series", "series_id", "study_id")
# In an image's path: the folder of a patient, or what stands before the first of these signs.
GROUP_PATTERNS = ("^([^/]+)/", "^([^_/]+)_", "^([^-/]+)-")
# So few groups are no patients, and leave nothing to split.
FEWEST_GROUPS = 6
_COCO_KEYS = ("images", "annotations", "categories")
_STEPS = 300


@dataclass(frozen=True)
class Form:
    """The section `dataset` for a folder, and what was concluded on the way."""

    type: str
    args: Mapping[str, Any]
    notes: tuple[str, ...]  # sentences for the config's comments
    has_dicom: bool = False


def find_form(folder: Path, dicom_key: Path | None) -> Form:
    """Find pictures and labels below a folder: COCO files, Pascal VOC's XML, or none.

    `dicom_key` keeps the names of DICOM images. DataError where there is no picture, a JSON file is
    damaged, or it is not clear which counts.
    """
    pictures, others = find_pictures(folder)
    has_dicom = any(map(is_dicom, others))
    if not pictures and not has_dicom:
        raise no_picture(folder, "--images")
    key = str(dicom_key) if has_dicom and dicom_key else None
    names = {path.relative_to(folder).as_posix() for path in pictures.values()}
    args: dict[str, Any] = {"root": str(folder), "dicom_key": key}
    by_header = "the patient of a DICOM image is that of its header"
    files = _coco_files(folder)
    if files and has_dicom and len(files) == 1:
        labels = next(iter(files)).relative_to(folder).as_posix()
        return Form("ImageFolder", {**args, "labels": labels}, (by_header,), has_dicom)
    if files:
        return _coco(folder, names, files)
    xml = next(iter(sorted([*folder.glob("*.xml"), *folder.glob("*/*.xml")])), None)
    if xml is not None and pictures:
        return _voc(folder, names, xml.parent)
    pattern, note = (None, by_header) if has_dicom else _guess_pattern(list(pictures))
    args |= {"classes": ["object"], "group_pattern": pattern}
    hint = (
        "no labels were found: name a COCO file in root as labels when there is one, and the "
        "classes; training needs labels of three patients at least"
    )
    return Form("ImageFolder", args, (hint, note), has_dicom)


def _coco_files(folder: Path) -> dict[Path, dict[str, Any]]:
    """The COCO files in a folder and the folders right in it; their content."""
    found = {}
    for path in sorted([*folder.glob("*.json"), *folder.glob("*/*.json")]):
        content = read_json(path)
        if isinstance(content, dict) and all(isinstance(content.get(k), list) for k in _COCO_KEYS):
            found[path] = content
    return found


def _coco(folder: Path, names: set[str], files: Mapping[Path, dict[str, Any]]) -> Form:
    splits = {path.stem: path.relative_to(folder).as_posix() for path in files}
    entries = [e for content in files.values() for e in content["images"] if isinstance(e, dict)]
    listed = {str(entry.get("file_name")) for entry in entries}
    base = _base(names, listed)
    key = next((k for k in GROUP_KEYS if entries and all(e.get(k) for e in entries)), None)
    args: dict[str, Any] = {"root": str(folder)}
    given = len(files) == 3 and splits.keys() == set(SPLIT_NAMES)
    if not given and len(files) > 1:
        several = ", ".join(path.relative_to(folder).as_posix() for path in files)
        raise DataError(
            f"{folder} has several COCO files ({several}): leave one, or call three of them "
            "train.json, val.json and test.json"
        )
    left = len(names - {f"{base}{name}" for name in listed})
    by_field = f"the patient is the field '{key}' of an image's entry"
    if given or base or (key and not left):
        args |= {"annotations": splits if given else next(iter(splits.values()))}
        args |= {"images": base.rstrip("/") or ".", "group_key": key}
        notes = [by_field if key else _nobody("group_key")]
        if left:
            notes.append(f"{left} pictures are in no annotation file and take no part")
        return Form("COCO", args, tuple(notes))
    pattern, note = _guess_pattern([_stem(name) for name in names])
    args |= {"labels": next(iter(splits.values())), "group_pattern": pattern}
    return Form("ImageFolder", args, (note,))


def _base(names: set[str], listed: set[str]) -> str:
    """The folder, "" or with a slash, that the listed files lie in: where most of them do."""
    found = Counter({"": len(names & listed)})
    for name in names:
        first, slash, rest = name.partition("/")
        found[first + slash if slash else ""] += bool(slash) and rest in listed
    return max(sorted(found), key=lambda base: found[base])


def _voc(folder: Path, names: set[str], annotations: Path) -> Form:
    stems = {path.stem for path in annotations.glob("*.xml")}
    folders: dict[str, int] = {}
    for name in names:
        path = PurePosixPath(name)
        where = path.parent.as_posix()
        folders[where] = folders.get(where, 0) + (path.stem in stems)
    images = max(sorted(folders), key=lambda where: folders[where])
    args: dict[str, Any] = {
        "root": str(folder),
        "annotations": annotations.relative_to(folder).as_posix(),
        "images": images,
    }
    lists = {name: f"{name}.txt" for name in SPLIT_NAMES}
    if all((folder / "ImageSets" / "Main" / name).is_file() for name in lists.values()):
        args |= {"split_lists": lists}
    pattern, note = _guess_pattern(sorted(stems))
    args |= {"group_pattern": pattern}
    return Form("PascalVOC", args, (note,))


def _stem(name: str) -> str:
    return PurePosixPath(name).with_suffix("").as_posix()


def _guess_pattern(ids: Sequence[str]) -> tuple[str | None, str]:
    """A pattern that finds the patient in each image id and puts several images together, if any.

    Too coarse a guess only makes the split coarser; a missed patient would be on both sides of it.
    """
    for pattern in GROUP_PATTERNS:
        found = [re.search(pattern, image_id) for image_id in ids]
        groups = {match.group(1) for match in found if match}
        if all(found) and FEWEST_GROUPS <= len(groups) < len(ids) and not groups & {*SPLIT_NAMES}:
            return pattern, f"a guess: {len(groups)} patients by their images' names"
    return None, _nobody("group_pattern")


def _nobody(key: str) -> str:
    return f"no patient was found, so each image stands by itself: set {key} where one has several"


def strategy(data: BaseDataset, batch_size: int) -> dict[str, Any]:
    """Numbers of the first set, a batch at least, and of the queries that the pool can feed."""
    pool = data.images.splits["train"]
    n_labelled = sum(image_id in data.labels.annotations for image_id in pool)
    if n_labelled < len(pool):
        return {"num_cycles": 0, "init_num": "labelled", "budget_num": 20}
    first = min(len(pool), max(batch_size, min(40, len(pool) // 4)))
    budget = max(1, first // 2)
    queries = min(3, (len(pool) - first) // budget)
    return {"num_cycles": queries, "init_num": first, "budget_num": budget}


def config_text(
    name: str,
    form: Form,
    data: BaseDataset,
    *,
    image_size: Any,
    batch_size: int,
    anchor_sizes: Sequence[Sequence[int]] | None,
) -> str:
    """A commented config for a data set that a form describes."""
    classes = data.labels.class_names
    args = {"type": form.type, "args": {k: v for k, v in form.args.items() if v is not None}}
    cycles = strategy(data, batch_size)
    values: dict[str, Any] = {
        "name": name,
        "image_size": image_size,
        "batch_size": batch_size,
        "norm": "batch" if batch_size >= 8 else "group",
        "num_classes": len(classes) + 1,
        "anchor_sizes": anchor_sizes,
        "steps": _STEPS,
        **cycles,
    }
    parts = {key: json.dumps(value, ensure_ascii=False) for key, value in values.items()}
    dataset = json.dumps(args, indent=4, ensure_ascii=False).replace("\n", "\n    ")
    remarks = [f"{len(data.images.infos)} images; classes: {', '.join(classes)}", *form.notes]
    if cycles["init_num"] == "labelled":
        remarks.append(
            "what has a label is trained on, and no query is made: num_cycles is 0; with "
            '"oracle": {"type": "human"} a person is asked (docs/practice.md)'
        )
    comments = "".join(f"    // {' '.join(remark.split())}\n" for remark in remarks)
    return _TEXT.format(**parts, dataset=dataset, comments=comments)


_TEXT = """{{
    // A first config, made from the images. Every key: python -m med_sslal train --help-config
    "name": {name},

    "n_gpu": "auto",            // a GPU if there is one, else the CPU
    "seed": 0,
    "n_workers": 2,
    "batch_size": {batch_size},            // labelled images of a step
    "image_size": {image_size},          // one side, or [height, width]

    "arch": {{
        "type": "FasterRCNN",
        "args": {{
            "backbone_name": "resnet18",
            "fpn": true,
            "fpn_channels": 64,         // 256 where time allows
            "pretrained": false,        // true downloads ImageNet's weights: better with few labels
            "norm": {norm},
            "num_classes": {num_classes},           // with background
            // In pixels of image_size, finest level first.
            "anchor_sizes": {anchor_sizes},
            "rpn_pre_nms_top_n_train": 1000,
            "rpn_post_nms_top_n_train": 500,
            "rpn_pre_nms_top_n_test": 200,
            "rpn_post_nms_top_n_test": 100,
            "box_batch_size_per_image": 64,
            "box_head_size": 256
        }}
    }},

{comments}    "dataset": {dataset},

    "augmentation": {{
        "type": "TrainTransform",
        "args": {{}}            // mirror false where the side matters
    }},

    "optimizer": {{
        "type": "AdamW",
        "args": {{
            "lr": 1e-3,
            "weight_decay": 1e-4
        }}
    }},

    "metrics": ["sensitivity_k_fps", "coco_ap"],

    "lr_scheduler": {{
        "type": "OneCycleLR",
        "args": {{
            "max_lr": 1e-3,
            "total_steps": {steps}
        }},
        "interval": "step"
    }},

    "al_settings": {{
        "num_cycles": {num_cycles},
        "type": "ActiveLearningHelper",
        "args": {{
            "init_num": {init_num},         // labels before the first query
            "budget_num": {budget_num},     // labels added per cycle
            "al_criterion": [["box_self_consistency", "entropy"], "k_means_diversity"],
            "spread_groups": true           // patients without a label come first
        }}
    }},

    "ssl_settings": {{
        "include_pseudolabels": false
    }},

    "trainer": {{
        "steps_per_cycle": {steps},     // of a first try; with total_steps above
        "val_steps": 100,
        "save_dir": "exp_results",
        "save_period": 1000,
        "verbosity": 2,
        "monitor": "max val_AP50",
        "early_stop": 0,
        "grad_clip": 10.0,
        "tensorboard": false
    }}
}}
"""
