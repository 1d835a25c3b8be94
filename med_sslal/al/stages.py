"""The forms of `al_criterion`: from what the config holds to a built criterion and selector.

- `["entropy"]`: a criterion by name;
- `["entropy", "k_means_diversity"]`: and a second stage;
- `[{"type": "entropy", "args": {"aggregate": "max"}}]`: either of them with arguments;
- `[["entropy", {"type": "margin", "weight": 2}], "k_center"]`: several criteria, by their ranks.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from annotated_types import Gt

from med_sslal.al.al_criteria import find_criterion, find_selector
from med_sslal.al.criteria.base import Criterion
from med_sslal.al.criteria.combination import Combination, Part
from med_sslal.al.criteria.random import Random
from med_sslal.al.selectors.base import Selector
from med_sslal.al.selectors.top_k import TopK
from med_sslal.config.jsonc import KeyPath
from med_sslal.config.signature import convert_arguments, signature, wrong_arguments, wrong_members
from med_sslal.config.values import Key, found
from med_sslal.utils.errors import ConfigError

Stage = str | dict[str, Any]
Stages = Sequence[Stage | list[Stage]]
Problems = Iterator[tuple[KeyPath, str]]

_KEYS = (
    Key("type", str, "the name of a class", required=True),
    Key("args", dict[str, Any], "its arguments", {}),
    Key("weight", Annotated[float, Gt(0)], "its part in a combination", 1),
)


def check_stages(stages: Stages, defaults: Mapping[str, Any]) -> Problems:
    """Find everything that is wrong with `al_criterion`.

    `defaults` are arguments for every criterion of the first stage that takes them and has not its
    own; those that are None are left to the criterion.

    Yields:
        Path below `al_criterion`, and a sentence.
    """
    if not 1 <= len(stages) <= 2:
        text = "allowed: a criterion (or a list of criteria to combine), then optionally one second"
        yield (), f"found {len(stages)} stages; {text} stage"
        return
    first = stages[0]
    if isinstance(first, list):
        if len(first) < 2:
            text = "allowed: two criteria or more to combine"
            yield (0,), f"found {len(first)} in the list; {text}"
        for number, stage in enumerate(first):
            yield from _check_stage(stage, find_criterion, (0, number), defaults, in_list=True)
    else:
        yield from _check_stage(first, find_criterion, (0,), defaults)
    for second in stages[1:]:
        if isinstance(second, list):
            text = "allowed: one second stage, which cannot be combined"
            yield (1,), f"found {found(second)}; {text}"
        else:
            yield from _check_stage(second, find_selector, (1,), {})


def unused_defaults(
    firsts: Iterable[Stage | list[Stage]], defaults: Mapping[str, Any]
) -> list[str]:
    """Names of the `defaults` (None aside) that no criterion of any of these first stages takes."""
    parts = [_full(part) for first in firsts for part in _parts(first)]
    taken = {name for part in parts for name in signature(find_criterion(part["type"])).arguments}
    return [name for name, value in defaults.items() if value is not None and name not in taken]


def build_stages(
    stages: Stages, defaults: Mapping[str, Any], factor: float | Literal["auto"] | None
) -> tuple[Criterion, Selector, float | None]:
    """The criterion and the selector that checked stages name, `top_k` where there is no second.

    The `factor` is `candidate_factor` of the config; with them comes what it stands for.
    """
    criterion = _build_first(stages[0], defaults)
    selector: Selector = _build(stages[1], find_selector, {}) if len(stages) > 1 else TopK()
    drawn = type(criterion) is Random
    whole = {"never": False, "after random": drawn, "always": True}[selector.whole_pool]
    auto = None if whole else len(stages)
    return criterion, selector, auto if factor == "auto" else factor


def stage_names(stages: Stages) -> list[str]:
    """A short name for each stage: `entropy & 2 x margin`, `k_center`."""
    return [" & ".join(map(_part_name, _parts(stage))) for stage in stages]


def _parts(stage: Stage | list[Stage]) -> list[Stage]:
    """What is combined in a stage, or the stage alone."""
    return stage if isinstance(stage, list) else [stage]


def _full(stage: Stage) -> dict[str, Any]:
    """A stage in its long form."""
    return {"type": stage} if isinstance(stage, str) else stage


def _check_stage(
    stage: Stage,
    find: Callable[[str], type],
    at: KeyPath,
    defaults: Mapping[str, Any],
    *,
    in_list: bool = False,
) -> Problems:
    """What is wrong with one stage, or with one criterion of a combination."""
    full, at_type, at_args = _full(stage), at, at
    if isinstance(stage, dict):
        at_type, at_args = (*at, "type"), (*at, "args")
        for name, text, _ in wrong_members(stage, _KEYS):
            yield (*at, name), text
        if "weight" in stage and not in_list:
            text = "a weight is for criteria that are combined, in a list: leave it out"
            yield (*at, "weight"), text
        if not isinstance(full.get("type"), str):
            return
    try:
        cls = find(full["type"])
    except ConfigError as error:
        yield at_type, str(error)
        return
    if in_list and issubclass(cls, Random):
        text = f"{cls.name} cannot be part of a combination: it is a baseline, and stands alone"
        yield at_type, text
    if not isinstance(full.get("args", {}), dict):
        return
    wrong = wrong_arguments(cls, full.get("args", {}))
    for name, text, _ in wrong:
        yield (*at_args, name), text
    if not wrong:
        try:
            _build(stage, find, defaults)
        except ConfigError as error:
            yield at_args, str(error)


def _build(stage: Any, find: Callable[[str], Any], defaults: Mapping[str, Any]) -> Any:
    """One object, with the defaults that it takes and has not its own."""
    full = _full(stage)
    cls = find(full["type"])
    taken = signature(cls).arguments
    common = {name: v for name, v in defaults.items() if v is not None and name in taken}
    return cls(**convert_arguments(cls, {**common, **full.get("args", {})}))


def _build_first(first: Stage | list[Stage], defaults: Mapping[str, Any]) -> Criterion:
    """The criterion of the first stage, or the combination."""
    if not isinstance(first, list):
        criterion: Criterion = _build(first, find_criterion, defaults)
        return criterion
    criteria = [_build(part, find_criterion, defaults) for part in first]
    weights = [float(_full(part).get("weight", 1)) for part in first]
    names, seen = [], Counter[str]()
    for criterion in criteria:
        seen[criterion.name] += 1
        number = seen[criterion.name]
        names.append(criterion.name if number == 1 else f"{criterion.name}_{number}")
    return Combination(list(map(Part, names, criteria, weights)))


def _part_name(part: Stage) -> str:
    """A criterion of a combination with its weight, where it has one."""
    full = _full(part)
    name, weight = str(full.get("type")), full.get("weight", 1)
    return name if weight == 1 else f"{weight:g} x {name}"
