"""A detector that lacks what the strategy reads is refused before anything is trained."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import files_of, make_voc, quick_config, run_train, write_config
from torch import nn

from med_sslal.al.al_criteria import CRITERIA, SELECTORS
from med_sslal.al.al_helpers import ActiveLearningHelper
from med_sslal.al.criteria.base import Criterion
from med_sslal.al.record import PLAIN, PoolRecord
from med_sslal.base.base_model import ABILITIES
from med_sslal.model.detectors import FasterRCNN
from med_sslal.utils.errors import ConfigError


class OneStage(FasterRCNN):
    """Stands for a user's detector without proposals and RoI heads."""

    @classmethod
    def abilities(cls, args: Any) -> frozenset[str]:
        return frozenset({"class_probs", "views"})


class Silent(FasterRCNN):
    """Stands for a user's detector that declares nothing, as BaseModel has it."""

    @classmethod
    def abilities(cls, args: Any) -> frozenset[str]:
        return super(FasterRCNN, cls).abilities(args)


class NoDetector(nn.Module):
    """Stands for a network that is no BaseModel."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(1, num_classes)


class Embeddings(Criterion):
    """Stands for a user's criterion that asks for a view that there is not."""

    name = "embeddings"
    views = (PLAIN, "upside_down")

    def image_values(self, record: PoolRecord, seed: int) -> Any:
        raise NotImplementedError


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_voc(tmp_path_factory.mktemp("data") / "voc")


CASES: dict[str, tuple[str, list[Any], str]] = {
    "no dropout": (
        "FasterRCNN",
        ["ensemble_disagreement"],
        "ensemble_disagreement needs arch.args.box_head_dropout above 0 (0.2, say), found 0.0",
    ),
    "one of several": (
        "FasterRCNN",
        [["entropy", "ensemble_disagreement"]],
        "ensemble_disagreement needs arch.args.box_head_dropout above 0",
    ),
    "no proposals": (
        "test_abilities.OneStage",
        ["localization_tightness"],
        "localization_tightness needs the proposal that each box was regressed from, which the "
        "detector test_abilities.OneStage does not give",
    ),
    "no RoI features": (
        "test_abilities.OneStage",
        ["entropy", "class_conditional_similarity"],
        "class_conditional_similarity needs RoI features of every detection",
    ),
    "no class probabilities": (
        "test_abilities.Silent",
        ["entropy", "k_means_diversity"],
        "entropy needs class probabilities of every detection",
    ),
    "no views": (
        "test_abilities.Silent",
        [["representativeness", "flip_consistency"]],
        "flip_consistency needs class probabilities",
    ),
    "an unknown view": (
        "FasterRCNN",
        ["test_abilities.Embeddings"],
        "unknown view 'upside_down'",
    ),
    "no detector": (
        "test_abilities.NoDetector",
        ["random"],
        "arch.type: test_abilities.NoDetector must be a subclass of "
        "med_sslal.base.base_model.BaseModel",
    ),
}


@pytest.mark.parametrize(("detector", "criterion", "words"), CASES.values(), ids=CASES)
def test_one_sentence_before_the_run_exists(
    detector: str,
    criterion: list[Any],
    words: str,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = quick_config(data, tmp_path / "runs")
    config["arch"]["type"] = detector
    config["arch"]["args"]["backbone_name"] = "resnet18"
    if detector.endswith("NoDetector"):
        config["arch"]["args"] = {"num_classes": 2}
    config["al_settings"]["args"]["al_criterion"] = criterion
    path = write_config(tmp_path / "config.json", config)
    before = files_of(tmp_path)
    assert run_train("-c", path) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.strip().count("\n") == 0
    assert files_of(tmp_path) == before


def helper(*stages: Any) -> ActiveLearningHelper:
    return ActiveLearningHelper(2, 3, list(stages), seed=0)


def gaps(given: frozenset[str], *stages: Any) -> list[tuple[str, str]]:
    return helper(*stages).missing_abilities(given)


def test_a_detector_of_this_program_lacks_at_most_dropout() -> None:
    assert FasterRCNN.abilities({"box_head_dropout": 0.2}) == ABILITIES.keys()
    assert ABILITIES.keys() - FasterRCNN.abilities({"box_head_dropout": 0.0}) == {"dropout"}


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_needs_known_abilities(name: str) -> None:
    found = gaps(frozenset(), name)
    assert {need for _, need in found} <= ABILITIES.keys()
    assert gaps(frozenset(ABILITIES), name) == []


@pytest.mark.parametrize("name", SELECTORS)
def test_every_second_stage_needs_known_abilities(name: str) -> None:
    found = gaps(frozenset(), "random", name)
    assert {need for _, need in found} <= ABILITIES.keys()
    assert gaps(frozenset(ABILITIES), "random", name) == []


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        (("random", "k_means_diversity"), []),
        (("entropy",), [("entropy", "class_probs")]),
        (
            ("flip_consistency",),
            [("flip_consistency", "class_probs"), ("flip_consistency", "views")],
        ),
        (("unexplained_objectness",), [("unexplained_objectness", "objectness")]),
        ((["entropy", "representativeness"], "k_center"), [("entropy", "class_probs")]),
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_the_needs_of_all_stages_are_named(
    stages: tuple[Any, ...], expected: list[tuple[str, str]]
) -> None:
    assert gaps(frozenset(), *stages) == expected


def test_an_unknown_view_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown view 'upside_down'"):
        gaps(frozenset(ABILITIES), "test_abilities.Embeddings")
