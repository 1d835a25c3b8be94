"""Strategies that follow each other in a run: what `al_settings.args.schedule` holds.

    [{"al_criterion": ["random", "typicality"], "until": {"val_sens_mean": 0.5}},
     {"al_criterion": ["entropy"]}]

An entry is in use until the model of a cycle reaches every value of its `until`; the entry after it
then chooses in that cycle already. None that was left comes back.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from med_sslal.al.stages import Problems, Stage, check_stages, stage_names
from med_sslal.base.types import ScheduleEntry
from med_sslal.config.signature import wrong_members
from med_sslal.config.values import Key

Until = Mapping[str, float]

_KEYS = (
    Key("al_criterion", list[Stage | list[Stage]], "what it chooses by", required=True),
    Key("until", dict[str, float], "validation metrics that end it, and from which value on"),
)


def check_schedule(schedule: Sequence[Mapping[str, Any]], defaults: Mapping[str, Any]) -> Problems:
    """Find everything that is wrong with a schedule, but for the names of metrics.

    The `defaults` are those of `check_stages`.

    Yields:
        Path below `schedule`, and a sentence.
    """
    if not schedule:
        yield (), "found an empty list; allowed: one entry or more, such as [{al_criterion}]"
    for number, entry in enumerate(schedule):
        wrong = {name: text for name, text, _ in wrong_members(entry, _KEYS)}
        if number == len(schedule) - 1:
            if entry.get("until") is not None:
                wrong["until"] = "the last entry has none, as nothing follows it: leave it out"
        elif not entry.get("until") and "until" not in wrong:
            text = "it is missing, and without it the next entry is never reached"
            wrong["until"] = f'{text}: name a metric, such as {{"val_sens_mean": 0.5}}'
        for name, text in wrong.items():
            yield (number, name), text
        if "al_criterion" in entry and "al_criterion" not in wrong:
            for at, text in check_stages(entry["al_criterion"], defaults):
                yield (number, "al_criterion", *at), text


def strategy_name(args: Mapping[str, Any]) -> str:
    """The criteria of a config's `al_settings.args` in order of use, "" where it names none.

    Example:
        >>> strategy_name({"al_criterion": ["entropy", "k_center"]})
        'entropy + k_center'
        >>> first = {"al_criterion": ["random"], "until": {"val_AP50": 0.5}}
        >>> strategy_name({"schedule": [first, {"al_criterion": ["entropy"]}]})
        'random until val_AP50 >= 0.5, then entropy'
    """
    names = []
    for entry in args.get("schedule") or [args]:
        ends = [f"{name} >= {end:g}" for name, end in (entry.get("until") or {}).items()]
        until = f" until {' and '.join(ends)}" if ends else ""
        names.append(" + ".join(stage_names(entry.get("al_criterion") or [])) + until)
    return ", then ".join(names)


def in_use(
    untils: Sequence[Until], metrics: Sequence[Mapping[str, float | None]]
) -> tuple[int, ScheduleEntry | None]:
    """The place of the entry that chooses, and which one that is and why; None where it is alone.

    The `metrics` are the validation metrics by name of every cycle's model, the newest last; of a
    cycle that is not known nothing is reached.

    Example:
        >>> untils = [{"val_AP50": 0.5}, {"val_AP50": 0.7}, {}]
        >>> in_use(untils, [{"val_AP50": 0.6}, {"val_AP50": 0.4}])[1].reason
        'val_AP50 0.6 >= 0.5 after cycle 0; val_AP50 0.4 < 0.7'
    """
    place, last, left, lacks = 0, len(untils) - 1, "", _unmet(untils[0], {})
    for cycle, values in enumerate(metrics):
        while place < last:
            lacks = _unmet(untils[place], values)
            if lacks:
                break
            met = (f"{name} {values[name]:g} >= {end:g}" for name, end in untils[place].items())
            left = f"{' and '.join(met)} after cycle {cycle}"
            place += 1
    if not last:
        return 0, None
    words = [left, " and ".join(lacks)]
    return place, ScheduleEntry(place + 1, len(untils), "; ".join(filter(None, words)))


def _unmet(until: Until, values: Mapping[str, float | None]) -> list[str]:
    """Each part of a rule that does not hold, in words."""
    found = {name: values.get(name) for name in until}
    return [
        f"{name} is not known" if value is None else f"{name} {value:g} < {until[name]:g}"
        for name, value in found.items()
        if value is None or not value >= until[name]
    ]
