"""StudyConfig: which runs a study compares, checked as a whole before anything is run."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen

from med_sslal.config import jsonc
from med_sslal.config.overrides import Override
from med_sslal.config.parse_config import ConfigParser, Places
from med_sslal.config.resume import compare_for_resume
from med_sslal.config.schema import Name
from med_sslal.config.signature import wrong_members
from med_sslal.config.validate import Registries
from med_sslal.config.values import Key, describe, fits
from med_sslal.study.study_folder import RESERVED, SHARED
from med_sslal.utils.errors import ConfigError

# What arms may differ in: the strategy. Everything else must be the same for a fair comparison.
STRATEGY = ("al_settings.*", "ssl_settings.*", "pseudo_augmentation.*")
# What the pseudo-labels of a cycle, and what it learns from them, depend on.
_STUDENT = ("ssl_settings.", "pseudo_augmentation.")
# The one of them that a training on labels alone depends on.
_TAIL = "ssl_settings.tail"
# What a baseline, to train for as long as another arm, and the ceiling may differ in besides.
_LENGTH = "trainer.steps_per_cycle"
# Strategy that the training of cycle 0 depends on.
INITIAL = ("al_settings.args.init_num", "al_settings.args.initial")
_BUDGET = tuple(
    f"al_settings.args.{name}"
    for name in ("budget_num", "budget_unit", "seconds_per_image", "seconds_per_box")
)

Names = Annotated[list[str], MinLen(1)]
Seeds = Annotated[list[int], MinLen(1)]
STUDY_SCHEMA: tuple[Key, ...] = (
    Key("name", Name, "name of the study and of its folder", required=True),
    Key("config", str, "config that every run starts from; beside this file", required=True),
    Key("set", dict[str, Any], "changes to it for every run: dotted key to value", {}),
    Key("seeds", Seeds, "one run of every arm for each", required=True),
    Key("ceiling_seeds", Seeds | None, "those of them that the ceiling has; null: all", None),
    Key(
        "metrics",
        Names,
        "what is compared, columns of results.csv; the report draws the first",
        ["test_sens_mean"],
    ),
    Key("baselines", Names, "the arms that the others are held against", ["random"]),
    Key(
        "arms",
        Annotated[dict[str, dict[str, Any]], MinLen(1)],
        "arm to its changes (dotted key to value); the arm whose init_num is all is the ceiling",
        required=True,
    ),
    Key("save_dir", str, "folder that gets the study's folder", "exp_results"),
)


@dataclass(frozen=True)
class StudyConfig:
    """A checked study."""

    name: str
    folder: Path  # `save_dir/name`.
    seeds: tuple[int, ...]  # One run of every arm for each, but for the ceiling's.
    ceiling_seeds: tuple[int, ...]
    metrics: tuple[str, ...]  # Columns of a run's rows that are compared.
    baselines: tuple[str, ...]  # Arms that the others are held against.
    arms: Mapping[str, ConfigParser]  # With the first seed.
    source: str  # The file, for messages.
    base: Path  # The run config it starts from.
    changes: tuple[Override, ...]  # What every run changes in it.
    strategies: Mapping[str, tuple[Override, ...]]  # What each arm changes besides.
    registries: Registries

    @property
    def full(self) -> str | None:
        """The arm of full supervision, the ceiling; None without one."""
        return next((arm for arm, config in self.arms.items() if _is_full(config)), None)

    @property
    def sharing(self) -> tuple[str, ...]:
        """The arms that begin with one training: not the ceiling, nor students that forbid it."""
        first = self.run_config(SHARED, self.seeds[0])
        return tuple(
            arm
            for arm, own in self.arms.items()
            if arm != self.full and own.get(_LENGTH) == first.get(_LENGTH)
            if student_key(first, own) is None
        )

    @property
    def runs(self) -> tuple[tuple[str, int], ...]:
        """Arm and seed of every run, seed by seed, so that pairs get complete early."""
        full = self.full
        return tuple(
            (arm, seed)
            for seed in self.seeds
            for arm in self.arms
            if arm != full or seed in self.ceiling_seeds
        )

    def run_config(self, arm: str, seed: int) -> ConfigParser:
        """The config of one run; the arm `cycle0` is the training that the others share."""
        own = {"seed": seed, "name": arm, "trainer.save_dir": str(self.folder)}
        if arm == SHARED:
            own["al_settings.num_cycles"] = 0
        strategy = self.strategies.get(arm, ())
        changes = (*self.changes, *strategy, *_overrides(self.source, own))
        return ConfigParser.from_file(self.base, self.registries, changes)

    @classmethod
    def from_file(
        cls, path: Path, registries: Registries, overrides: Iterable[Override] = ()
    ) -> "StudyConfig":
        """Read and check a study; ConfigError, one line per problem, where something is wrong.

        The overrides, from the command line, are changes for every run.
        """
        content, source = _read(path), str(path)
        base = path.parent / content["config"]
        changes = (*_overrides(f"{source} set", content["set"]), *overrides)
        strategies = {
            arm: _overrides(f"{source} arms.{arm}", own) for arm, own in content["arms"].items()
        }
        problems = _wrong_names(source, content)
        arms: dict[str, ConfigParser] = {}
        for arm, own in strategies.items():
            try:
                arms[arm] = ConfigParser.from_file(base, registries, (*changes, *own))
            except ConfigError as error:
                problems += str(error).splitlines()
        study = cls(
            name=content["name"],
            folder=Path(content["save_dir"]) / content["name"],
            seeds=tuple(content["seeds"]),
            ceiling_seeds=tuple(content["ceiling_seeds"] or content["seeds"]),
            metrics=tuple(content["metrics"]),
            baselines=tuple(content["baselines"]),
            arms=arms,
            source=source,
            base=base,
            changes=changes,
            strategies=strategies,
            registries=registries,
        )
        if problems := [*problems, *_unfair(study)]:
            # What is wrong in all arms is told once.
            raise ConfigError("\n".join(dict.fromkeys(problems)))
        return study


def student_key(one: ConfigParser, other: ConfigParser) -> str | None:
    """The key that forbids `other` to begin with cycle 0 of `one`; None where no student does.

    Without pseudo-labels in either no such key matters; with them in `other` alone its supervised
    model is that of `one`.
    """
    if not has_student(one.resolved) and not has_student(other.resolved):
        return None
    free, warned, refused = compare_for_resume(one.resolved, other.resolved)
    keys = [key for key, *_ in (*free, *warned, *refused)]
    decisive = _STUDENT if has_student(one.resolved) else _TAIL
    return next((key for key in keys if key.startswith(decisive)), None)


def has_student(resolved: Mapping[str, Any]) -> bool:
    """Whether a run of this config has pseudo-labels."""
    return bool(resolved["ssl_settings"]["include_pseudolabels"])


def is_strategy(path: str) -> bool:
    """Whether arms may differ in a dotted key."""
    return any(fnmatchcase(path, pattern) for pattern in STRATEGY)


def _overrides(source: str, values: Mapping[str, Any]) -> tuple[Override, ...]:
    return tuple(Override(source, tuple(key.split(".")), value) for key, value in values.items())


def _is_full(config: ConfigParser) -> bool:
    return _get(config, "al_settings.args.init_num") == "all"


def _read(path: Path) -> dict[str, Any]:
    """The file's content with defaults; ConfigError unless every key is there and right."""
    document = jsonc.read(path, "study")
    given, places = document.value, Places(str(path), document)
    wrong = wrong_members(given, STUDY_SCHEMA)
    places.refuse(((name,), text, at_key) for name, text, at_key in wrong)
    return {key.name: given.get(key.name, copy.deepcopy(key.default)) for key in STUDY_SCHEMA}


