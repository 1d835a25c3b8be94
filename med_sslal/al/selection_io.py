"""selection.json: what a query took and why, with the value of every image it could have taken."""

from pathlib import Path

from med_sslal.al.record import RecordHeader
from med_sslal.base.types import Selected, Selection
from med_sslal.utils.errors import DataError
from med_sslal.utils.util import read_json, write_json

FORMAT_VERSION = 1


def write_selection(path: Path, selection: Selection, cycle: int, header: RecordHeader) -> None:
    """Write a selection atomically.

    Args:
        path: The JSON file.
        selection: What the query took.
        cycle: The cycle whose model scored the pool.
        header: Header of the record that was queried.

    Raises:
        UserError: The file cannot be written.
    """
    content = {
        "format_version": FORMAT_VERSION,
        "cycle": cycle,
        "seed": selection.seed,
        "criteria": list(selection.criteria),
        "box_count_bias": selection.box_count_bias,
        "model_hash": header.model_hash,
        "config_hash": header.config_hash,
        "image_ids": list(selection.image_ids),
        "images": [
            {
                "image_id": item.image_id,
                "rank": item.rank,
                "group_id": item.group_id,
                "values": dict(item.values),
                "reason": item.reason,
            }
            for item in selection.items
        ],
        "scores": {name: dict(values) for name, values in selection.scores.items()},
    }
    write_json(path, content)


def read_selection(path: Path) -> Selection:
    """Read what `write_selection` wrote.

    Raises:
        DataError: The file is missing, damaged, or written by a newer version.
    """
    content = read_json(path)
    try:
        if content["format_version"] > FORMAT_VERSION:
            raise DataError(
                f"{path} has format version {content['format_version']}, this program reads up to "
                f"{FORMAT_VERSION}: update the program"
            )
        return Selection(
            items=tuple(Selected(**item) for item in content["images"]),
            scores=content["scores"],
            criteria=tuple(content["criteria"]),
            seed=content["seed"],
            # Files of the first runs have none.
            box_count_bias=content.get("box_count_bias"),
        )
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is no selection: {error}") from error
