"""Rules of a query, whatever rates and selects: how many of a patient, no adjacent slices."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from med_sslal.base.types import ImageInfo
from med_sslal.utils.errors import ConfigError

# A series and the index of a slice in it.
Position = tuple[str, int]


def check_pool(init_num: int, budget_num: int, pool_size: int) -> None:
    """Refuse, with a ConfigError, an initial set and first query that the pool cannot fill."""
    if init_num + budget_num > pool_size:
        raise ConfigError(
            f"al_settings.args: init_num {init_num} + budget_num {budget_num} is more than the "
            f"{pool_size} images of the pool: lower them"
        )


def check_groups(group_ids: Iterable[str], budget: int, max_per_group: int | None) -> None:
    """Refuse, with a ConfigError, a cap per patient that leaves fewer images than the budget."""
    if max_per_group is None:
        return
    sizes = Counter(group_ids)
    n_images = sum(min(size, max_per_group) for size in sizes.values())
    if n_images < budget:
        raise ConfigError(
            f"al_settings.args.max_per_group {max_per_group} leaves {n_images} images of "
            f"{len(sizes)} patients, fewer than the budget of {budget}: raise it, or lower "
            f"budget_num to at most {n_images}"
        )


def cap_groups(ranking: np.ndarray, group_ids: np.ndarray, max_per_group: int | None) -> np.ndarray:
    """The best rows of each patient, so that whatever is chosen among them keeps the cap.

    `ranking` has rows from best to worst, and so has the answer: int64 [K].

    Example:
        >>> cap_groups(np.array([2, 0, 1]), np.array(["a", "b", "a"]), 1).tolist()
        [2, 1]
    """
    if max_per_group is None:
        return ranking
    return ranking[places_in_groups(ranking, group_ids, ()) < max_per_group]


def groups_of(image_ids: Iterable[str], infos: Mapping[str, ImageInfo]) -> list[str]:
    """The patients of labelled images, which must be known to spread what is labelled over them."""
    strangers = [image_id for image_id in image_ids if image_id not in infos]
    if strangers:
        raise ConfigError(
            f"al_settings.args.spread_groups needs the patient of each labelled image, and that of "
            f"{len(strangers)} is not known, the first is {strangers[0]}: set it to false"
        )
    return [infos[image_id].group_id for image_id in image_ids]


def places_in_groups(
    ranking: np.ndarray, group_ids: np.ndarray, labelled: Iterable[str]
) -> np.ndarray:
    """How many images of its patient are `labelled`, or better, of each row of a ranking: int64.

    Example:
        >>> groups = np.array(["a", "b", "a"])
        >>> places_in_groups(np.array([2, 0, 1]), groups, ["b", "c", "b"]).tolist()
        [0, 1, 2]
    """
    seen, places = Counter(labelled), []
    for group in group_ids[ranking].tolist():
        places.append(seen[group])
        seen[group] += 1
    return np.array(places, dtype=np.int64)


def slice_positions(infos: Mapping[str, ImageInfo]) -> dict[str, Position]:
    """Image id to series and slice index, of the images that have both."""
    return {
        image_id: (info.series_id, info.slice_index)
        for image_id, info in infos.items()
        if info.series_id is not None and info.slice_index is not None
    }


def check_positions(
    image_ids: Iterable[str], positions: Mapping[str, Position], suppress_adjacent: int | None
) -> None:
    """Refuse, with a ConfigError, to suppress adjacent slices where an image has no position."""
    if suppress_adjacent is None:
        return
    strangers = [image_id for image_id in image_ids if image_id not in positions]
    if strangers:
        raise ConfigError(
            f"al_settings.args.suppress_adjacent is {suppress_adjacent}, but the place of "
            f"{len(strangers)} image(s) in a series of slices is not known, the first is "
            f"{strangers[0]}: set it to null, or have the data set fill series_id and slice_index "
            "of ImageInfo (DeepLesion and its phantom do)"
        )


def part_adjacent(
    ranking: np.ndarray,
    image_ids: Sequence[str],
    positions: Mapping[str, Position],
    labelled: Iterable[str],
    distance: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Part slices of which no two are close from those that are close to a better or labelled one.

    Two slices of one series are close up to this `distance` of their indices. `ranking` has rows of
    `image_ids` from best to worst, and so have both answers.

    Example:
        >>> places = {"a": ("x", 3), "b": ("x", 5), "c": ("y", 4), "d": ("x", 6)}
        >>> parts = part_adjacent(np.array([1, 0, 2]), ["a", "b", "c"], places, ["d"], 2)
        >>> [part.tolist() for part in parts]
        [[0, 2], [1]]
    """
    taken: defaultdict[str, list[int]] = defaultdict(list)
    for image_id in labelled:
        series, index = positions[image_id]
        taken[series].append(index)
    free = []
    for row in ranking.tolist():
        series, index = positions[image_ids[row]]
        free.append(all(abs(index - other) > distance for other in taken[series]))
        if free[-1]:
            taken[series].append(index)
    is_free = np.array(free, dtype=bool)
    return ranking[is_free], ranking[~is_free]
