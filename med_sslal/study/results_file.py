"""The outcomes of a study's finished runs in one small file, which outlives their folders."""

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from med_sslal.al.selection_io import read_selection
from med_sslal.study.settings_hash import settings_hash
from med_sslal.trainer.run_folder import RunFolder
from med_sslal.utils.errors import DataError, UserError
from med_sslal.utils.util import atomic_write, read_json, read_versioned

FORMAT_VERSION = 1
DECIMALS = 6
"""Numbers are kept to so many decimals, with and without such a file."""

_MACHINE = ("commit", "torch", "cpu", "cpu_capability", "gpu")
_CYCLE = ("query", "seconds", "finds")

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Outcome:
    """What one finished run gave."""

    config_hash: str  # Of `settings_hash`.
    machine: Mapping[str, Any]  # Names of _MACHINE, None where not known.
    rows: Rows  # A row of the run's summary for each cycle.
    # For each cycle the ids of its `query`, `seconds` by stage, and `finds` (what the criterion
    # found on validation), where the run has them.
    cycles: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any] | None = None  # `decisive` ones; the first files have none.

    @classmethod
    def of(cls, run: RunFolder, settings: Mapping[str, Any]) -> "Outcome":
        """Read a finished run of these `decisive` settings; DataError where a file is damaged."""
        found = read_json(run.environment) if run.environment.exists() else {}
        machine = dict.fromkeys(_MACHINE) | {name: found.get(name) for name in _MACHINE}
        machine["torch"] = found.get("packages", {}).get("torch")
        rows = _rounded(run.read_summary()["cycles"])
        cycles = [_cycle(run, row["cycle"]) for row in rows]
        return cls(settings_hash(settings), machine, rows, cycles, settings)


class ResultsFile:
    """A file of outcomes, that of an arm and seed once; others of it are kept as they are.

    Raises:
        DataError: The file, which need not exist yet, is damaged, another one, or too new.
        UserError: There is no folder to write it into.
    """

    def __init__(self, path: Path) -> None:
        if not path.parent.is_dir():
            raise UserError(f"there is no folder {path.parent} for the results file")
        self.path = path
        self.outcomes = _read(self.path)

    def add(self, arm: str, seed: int, outcome: Outcome) -> None:
        """Write the outcome of a run into the file, with all that others wrote meanwhile."""
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            # Other processes that add to a file of this folder wait.
            fcntl.flock(folder, fcntl.LOCK_EX)
            self.outcomes = _read(self.path) | {(arm, seed): outcome}
            atomic_write(self.path, _text(self.outcomes).encode())
        finally:
            os.close(folder)


def mixed_machines(outcomes: Mapping[tuple[str, int], Outcome]) -> list[str]:
    """A sentence for each seed whose runs were made on more than one kind of processor."""
    kinds: dict[int, dict[str, list[str]]] = {}
    for (arm, seed), outcome in outcomes.items():
        machine = outcome.machine
        kind = machine["gpu"] or f"{machine['cpu']} ({machine['cpu_capability']})"
        kinds.setdefault(seed, {}).setdefault(kind, []).append(arm)
    return [
        f"The runs of seed {seed} were made on {len(own)} kinds of processor, so that its arms "
        "differ by that too: "
        + "; ".join(f"{kind}: {', '.join(arms)}" for kind, arms in own.items())
        + "."
        for seed, own in sorted(kinds.items())
        if len(own) > 1
    ]


def _cycle(run: RunFolder, number: int) -> dict[str, Any]:
    """Query, seconds and finds of one cycle, those that are there."""
    folder = run.cycle(number)
    cycle: dict[str, Any] = {}
    if folder.selection.exists():
        cycle["query"] = list(read_selection(folder.selection).image_ids)
    seconds = read_json(folder.timing)["seconds"] if folder.timing.exists() else {}
    if folder.training.exists():
        seconds = {"train": read_json(folder.training)["seconds"], **seconds}
    cycle["seconds"] = {name: round(value, 1) for name, value in seconds.items()}
    if folder.finds.exists():
        cycle["finds"] = _rounded(read_json(folder.finds))
    return cycle


def _rounded(value: Any) -> Any:
    """The same JSON with its numbers as the file keeps them."""
    return json.loads(json.dumps(value), parse_float=lambda text: round(float(text), DECIMALS))


def _text(outcomes: Mapping[tuple[str, int], Outcome]) -> str:
    """The file: sorted, a line for each run and one for each of its cycles."""
    runs = []
    for (arm, seed), outcome in sorted(outcomes.items()):
        columns = list(dict.fromkeys(name for row in outcome.rows for name in row))
        head = {"arm": arm, "seed": seed, "config_hash": outcome.config_hash}
        head |= outcome.machine
        head |= {} if outcome.settings is None else {"settings": outcome.settings}
        head["columns"] = columns
        cycles = [
            f"   {_line({'row': [row.get(name) for name in columns], **cycle})}"
            for row, cycle in zip(outcome.rows, outcome.cycles, strict=True)
        ]
        runs.append("  " + _line(head)[:-1] + ', "cycles": [\n' + ",\n".join(cycles) + "\n  ]}")
    listed = ",\n".join(runs)
    return f'{{\n "format_version": {FORMAT_VERSION},\n "runs": [\n{listed}\n ]\n}}\n'


def _line(content: Mapping[str, Any]) -> str:
    return json.dumps(content, allow_nan=False, ensure_ascii=False)


def _read(path: Path) -> dict[tuple[str, int], Outcome]:
    """What `_text` wrote, nothing where there is no file; DataError where it is something else."""
    if not path.exists():
        return {}
    content = read_versioned(path, FORMAT_VERSION)
    outcomes: dict[tuple[str, int], Outcome] = {}
    try:
        for run in content["runs"]:
            key = (run["arm"], run["seed"])
            if not (isinstance(key[0], str) and type(key[1]) is int) or key in outcomes:
                raise ValueError(f"{key} is no arm and seed, or there twice")
            rows = [dict(zip(run["columns"], one["row"], strict=True)) for one in run["cycles"]]
            if not rows or any(type(row["cycle"]) is not int for row in rows):
                raise ValueError(f"{key[0]}/s{key[1]} has no cycles")
            cycles = [{name: one[name] for name in _CYCLE if name in one} for one in run["cycles"]]
            machine = {name: run[name] for name in _MACHINE}
            config_hash, settings = str(run["config_hash"]), run.get("settings")
            if settings is not None and settings_hash(dict(settings)) != config_hash:
                raise ValueError(f"the settings of {key[0]}/s{key[1]} are not those of its hash")
            outcomes[key] = Outcome(config_hash, machine, rows, cycles, settings)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path} is no file of a study's results: {error!r}") from error
    return outcomes
