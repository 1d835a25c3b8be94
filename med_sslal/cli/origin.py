"""Where a stored pool record comes from: its run, its cycle, and whether it is really theirs."""

from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

from med_sslal.al.record import HEADER_FILE, PoolRecord
from med_sslal.base.base_dataset import BaseDataset
from med_sslal.base.checkpoint import load_checkpoint, weights_hash
from med_sslal.cli.build import build_dataset
from med_sslal.cli.registries import registries
from med_sslal.config.parse_config import ConfigParser
from med_sslal.config.values import show
from med_sslal.trainer.damage import telling_what_to_remove
from med_sslal.trainer.run_folder import CycleFolder, RunFolder, named_path
from med_sslal.utils.errors import DataError, UserError
from med_sslal.utils.util import read_json


class Origin(NamedTuple):
    """The folder of a record; the cycle of a run that it lies in, and the run's config, if any."""

    record: Path
    cycle: CycleFolder | None = None
    config: ConfigParser | None = None

    @property
    def number(self) -> int:
        """The number of the cycle, 0 outside of a run."""
        return 0 if self.cycle is None else self.cycle.number

    def open(self) -> PoolRecord:
        """The record; the error of a damaged one in a run says what to remove there."""
        with nullcontext() if self.cycle is None else telling_what_to_remove(self.cycle.run):
            record = PoolRecord.open(self.record)
        return record


def find_record(name: str) -> Origin:
    """Resolve a record, a cycle's folder, a run folder (its newest record) or the word `latest`."""
    named, where, run, cycle = _around(name)
    if cycle is not None and where == cycle.val_record:
        raise DataError(
            f"{named} is of the validation images, which nothing is chosen from: name "
            f"{cycle.record}, or look at them with --explain"
        )
    if run.exists:
        cycle = next((one for one in run.cycles()[::-1] if one.record.exists()), run.cycle(0))
        where = cycle.record
    if cycle is not None and (run.exists or cycle.path.is_dir()) and not cycle.record.exists():
        raise _dropped(named, cycle)
    inner = CycleFolder(where).record
    record = inner if inner.is_dir() else where
    if not record.is_dir():
        raise DataError(
            f"there is no pool record {named}: name a run folder, or the folder "
            f"cycle_NN/{inner.name} of a run, which holds {HEADER_FILE}"
        )
    return Origin(record) if cycle is None else Origin(record, cycle, _config(cycle.run))


def find_val_record(name: str) -> Origin:
    """The record of the validation images of a cycle: of a run folder the newest one.

    DataError where there is none, ConfigError where the run's config is not valid (any more).
    """
    named, _, run, cycle = _around(name)
    if run.exists:
        cycle = next((one for one in run.cycles()[::-1] if one.val_record.exists()), run.cycle(0))
    if cycle is None:
        raise DataError(
            f"{named} lies in no run, and only a run has validation images whose truth is known: "
            "name a run folder, or a folder in it"
        )
    if not cycle.val_record.exists():
        raise _dropped(named, cycle, "record of the validation images")
    return Origin(cycle.val_record, cycle, _config(cycle.run))


def _around(name: str) -> tuple[Path, Path, RunFolder, CycleFolder | None]:
    named = named_path(name)
    where = named.resolve()
    return named, where, RunFolder(where), CycleFolder.around(where)


def _config(run: RunFolder) -> ConfigParser:
    return ConfigParser(read_json(run.config), registries(), source=str(run.config))


def _dropped(named: Path, cycle: CycleFolder, what: str = "pool record") -> DataError:
    """The error for a cycle of a run that has no record (any more)."""
    config = read_json(cycle.run.config)
    if not config.get("al_settings", {}).get("num_cycles"):
        return DataError(
            f"{named} has no {what}: a run with al_settings.num_cycles 0 scores no pool"
        )
    if not cycle.queried:
        return DataError(
            f"{named} has no {what}, which is what a query is made from, and cycle {cycle.number} "
            "has made none (the last one never does): name another cycle"
        )
    keep = config.get("trainer", {}).get("keep_records")
    return DataError(
        f"{named} has no {what}: a run keeps the newest ones only, here trainer.keep_records "
        f"{show(keep)}; run with trainer.keep_records true to keep them all"
    )


def check_model(record: PoolRecord, origin: Origin) -> str | None:
    """Hold a record against the best checkpoint of its cycle; a sentence where there is none."""
    if origin.cycle is None:
        return "the record lies in no run: its data set and model are not checked"
    best = origin.cycle.best
    if not best.is_file():
        return f"there is no {best}: the record's data set and model are not checked"
    content = load_checkpoint(best, require_checksum=False)
    same = {
        "data set": content.get("images_fingerprint") == record.header.images_fingerprint,
        "model": weights_hash(content["model"]) == record.header.model_hash,
    }
    if wrong := [name for name, agrees in same.items() if not agrees]:
        raise DataError(
            f"record {record.path} is of another {' and '.join(wrong)} than {best}: put the run's "
            "own record back, or score the pool again"
        )
    return None


class NoImagesError(UserError):
    """Pictures cannot be made; the message says why."""


def find_dataset(record: PoolRecord, origin: Origin, instead: str) -> BaseDataset:
    """The data set of a record, by the config and the split of its run.

    NoImagesError where the images are not to be had, DataError where they are not those of the
    record; it ends with what can be done `instead`.
    """
    if origin.config is None or origin.cycle is None:
        raise NoImagesError("the record lies in no run, whose config says where the images are")
    root = origin.config["dataset"]["args"].get("root")
    # The phantom would be made where it is not.
    if root is not None and not Path(root).expanduser().exists():
        raise NoImagesError(f"there is no folder {root}, which is dataset.args.root of the run")
    try:
        split = origin.cycle.run.split
        dataset = build_dataset(origin.config, read_json(split) if split.exists() else None)
    except UserError as error:
        raise NoImagesError(str(error)) from error
    if dataset.images.fingerprint() != record.header.images_fingerprint:
        raise DataError(
            f"record {record.path} is of another data set than its run's config names now: images "
            f"or split differ; {instead}"
        )
    return dataset
