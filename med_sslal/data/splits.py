"""Train, val and test by group: no patient is on two sides."""

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

from annotated_types import Interval, MinLen, Predicate, doc

from med_sslal.base.types import ImageInfo
from med_sslal.utils.errors import ConfigError, DataError
from med_sslal.utils.util import stable_hash

logger = logging.getLogger(__name__)

SPLIT_NAMES = ("train", "val", "test")


def _names_a_group(pattern: str) -> bool:
    try:
        return re.compile(pattern).groups > 0
    except re.error:
        return False


EvalSplit = Annotated[float, Interval(gt=0, lt=1)]
SplitFiles = Annotated[
    dict[str, str],
    Predicate(lambda files: files.keys() == set(SPLIT_NAMES)),
    doc(f"a file for each of {', '.join(SPLIT_NAMES)}"),
]
GroupPattern = Annotated[
    str,
    Predicate(_names_a_group),
    doc("a regular expression with a (group) for the patient, such as '^([^_]+)_'"),
]
# The user's own, and it may be a link to elsewhere, unlike what an annotation file names.
FolderInRoot = Annotated[
    str,
    Predicate(lambda name: not Path(name).is_absolute() and ".." not in Path(name).parts),
    doc("a folder in root"),
]
Classes = Annotated[
    list[str],
    MinLen(1),
    Predicate(lambda names: len(set(names)) == len(names)),
    doc("distinct names"),
]


def split_by_group(
    infos: Mapping[str, ImageInfo], eval_split: float, split_seed: int
) -> dict[str, tuple[str, ...]]:
    """Hold out a share of the GROUPS, half of it for validation and half for test.

    The result depends on the set of ids, `eval_split` and `split_seed`, not on any order: "train",
    "val" and "test" to sorted image ids, one group each at least. ConfigError where `eval_split`
    leaves no group to train on, DataError where there are fewer than three groups.
    """
    groups = sorted({info.group_id for info in infos.values()})
    if len(groups) < len(SPLIT_NAMES):
        raise DataError(
            f"the data has {len(groups)} group(s) (patients); a split into train, val and test "
            "needs three at least"
        )
    n_val = max(1, round(len(groups) * eval_split / 2))
    n_held = max(n_val + 1, round(len(groups) * eval_split))
    if n_held >= len(groups):
        raise ConfigError(
            f"dataset.args.eval_split {eval_split} holds out all {len(groups)} groups "
            "(patients): choose a smaller share"
        )
    # Sorted first, so that equal hashes cannot bring back the order of the input.
    drawn = sorted(groups, key=lambda group: stable_hash("split", split_seed, group))
    side = dict.fromkeys(drawn[:n_val], "val") | dict.fromkeys(drawn[n_val:n_held], "test")
    return splits_by(infos, lambda info: side.get(info.group_id, "train"))


def splits_by(
    infos: Mapping[str, ImageInfo], side: Callable[[ImageInfo], str]
) -> dict[str, tuple[str, ...]]:
    """Each split with the sorted ids of the images that `side` puts in it, which is logged."""
    splits = {
        name: tuple(image_id for image_id in sorted(infos) if side(infos[image_id]) == name)
        for name in SPLIT_NAMES
    }
    for name, ids in splits.items():
        # Groups are of very different size.
        groups = {infos[image_id].group_id for image_id in ids}
        logger.info("%s: %d image(s) of %d group(s)", name, len(ids), len(groups))
    return splits
