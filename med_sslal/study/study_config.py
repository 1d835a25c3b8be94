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
from med_sslal.config.parse_config import ConfigParser
from med_sslal.config.schema import Name
from med_sslal.config.validate import Registries
from med_sslal.config.values import Key, describe, fits
from med_sslal.study.study_folder import RESERVED, SHARED
from med_sslal.utils.errors import ConfigError
from med_sslal.utils.names import nearest

# What arms may differ in: the strategy. Everything else must be the same for a fair comparison.
STRATEGY = ("al_settings.*", "ssl_settings.*", "pseudo_augmentation.*")
# Strategy that the training of cycle 0 depends on.
INITIAL = ("al_settings.args.init_num", "al_settings.args.initial")

STUDY_SCHEMA: tuple[Key, ...] = (
    Key("name", Name, "name of the study and of its folder", required=True),
    Key("config", str, "config that every run starts from; beside this file", required=True),
    Key("set", dict[str, Any], "changes to it for every run: dotted key to value", {}),
    Key("seeds", Annotated[list[int], MinLen(1)], "one run of every arm for each", required=True),
    Key("metric", str, "what is compared: a column of results.csv", "test_sens_mean"),
    Key("baseline", str, "the arm that the others are held against", "random"),
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
    """A checked study.

    Attributes:
        name: Of the study and its folder.
        folder: `save_dir/name`.
        seeds: One run of every arm for each.
        metric: Column of a run's rows that is compared.
        baseline: Name of the arm that the others are held against.
        arms: Arm to its config with the first seed.
        source: The file, for messages.
        base: The run config it starts from.
        changes: What every run changes in it.
        strategies: What each arm changes besides.
    """

    name: str
    folder: Path
    seeds: tuple[int, ...]
    metric: str
    baseline: str
    arms: Mapping[str, ConfigParser]
    source: str
    base: Path
    changes: tuple[Override, ...]
    strategies: Mapping[str, tuple[Override, ...]]

    @property
    def full(self) -> str | None:
        """The arm of full supervision, the ceiling; None without one."""
        found = [
            name
            for name, config in self.arms.items()
            if config.get("al_settings.args.init_num") == "all"
        ]
        return found[0] if found else None

    def run_config(self, arm: str, seed: int, registries: Registries) -> ConfigParser:
        """The config of one run.

        Args:
            arm: Its arm, or `cycle0` for the training that the arms share.
            seed: Its seed.
            registries: As for ConfigParser.
        """
        own: tuple[Override, ...] = self.strategies.get(arm, ())
        if arm == SHARED:
            own = (_override(self.source, "al_settings.num_cycles", 0),)
        return ConfigParser.from_file(
            self.base,
            registries,
            (
                *self.changes,
                *own,
                _override(self.source, "seed", seed),
                _override(self.source, "name", arm),
                _override(self.source, "trainer.save_dir", str(self.folder)),
            ),
        )

    @classmethod
    def from_file(
        cls, path: Path, registries: Registries, overrides: Iterable[Override] = ()
    ) -> "StudyConfig":
        """Read and check a study.

        Args:
            path: A file of JSON with comments.
            registries: As for ConfigParser.
            overrides: Changes for every run, from the command line.

        Raises:
            ConfigError: Something is wrong; the text has one line per problem.
        """
        content = _read(path)
        source = str(path)
        base = path.parent / content["config"]
        changes = (
            *(_override(f"{source} set", key, value) for key, value in content["set"].items()),
            *overrides,
        )
        strategies = {
            arm: tuple(
                _override(f"{source} arms.{arm}", key, value) for key, value in settings.items()
            )
            for arm, settings in content["arms"].items()
        }
        problems = _check_names(source, content)
        arms: dict[str, ConfigParser] = {}
        for arm, own in strategies.items():
            try:
                arms[arm] = ConfigParser.from_file(base, registries, (*changes, *own))
            except ConfigError as error:
                problems += str(error).splitlines()
        problems += _check_fairness(source, arms, strategies)
        if problems:
            raise ConfigError("\n".join(dict.fromkeys(problems)))
        return cls(
            name=content["name"],
            folder=Path(content["save_dir"]) / content["name"],
            seeds=tuple(content["seeds"]),
            metric=content["metric"],
            baseline=content["baseline"],
            arms=arms,
            source=source,
            base=base,
            changes=changes,
            strategies=strategies,
        )


def is_strategy(path: str) -> bool:
    """Whether arms may differ in a dotted key."""
    return any(fnmatchcase(path, pattern) for pattern in STRATEGY)


def _override(source: str, dotted: str, value: Any) -> Override:
    return Override(source, tuple(dotted.split(".")), value)


def _read(path: Path) -> dict[str, Any]:
    """The file's content with defaults; every key there and of the right type.

    Raises:
        ConfigError: It is not.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the study {path}: {error}") from error
    document = jsonc.parse(text, str(path))
    if not isinstance(document.value, dict):
        raise ConfigError(f'{path}:1:1 a study is an object, "{{...}}", at the top')
    known = {key.name: key for key in STUDY_SCHEMA}
    problems, content = [], copy.deepcopy(document.value)
    for at, (line, column) in document.duplicates:
        problems.append(
            f"{path}:{line}:{column} {'.'.join(map(str, at))}: this key was given before"
        )
    for name, value in document.value.items():
        line, column = document.keys[(name,)]
        place = f"{path}:{line}:{column} {name}"
        if name not in known:
            close = nearest(name, known)
            hint = f"Did you mean '{close}'?" if close else f"allowed: {', '.join(known)}"
            problems.append(f"{place}: unknown key. {hint}")
        elif message := known[name].problem(value):
            problems.append(f"{place}: {message}")
    for key in STUDY_SCHEMA:
        if key.name not in content:
            if key.required:
                problems.append(f"{path} {key.name}: required key is missing ({key.meaning})")
            content[key.name] = copy.deepcopy(key.default)
    if problems:
        raise ConfigError("\n".join(problems))
    return content


def _check_names(source: str, content: Mapping[str, Any]) -> list[str]:
    """Sentences about names and seeds that do not fit each other."""
    problems, arms = [], content["arms"]
    for arm in arms:
        if not fits(arm, Name) or arm in RESERVED:
            problems.append(
                f"{source} arms: '{arm}' cannot name an arm; allowed: {describe(Name)}, and not "
                f"{', '.join(RESERVED)}"
            )
    if content["baseline"] not in arms:
        problems.append(
            f"{source} baseline: there is no arm '{content['baseline']}'; there are "
            f"{', '.join(arms)}"
        )
    seeds = content["seeds"]
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        problems.append(f"{source} seeds: found {seeds}; allowed: different numbers from 0 on")
    return problems


def _check_fairness(
    source: str, arms: Mapping[str, ConfigParser], strategies: Mapping[str, tuple[Override, ...]]
) -> list[str]:
    """Sentences about what would make the comparison unfair."""
    problems = []
    for arm, own in strategies.items():
        for override in own:
            dotted = ".".join(override.path)
            if not is_strategy(dotted) and dotted not in ("al_settings", "ssl_settings"):
                problems.append(
                    f"{source} arms.{arm}: {dotted} is no part of the strategy, and arms that "
                    f"differ in it cannot be compared: put it into 'set' for all of them "
                    f"(allowed in an arm: {', '.join(STRATEGY)})"
                )
    full = [arm for arm, c in arms.items() if c.get("al_settings.args.init_num") == "all"]
    if len(full) > 1:
        problems.append(
            f"{source} arms: {' and '.join(full)} both label everything (init_num all): keep one"
        )
    if any(config.get("trainer.steps_per_cycle") is None for config in arms.values()):
        problems.append(
            f"{source}: trainer.steps_per_cycle is null, so that arms with more labels would train "
            "longer: set it in 'set'"
        )
    if any(config.get("trainer.early_stop") for config in arms.values()):
        problems.append(
            f"{source}: trainer.early_stop ends trainings at different steps: set it to 0 in 'set'"
        )
    curves = {arm: config for arm, config in arms.items() if arm not in full}
    budget = ("budget_num", "budget_unit", "seconds_per_image", "seconds_per_box")
    keys = ("al_settings.num_cycles", *INITIAL, *(f"al_settings.args.{name}" for name in budget))
    for key in keys:
        values = {arm: _get(config, key) for arm, config in curves.items()}
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
