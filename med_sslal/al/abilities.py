"""Whether a detector gives what a strategy reads, asked before anything is trained."""

from collections.abc import Collection, Iterable

from med_sslal.al.criteria.base import Criterion
from med_sslal.al.criteria.combination import Combination
from med_sslal.al.selectors.base import Selector
from med_sslal.al.views import parse_views


def missing_abilities(
    criterion: Criterion, selector: Selector, given: Collection[str]
) -> list[tuple[str, str]]:
    """What a detector lacks for a query.

    Args:
        criterion: The first stage.
        selector: The second stage.
        given: Keys of `base_model.ABILITIES` that the detector has.

    Returns:
        (name of the criterion or second stage, missing key) for each gap.

    Raises:
        ConfigError: A view is asked for that does not exist.
    """
    return [
        (stage.name, need)
        for stage in _stages(criterion, selector)
        for need in _needs(stage)
        if need not in given
    ]


def _stages(
    criterion: Criterion, selector: Selector
) -> Iterable[Criterion | type[Criterion] | Selector]:
    """Everything that reads the record."""
    if isinstance(criterion, Combination):
        yield from (part.criterion for part in criterion.parts)
    else:
        yield criterion
    yield selector
    yield from selector.criteria


def _needs(stage: Criterion | type[Criterion] | Selector) -> list[str]:
    """What a stage declares, and what its views and RoI features imply."""
    needs = [*stage.needs, *(("roi_features",) if stage.needs_roi_features else ())]
    needs += ["views" if view.is_full else view.kind for view in parse_views(stage.views)]
    return list(dict.fromkeys(needs))
