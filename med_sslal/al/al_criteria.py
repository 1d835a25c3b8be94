"""The registries of criteria and selectors, and how a name of the config finds its class."""

import inspect
from collections.abc import Mapping
from typing import Any

from med_sslal.al.criteria.base import Criterion
from med_sslal.al.criteria.box_self_consistency import BoxSelfConsistency
from med_sslal.al.criteria.cald_consistency import CaldConsistency
from med_sslal.al.criteria.class_difficulty_entropy import ClassDifficultyEntropy
from med_sslal.al.criteria.ensemble_disagreement import EnsembleDisagreement
from med_sslal.al.criteria.entropy import Entropy
from med_sslal.al.criteria.flip_consistency import FlipConsistency
from med_sslal.al.criteria.foreground_random import ForegroundRandom
from med_sslal.al.criteria.localization_stability import LocalizationStability
from med_sslal.al.criteria.localization_tightness import LocalizationTightness
from med_sslal.al.criteria.margin import Margin
from med_sslal.al.criteria.prediction_uncertainty import PredictionUncertainty
from med_sslal.al.criteria.random import Random
from med_sslal.al.criteria.representativeness import Representativeness
from med_sslal.al.criteria.unexplained_objectness import UnexplainedObjectness
from med_sslal.al.selectors.base import Selector
from med_sslal.al.selectors.class_balance import ClassBalance
from med_sslal.al.selectors.class_conditional_similarity import ClassConditionalSimilarity
from med_sslal.al.selectors.greedy_box_cost import GreedyBoxCost
from med_sslal.al.selectors.k_center import KCenter
from med_sslal.al.selectors.k_means_diversity import KMeansDiversity
from med_sslal.al.selectors.k_means_plus_plus import KMeansPlusPlus
from med_sslal.al.selectors.representativeness import MostRepresentative
from med_sslal.al.selectors.score_draw import ScoreDraw
from med_sslal.al.selectors.top_k import TopK
from med_sslal.al.selectors.typicality import Typicality
from med_sslal.config.signature import load_class
from med_sslal.utils.errors import ConfigError
from med_sslal.utils.names import unknown

CRITERIA: Mapping[str, type[Criterion]] = {
    cls.name: cls
    for cls in (
        Random,
        ForegroundRandom,
        PredictionUncertainty,
        Entropy,
        Margin,
        ClassDifficultyEntropy,
        LocalizationTightness,
        BoxSelfConsistency,
        LocalizationStability,
        FlipConsistency,
        CaldConsistency,
        EnsembleDisagreement,
        UnexplainedObjectness,
        Representativeness,
    )
}
SELECTORS: Mapping[str, type[Selector]] = {
    cls.name: cls
    for cls in (
        TopK,
        KMeansDiversity,
        KMeansPlusPlus,
        KCenter,
        Typicality,
        ClassConditionalSimilarity,
        ClassBalance,
        ScoreDraw,
        GreedyBoxCost,
        MostRepresentative,
    )
}


def find_criterion(name: str) -> type[Criterion]:
    """The class of a first stage: a name of CRITERIA, or a user's own `package.module.Class`.

    ConfigError where there is none.
    """
    if name in SELECTORS and name not in CRITERIA:
        raise ConfigError(
            f"'{name}' is a second stage and needs a criterion before it: {', '.join(CRITERIA)}"
        )
    return _find(name, "criterion", CRITERIA, Criterion)


def find_selector(name: str) -> type[Selector]:
    """The class of a second stage: a name of SELECTORS, or a user's own `package.module.Class`.

    ConfigError where there is none.
    """
    if name in CRITERIA and name not in SELECTORS:
        raise ConfigError(
            f"'{name}' is a criterion, and stands in the first place, in a list with others to "
            f"combine them; allowed as second stage: {', '.join(SELECTORS)}"
        )
    return _find(name, "second stage", SELECTORS, Selector)


def describe(registry: Mapping[str, type]) -> dict[str, str]:
    """Name to the first line of the class's docstring."""
    return {name: (inspect.getdoc(cls) or "").split("\n")[0] for name, cls in registry.items()}


def _find(name: str, what: str, registry: Mapping[str, Any], base: type) -> Any:
    """Look a name up in a registry, or import a dotted path and check that it is a `base`."""
    if name in registry:
        return registry[name]
    if "." not in name:
        raise ConfigError(f"{unknown(what, name, list(registry))}, or your own package.Class")
    cls = load_class(name)
    if not issubclass(cls, base) or inspect.isabstract(cls) or not hasattr(cls, "name"):
        raise ConfigError(
            f"'{name}' is no {what}: it must be a subclass of {base.__name__} with a `name` and "
            "its methods"
        )
    return cls