def _wrong_names(source: str, content: Mapping[str, Any]) -> list[str]:
    """Sentences about names and seeds that do not fit each other."""
    arms, seeds = content["arms"], content["seeds"]
    problems = [
        f"{source} arms: '{arm}' cannot name an arm; allowed: {describe(Name)}, and not "
        f"{', '.join(RESERVED)}"
        for arm in arms
        if not fits(arm, Name) or arm in RESERVED
    ]
    there = ", ".join(arms)
    problems += [
        f"{source} baselines: there is no arm '{baseline}'; there are {there}"
        for baseline in content["baselines"]
        if baseline not in arms
    ]
    problems += [
        f"{source} {key}: found {content[key]}; allowed: different names"
        for key in ("metrics", "baselines")
        if len(set(content[key])) < len(content[key])
    ]
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        problems.append(f"{source} seeds: found {seeds}; allowed: different numbers from 0 on")
    if not set(ceiling := content["ceiling_seeds"] or seeds) <= set(seeds):
        problems.append(f"{source} ceiling_seeds: found {ceiling}; allowed: some of seeds, {seeds}")
    return problems


def _unfair(study: StudyConfig) -> list[str]:
    """Sentences about what would make the comparison unfair."""
    source, arms = study.source, study.arms
    full = [arm for arm, config in arms.items() if _is_full(config)]
    problems = [
        f"{source} arms.{arm}: {dotted} is no part of the strategy, and arms that differ in it "
        f"cannot be compared: put it into 'set' for all of them (allowed in an arm: "
        f"{', '.join(STRATEGY)})"
        for arm, own in study.strategies.items()
        for dotted in (".".join(override.path) for override in own)
        if not is_strategy(dotted) and dotted not in ("al_settings", "ssl_settings")
        if dotted != _LENGTH or arm not in (*study.baselines, *full)
    ]
    problems += [
        f"{source} baselines: '{baseline}' labels everything (init_num all) and has no curve: "
        "name another arm"
        for baseline in study.baselines
        if baseline in full
    ]
    if len(full) > 1:
        problems.append(
            f"{source} arms: {' and '.join(full)} both label everything (init_num all): keep one"
        )
    if any(config.get("oracle.type") == "human" for config in arms.values()):
        problems.append(f'{source}: oracle.type "human" waits for a person: a study cannot')
    if any(config.get("trainer.steps_per_cycle") is None for config in arms.values()):
        problems.append(
            f"{source}: trainer.steps_per_cycle is null, so that arms with more labels would train "
            "longer: set it in 'set'"
        )
    if any(config.get("trainer.early_stop") for config in arms.values()):
        problems.append(
            f"{source}: trainer.early_stop ends trainings at different steps: set it to 0 in 'set'"
        )
    if not full and study.ceiling_seeds != study.seeds:
        problems.append(f"{source} ceiling_seeds: no arm labels everything (init_num all)")
    for key in ("al_settings.num_cycles", "al_settings.args.restart", *INITIAL, *_BUDGET):
        values = {arm: _get(config, key) for arm, config in arms.items() if arm not in full}
        if values and key in INITIAL:
            # Cycle 0, which arms share, is trained without what they change.
            common = ConfigParser.from_file(study.base, study.registries, study.changes)
            values["'set'"] = _get(common, key)
        if len({repr(value) for value in values.values()}) > 1:
            shown = ", ".join(f"{arm} {value!r}" for arm, value in values.items())
            problems.append(f"{source} arms: {key} must be the same in all arms, found {shown}")
    return problems


def _get(config: ConfigParser, dotted: str) -> Any:
    """A value, None where the strategy class has no such argument."""
    try:
        return config.get(dotted)
    except KeyError:
        return None
