"""The forms of al_criterion: stages with arguments, weighted combinations, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records import detections, random_images, write_record
from scipy.stats import percentileofscore
from tiny import tiny_config

from med_sslal.al.al_helpers import ActiveLearningHelper
from med_sslal.al.pool import Pool
from med_sslal.al.select import select
from med_sslal.al.stages import stage_names
from med_sslal.cli.registries import registries
from med_sslal.config.parse_config import ConfigParser
from med_sslal.utils.errors import ConfigError, DataError


def helper(stages: list, *, seed: int = 0, **args: Any) -> ActiveLearningHelper:
    return ActiveLearningHelper(2, 3, stages, seed=seed, **args)


def query(record, stages, budget=4, **args):
    pool = Pool(("x",), tuple(record.image_ids.tolist()))
    return helper(stages, **args).query(record, pool, budget, 0)


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    folder = tmp_path_factory.mktemp("strategy")
    return write_record(folder / "r", random_images(np.random.default_rng(4), 30, 3), n_classes=3)


@pytest.mark.parametrize(
    ("long", "short"),
    [
        ([{"type": "entropy"}], ["entropy"]),
        ([{"type": "entropy", "args": {}}, "k_center"], ["entropy", "k_center"]),
        (["margin", {"type": "k_means_diversity"}], ["margin", "k_means_diversity"]),
    ],
    ids=["type alone", "empty args", "second stage"],
)
def test_the_long_form_means_the_same_as_the_names(record, long, short):
    assert query(record, long) == query(record, short)


def test_arguments_of_a_stage_go_before_those_at_the_top(tmp_path):
    images = {
        "crowded": detections([0.9] * 8),
        "unsure": detections([0.6]),
        "empty": detections([]),
    }
    own = write_record(tmp_path / "r", images)

    def best(args, **common):
        return query(own, [{"type": "prediction_uncertainty", "args": args}], 1, **common).image_ids

    assert best({}) == ("unsure",)
    assert best({"aggregate": "sum"}) == best({}, aggregate="sum") == ("crowded",)
    assert best({"aggregate": "mean"}, aggregate="sum") == ("unsure",)
    assert best({"empty_images": "first"}) == ("empty",)
    assert best({"empty_images": "last"}, empty_images="first") == ("unsure",)


def literal(columns, weights, image_ids):
    """Percentile ranks as SciPy has them, averaged image by image."""
    shares = {
        name: {i: percentileofscore(list(values.values()), values[i], "mean") for i in image_ids}
        for name, values in columns.items()
    }
    total = sum(weights.values())
    return {
        i: sum(weights[name] * shares[name][i] / 100 for name in weights) / total for i in image_ids
    }


@pytest.mark.parametrize(
    "weights",
    [
        {"entropy": 1, "margin": 1},
        {"entropy": 2, "localization_tightness": 0.5, "representativeness": 1},
    ],
    ids=["two alike", "three with weights"],
)
def test_a_combination_averages_percentile_ranks(record, weights):
    parts = [{"type": name, "weight": weight} for name, weight in weights.items()]
    selection = query(record, [parts, "top_k"])
    assert list(selection.scores) == ["combination", *weights]
    ids = record.image_ids.tolist()
    raw = {name: selection.scores[name] for name in weights}
    for name in weights:
        assert raw[name] == query(record, [name]).scores[name], "raw values of every part"
    expected = literal(raw, weights, ids)
    assert selection.scores["combination"] == pytest.approx(expected, abs=0.51e-4)
    best = sorted(selection.scores["combination"].values(), reverse=True)[:4]
    assert [item.values["combination"] for item in selection.items] == best
    for item in selection.items:
        assert set(item.values) == {"combination", *weights}
        words = ", ".join(f"{name} {item.values[name]:.4f}" for name in weights)
        start = f"combination {item.values['combination']:.4f} ({words}), place {item.rank} of 30"
        assert item.reason == start
    assert selection.criteria == ("combination", "top_k")


def test_equal_weights_are_the_default_and_scale_is_nothing(record):
    plain = query(record, [["entropy", "margin"]])
    assert plain == query(
        record, [[{"type": "entropy", "weight": 3}, {"type": "margin", "weight": 3}]]
    )
    ranks = query(record, [["entropy", "margin"], "k_means_diversity"])
    assert len(ranks.items) == 4


def test_the_same_criterion_twice_keeps_both_values(record):
    tight = "localization_tightness"
    both = [tight, {"type": tight, "args": {"aggregate": "max"}}]
    selection = query(record, [both])
    assert list(selection.scores) == ["combination", tight, f"{tight}_2"]
    assert selection.scores[tight] == query(record, [tight]).scores[tight]
    assert selection.scores[f"{tight}_2"] == query(record, [tight], aggregate="max").scores[tight]


def test_views_of_a_combination_are_those_of_its_parts():
    parts = ["entropy", {"type": "localization_stability", "args": {"copies": 2}}]
    assert helper([parts]).views == ("plain", "noise_1", "noise_2")
    assert helper([parts]).columns == ()
    assert helper([parts, "class_conditional_similarity"]).columns == ("roi_features",)
    refined = [[*parts, "box_self_consistency"], "class_conditional_similarity"]
    assert helper(refined).columns == ("roi_features", "refined_boxes")


WRONG: dict[str, tuple[list, list[str]]] = {
    "misspelt argument": (
        [{"type": "entropy", "args": {"agregate": "max"}}],
        ["[0].args.agregate: unknown key. Did you mean 'aggregate' (default null)?"],
    ),
    "wrong value of an argument": (
        [{"type": "entropy", "args": {"aggregate": "maxi"}}],
        ['[0].args.aggregate: found the string "maxi". Did you mean "max"?'],
    ),
    "value that the class refuses": (
        [{"type": "localization_stability", "args": {"copies": 0}}],
        ["[0].args.copies: found 0; allowed: integer, 1 to 100"],
    ),
    "argument of a base class": (
        [{"type": "class_difficulty_entropy", "args": {"floor": 2}}],
        ["[0].args.floor: found 2; allowed: number, 0 to 1"],
    ),
    "argument of a part of a combination": (
        [["margin", {"type": "entropy", "args": {"floor": -0.5}}]],
        ["[0][1].args.floor: found -0.5; allowed: number, 0 to 1"],
    ),
    "argument of a selector": (
        ["entropy", {"type": "top_k", "args": {"k": 3}}],
        ["[1].args.k: unknown key; allowed: none"],
    ),
    "misspelt key": (
        [{"typ": "entropy"}],
        ["[0].typ: unknown key. Did you mean 'type' (required)?"],
    ),
    "type of another kind": ([{"type": 3}], ["[0].type: found 3; allowed: string"]),
    "args of another kind": (
        [{"type": "entropy", "args": ["max"]}],
        ['[0].args: found the list ["max"]; allowed: object'],
    ),
    "unknown name in the long form": (
        [{"type": "entropi"}],
        ["[0].type: unknown criterion 'entropi'. Did you mean 'entropy'?"],
    ),
    "weight of nothing": (
        [{"type": "entropy", "weight": 2}],
        ["[0].weight: a weight is for criteria that are combined"],
    ),
    "weight 0": (
        [[{"type": "entropy", "weight": 0}, "margin"]],
        ["[0][0].weight: found 0; allowed: number, more than 0"],
    ),
    "weight under 0": (
        [["margin", {"type": "entropy", "weight": -1.5}]],
        ["[0][1].weight: found -1.5; allowed: number, more than 0"],
    ),
    "weight in words": (
        [["margin", {"type": "entropy", "weight": "2"}]],
        ['[0][1].weight: found the string "2"; allowed: number, more than 0'],
    ),
    "a combination with random": (
        [["entropy", "random"]],
        ["[0][1]: random cannot be part of a combination"],
    ),
    "a combination of one": ([["entropy"]], ["[0]: found 1 in the list; allowed: two criteria"]),
    "a selector in a combination": (
        [["entropy", "k_center"]],
        ["[0][1]: 'k_center' is a second stage"],
    ),
    "two selectors": (
        ["entropy", ["k_center", "top_k"]],
        ['[1]: found the list ["k_center", "top_k"]; allowed: one second stage'],
    ),
    "three stages": (
        ["entropy", "k_center", "top_k"],
        [": found 3 stages; allowed: a criterion (or a list of criteria to combine)"],
    ),
    "all at once": (
        [[{"type": "entropy", "weight": 0, "args": {"x": 1}}, "random"], "k_centre"],
        [
            "[0][0].weight: found 0",
            "[0][0].args.x: unknown key",
            "[0][1]: random cannot",
            "[1]: unknown second stage 'k_centre'. Did you mean 'k_center'?",
        ],
    ),
}


@pytest.mark.parametrize(("stages", "sentences"), WRONG.values(), ids=WRONG)
def test_wrong_stages_are_named_with_their_path(stages, sentences, tmp_path: Path):
    config = tiny_config(tmp_path, tmp_path)
    config["al_settings"]["args"]["al_criterion"] = stages
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config, indent=2))
    with pytest.raises(ConfigError) as caught:
        ConfigParser.from_file(path, registries())
    lines = str(caught.value).splitlines()
    assert len(lines) == len(sentences), lines
    for sentence in sentences:
        assert any(f" al_settings.args.al_criterion{sentence}" in line for line in lines), lines
    start = next(
        number
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if "al_criterion" in line
    )
    for line in lines:
        assert int(line.removeprefix(str(path)).split(":")[1]) >= start
    with pytest.raises(ConfigError, match="al_criterion"):
        helper(stages)


@pytest.mark.parametrize(
    ("stages", "args", "name"),
    [
        (["random"], {"aggregate": "max"}, "aggregate"),
        ([["unexplained_objectness", "representativeness"]], {"aggregate": "max"}, "aggregate"),
        ([{"type": "representativeness"}], {"empty_images": "last"}, "empty_images"),
    ],
    ids=["random", "a combination", "long form"],
)
def test_defaults_that_no_criterion_takes_are_refused(stages, args, name):
    with pytest.raises(ConfigError, match=f"{name}: the criterion has no '{name}': leave it out"):
        helper(stages, **args)


def test_defaults_reach_those_parts_that_take_them(record):
    stages = [["entropy", "representativeness"]]
    scores = query(record, stages, aggregate="max").scores
    assert scores["entropy"] == query(record, ["entropy"], aggregate="max").scores["entropy"]
    assert scores["entropy"] != query(record, ["entropy"]).scores["entropy"]


def test_a_record_alone_is_enough_to_select(record):
    assert select(record, "entropy", budget=4) == query(record, ["entropy"])
    margin = {"type": "margin", "args": {"aggregate": "max"}}
    pair = select(record, ["entropy", margin], "k_center", budget=3, seed=7, candidate_factor=None)
    args = {"seed": 7, "candidate_factor": None}
    assert pair == query(record, [["entropy", margin], "k_center"], 3, **args)
    boxes = select(record, "random", {"type": "greedy_box_cost"}, budget=9, budget_unit="boxes")
    assert sum(item.values["predicted_cost"] for item in boxes.items) <= 9
    with pytest.raises(ConfigError, match="budget: found 31; allowed: up to the 30 unlabelled"):
        select(record, "entropy", budget=31)
    with pytest.raises(ConfigError, match="Did you mean 'entropy'"):
        select(record, "entropi", budget=3)
    with pytest.raises(DataError, match="no view 'flip'"):
        select(record, "flip_consistency", budget=3)


def test_short_names_of_stages():
    both = ["entropy", {"type": "margin", "weight": 2}, {"type": "x.Own", "weight": 0.5}]
    assert stage_names([both, "k_center"]) == ["entropy & 2 x margin & 0.5 x x.Own", "k_center"]
    assert stage_names([{"type": "entropy", "args": {"aggregate": "max"}}]) == ["entropy"]
