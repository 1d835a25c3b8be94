"""Budgets in boxes and seconds, the greedy rule, adjacent slices: plans, and what is paid for."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records import detections, random_images, write_full_record, write_record
from tiny import make_voc, quick_config, run_train, write_config

from med_sslal.al.al_criteria import SELECTORS
from med_sslal.al.al_helpers import ActiveLearningHelper
from med_sslal.al.budget import CostModel, predicted_boxes
from med_sslal.al.oracle import SimulatedOracle
from med_sslal.al.pool import Pool
from med_sslal.al.purchase import purchase
from med_sslal.al.restrict import slice_positions
from med_sslal.base.types import Annotation, ImageInfo
from med_sslal.cli.build import build_dataset
from med_sslal.cli.registries import registries
from med_sslal.config.parse_config import ConfigParser
from med_sslal.phantom.dataset import DeepLesionPhantom
from med_sslal.utils.errors import ConfigError, DataError
from med_sslal.utils.util import stable_hash

BOXES = CostModel("boxes")
SECONDS = CostModel("seconds", 2.0, 10.0)


def helper(*stages: Any, budget: int = 10, seed: int = 0, **args: Any) -> ActiveLearningHelper:
    return ActiveLearningHelper(2, budget, list(stages), seed=seed, **args)


def query(record, *stages, budget=10, infos=None, **args):
    pool = Pool(("x",), tuple(record.image_ids.tolist()))
    strategy = helper(*stages, budget=budget, **args)
    return strategy.query(record, pool, budget, 0, infos)


def label(n_boxes: int) -> Annotation:
    corner = np.arange(n_boxes, dtype=np.float32)[:, None]
    boxes = np.concatenate([corner, corner, corner + 9, corner + 9], axis=1)
    return Annotation(boxes, np.ones(n_boxes, dtype=np.int64), np.zeros(n_boxes, dtype=bool))


def read(path: Path) -> Any:
    return json.loads(path.read_text())


# What a query plans.


def test_predicted_boxes_are_sums_of_scores_with_the_mean_of_the_labelled_images(tmp_path):
    images = {"a": detections([0.5, 0.5]), "b": detections([0.9, 0.6, 0.5]), "c": detections([])}
    plain = write_record(tmp_path / "plain", images)
    assert predicted_boxes(plain).tolist() == [1.0, 2.0, 0.0]
    # 12 boxes on 3 images: a mean of 4, where the sums have a mean of 1.
    known = dict.fromkeys(("x", "y", "z"), detections([]))
    counts = {"class1": 12}
    scaled = write_record(tmp_path / "s", images, labelled=known, class_counts=counts)
    assert predicted_boxes(scaled).tolist() == [4.0, 8.0, 0.0]
    blind = write_record(
        tmp_path / "e", dict.fromkeys("ab", detections([])), labelled=known, class_counts=counts
    )
    assert predicted_boxes(blind).tolist() == [4.0, 4.0]
    assert CostModel("images").predicted(scaled).tolist() == [1.0, 1.0, 1.0]
    assert BOXES.predicted(scaled).tolist() == [4.0, 8.0, 1.0], "an image counts as one at least"
    assert SECONDS.predicted(scaled).tolist() == [42.0, 82.0, 2.0]


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    images = random_images(np.random.default_rng(8), 40, 3)
    folder = tmp_path_factory.mktemp("budget")
    return write_full_record(folder / "r", images, n_classes=3)


@pytest.mark.parametrize("unit", ["boxes", "seconds"])
@pytest.mark.parametrize("second", SELECTORS)
def test_a_plan_of_any_selector_keeps_to_the_budget_and_spends_it(record, second, unit):
    budget = {"boxes": 17, "seconds": 400}[unit]
    for factor in ("auto", None):
        selection = query(
            record, "entropy", second, budget=budget, budget_unit=unit, candidate_factor=factor
        )
        costs = selection.scores["predicted_cost"]
        spent = sum(costs[image_id] for image_id in selection.image_ids)
        assert spent <= budget + 1e-6
        # The next image of any order would not have fitted: no image costs more than this.
        assert spent > budget - max(costs.values())
        assert len(set(selection.image_ids)) == len(selection.items) > 1
        for item in selection.items:
            assert item.values["predicted_cost"] == costs[item.image_id]
            assert item.reason.endswith(f"about {costs[item.image_id]:.1f} {unit}")


@pytest.mark.parametrize("second", SELECTORS)
def test_a_plan_does_not_depend_on_the_order_of_files(record, tmp_path, second):
    images = random_images(np.random.default_rng(8), 40, 3)
    backwards = dict(reversed(images.items()))
    back = write_full_record(tmp_path / "back", backwards, n_classes=3, shard_size=7)
    stages = (["entropy", {"type": "localization_tightness", "weight": 3}], second)
    for unit, budget in (("images", 7), ("boxes", 17), ("seconds", 400)):
        plans = [
            query(one, *stages, budget=budget, budget_unit=unit, max_per_group=1)
            for one in (record, back)
        ]
        assert plans[0] == plans[1]


def test_images_are_taken_in_order_until_the_budget_is_spent(tmp_path):
    # 1 - P rises from a to e; costs in boxes 1, 2, 3, 4 and 2.
    scores = {"a": [0.95], "b": [0.9] * 2, "c": [0.8] * 3, "d": [0.7] * 4, "e": [0.6] * 3}
    images = {name: detections(row) for name, row in scores.items()}
    record = write_record(tmp_path / "r", images)

    def chosen(budget, **args):
        unit = {"budget": budget, "budget_unit": "boxes"}
        return query(record, "prediction_uncertainty", **unit, **args).image_ids

    # Predicted: a 1 (0.95 at least 1), b 1.8, c 2.4, d 2.8, e 1.8.
    assert chosen(2) == ("e",)
    assert chosen(4) == ("e",), "d does not fit, and the order is kept"
    assert chosen(5) == ("e", "d")
    assert chosen(7) == ("e", "d", "c")
    assert chosen(100) == tuple("edcba"), "all of them, where the budget lasts"
    # d costs more than the whole budget, so that the next best is asked.
    assert chosen(2, candidate_factor=None)[0] == "e"
    assert chosen(1) == ("a",)


def test_where_no_image_fits_the_cheapest_is_planned(tmp_path):
    images = {"a": detections([0.9] * 5), "b": detections([0.9] * 4), "c": detections([0.5] * 9)}
    record = write_record(tmp_path / "r", images)
    assert query(record, "entropy", budget=3, budget_unit="boxes").image_ids == ("b",)


def test_greedy_box_cost_takes_the_best_score_per_predicted_cost(tmp_path):
    # Rank by 1 - P: a 1, b 2, c 3, d 4. Boxes: 1, 1.8, 4, 2.4.
    scores = {"a": [0.95], "b": [0.9] * 2, "c": [0.8] * 5, "d": [0.6] * 4}
    record = write_record(tmp_path / "r", {name: detections(row) for name, row in scores.items()})
    stages = ("prediction_uncertainty", "greedy_box_cost")
    more = {"candidate_factor": None, "budget_unit": "boxes"}
    # 1/1, 2/1.8, 3/4 and 4/2.4.
    assert query(record, *stages, budget=20, **more).image_ids == ("d", "b", "a", "c")
    assert query(record, *stages, budget=5, **more).image_ids == ("d", "b")
    reason = query(record, *stages, budget=5, **more).items[0].reason
    assert reason == (
        "prediction_uncertainty 0.4000, place 1 of 4; place 1 of 4 by score per cost; "
        "about 2.4 boxes"
    )
    top = query(record, "prediction_uncertainty", "top_k", budget=3)
    assert query(record, *stages, budget=3).image_ids == top.image_ids, "images all cost the same"


# What is paid for.


@pytest.mark.parametrize(
    ("costs", "budget", "paid"),
    [
        (BOXES, 2, "a"),
        (BOXES, 3, "abc"),
        (BOXES, 4, "abc"),
        (BOXES, 5, "abcdf"),
        (BOXES, 6, "abcdfg"),
        (BOXES, 100, "abcdefg"),
        (CostModel("images"), 3, "abc"),
        (SECONDS, 34, "ab"),
        (SECONDS, 33, "a"),
        (SECONDS, 36, "abc"),
        (SECONDS, 11, "cf"),
    ],
)
def test_labels_are_revealed_in_order_until_the_next_one_would_exceed(costs, budget, paid):
    truth = dict(zip("abcdefg", (1, 2, 0, 2, 9, 0, 1), strict=True))
    oracle = SimulatedOracle({name: label(n_boxes) for name, n_boxes in truth.items()})
    found = oracle.label_within(truth, costs, budget)
    assert "".join(found) == paid
    assert costs.cost(len(found), sum(truth[name] for name in found)) <= budget
    with pytest.raises(DataError, match="no label for 1 image"):
        oracle.label_within(["a", "z"], costs, budget)


@pytest.mark.parametrize("seed", range(20))
def test_the_budget_is_never_exceeded_however_wrong_the_predictions_are(record, seed):
    generator = np.random.default_rng(seed)
    truth = {name: int(generator.integers(0, 15)) for name in record.image_ids.tolist()}
    oracle = SimulatedOracle({name: label(n_boxes) for name, n_boxes in truth.items()})
    for unit, budget in (("boxes", 25), ("seconds", 300)):
        strategy = helper("entropy", "k_center", budget=budget, budget_unit=unit, seed=seed)
        pool = Pool(("x",), tuple(record.image_ids.tolist()))
        plan = strategy.query(record, pool, budget, 0).image_ids
        paid = tuple(oracle.label_within(plan, strategy.costs, budget))
        spent = strategy.costs.cost(len(paid), sum(truth[name] for name in paid))
        assert spent <= budget
        # Nothing that was paid for is thrown away: only what exceeds the budget is left out.
        left = [name for name in plan if name not in paid]
        affordable = [n for n in left if strategy.costs.cost(1, truth[n]) <= budget]
        if affordable:
            assert spent + strategy.costs.cost(1, truth[affordable[0]]) > budget


def test_a_budget_that_is_met_exactly_is_enough():
    costs = CostModel("seconds", 7.8, 34.1)
    assert costs.cost(1, 12) > 417, "by the last bit"
    assert list(SimulatedOracle({"a": label(12)}).label_within("a", costs, 417)) == ["a"]
    assert CostModel("seconds", 0.1, 1.0).most_images(1) == 10


def test_an_image_beyond_the_whole_budget_blocks_no_other():
    oracle = SimulatedOracle({"a": label(9), "b": label(2), "c": label(4), "d": label(0)})
    assert list(oracle.label_within("abcd", BOXES, 5)) == ["b"], "c ends the query"
    assert list(oracle.label_within("a", BOXES, 5)) == []


@pytest.mark.parametrize("second", ["top_k", "k_center", "greedy_box_cost"])
def test_where_no_planned_image_can_be_paid_cheaper_ones_are_asked_for(record, second):
    ids = record.image_ids.tolist()
    strategy = helper("entropy", second, budget=4, budget_unit="boxes", max_per_group=1)
    pool = Pool(("x",), tuple(ids))
    for cheap in (ids[:1], ids[-3:]):
        oracle = SimulatedOracle({name: label(3 if name in cheap else 9) for name in ids})
        bought = purchase(strategy, oracle, record, pool, 0, {})
        assert len(bought.items) == 1 and set(bought.image_ids) <= set(cheap)
        assert [item.rank for item in bought.items] == [1]
        assert set(bought.scores["entropy"]) == set(ids), "every image keeps its value"
    dear = SimulatedOracle({name: label(5) for name in ids})
    assert purchase(strategy, dear, record, pool, 0, {}).items == ()


# What the config may say.


def test_seconds_must_pay_for_an_image_with_one_box():
    words = "budget_num: found 42; allowed: 43 or more, the seconds of an image with one box"
    with pytest.raises(ConfigError, match=words):
        helper("entropy", budget_unit="seconds", budget=42)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"budget_num": 9}, r"init_num 4 \+ budget_num 9 is more than the 12 images"),
        ({"init_num": 12, "budget_unit": "boxes"}, "is more than the 12 images"),
        ({"suppress_adjacent": 1}, "suppress_adjacent is 1, but the place of 12 image"),
    ],
    ids=["pool too small", "nothing left", "no slices"],
)
def test_what_the_pool_cannot_give_is_refused_at_the_start(tmp_path, capsys, args, words):
    config = quick_config(make_voc(tmp_path / "voc"), tmp_path / "runs")
    config["al_settings"]["args"] |= args
    assert run_train("-c", write_config(tmp_path / "config.json", config)) == 2
    said = capsys.readouterr().err
    assert len(said.strip().splitlines()) == 1
    assert re.search(words, said), said
    assert not (tmp_path / "runs").exists()


# Adjacent slices.


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    """Nine slices of two series, rated a to i from best to worst."""
    images = {name: detections([0.5 + place / 20]) for place, name in enumerate("abcdefghi")}
    record = write_full_record(tmp_path_factory.mktemp("slices") / "r", images)
    places = (10, 11, 13, 20, 21, 12, 22, 14, 30)
    series = dict(zip("abcdefghi", "ssssttsst", strict=True))
    infos = {
        name: ImageInfo(name, "p", f"{name}.png", (8, 8), None, series[name], place)
        for name, place in zip("abcdefghi", places, strict=True)
    }
    infos["x"] = ImageInfo("x", "p", "x.png", (8, 8), None, "t", 29)
    return record, infos


@pytest.mark.parametrize(
    ("distance", "budget", "taken"),
    [
        (None, 4, "abcd"),
        (1, 5, "acdef"),
        (2, 6, "acdefb"),
        (3, 3, "ade"),
        (3, 7, "adefhbc"),
        (1, 9, "acdefgbhi"),
    ],
    ids=["off", "next to", "two apart", "three apart", "then the others", "all in the end"],
)
def test_adjacent_slices_come_only_when_no_others_are_left(slices, distance, budget, taken):
    record, infos = slices
    selection = query(
        record,
        "prediction_uncertainty",
        budget=budget,
        suppress_adjacent=distance,
        infos=infos,
        candidate_factor=None,
    )
    assert selection.image_ids == tuple(taken)


@pytest.mark.parametrize("second", SELECTORS)
def test_adjacent_slices_are_suppressed_under_every_selector(slices, second):
    record, infos = slices
    for budget, unit in ((4, "images"), (5, "boxes")):
        selection = query(
            record,
            "entropy",
            second,
            budget=budget,
            budget_unit=unit,
            suppress_adjacent=1,
            infos=infos,
            candidate_factor=None,
        )
        positions = slice_positions(infos)
        taken = [positions[name] for name in (*selection.image_ids, "x")]
        close = [
            (one, two)
            for number, one in enumerate(taken)
            for two in taken[:number]
            if one[0] == two[0] and abs(one[1] - two[1]) <= 1
        ]
        assert len(selection.items) >= 4 and not close


def test_what_was_taken_in_spite_of_the_rule_says_so(slices):
    record, infos = slices
    selection = query(
        record, "entropy", budget=9, suppress_adjacent=1, max_per_group=9, infos=infos
    )
    said = [item.image_id for item in selection.items if "no others are left" in item.reason]
    assert said == list(selection.image_ids[-3:])
    with pytest.raises(ConfigError, match="place of 10 image"):
        query(record, "entropy", budget=2, suppress_adjacent=1)


def test_the_phantom_knows_the_places_of_its_slices(tmp_path):
    dataset = DeepLesionPhantom(root=str(tmp_path), patients=4, size=64, eval_split=0.5)
    positions = slice_positions(dataset.images.infos)
    assert set(positions) == set(dataset.images.infos)
    for name, (series, index) in positions.items():
        assert name == f"{series}_{index:03d}"


# Whole runs.


@pytest.mark.slow
def test_a_run_with_a_budget_in_boxes_never_exceeds_it(tmp_path, capsys):
    config = quick_config(make_voc(tmp_path / "voc", classes=2), tmp_path / "runs")
    config["arch"]["args"]["num_classes"] = 3
    config["al_settings"]["num_cycles"] = 2
    config["al_settings"]["args"] |= {
        "budget_unit": "boxes",
        "budget_num": 5,
        "al_criterion": [["entropy", {"type": "margin", "weight": 2}], "greedy_box_cost"],
    }
    config["trainer"] |= {"epochs": 1, "verbosity": 1}
    path = write_config(tmp_path / "config.json", config)
    assert run_train("-c", path, "--run-id", "x") == 0
    folder = tmp_path / "runs" / "tiny" / "x"
    rows = read(folder / "summary.json")["cycles"]
    assert len(rows) == 3
    for before, after in itertools.pairwise(rows):
        # Two boxes in every image: 4 of 5 are what can be had.
        assert 0 < after["labelled_boxes"] - before["labelled_boxes"] <= 4
        assert after["labelled_seconds"] == pytest.approx(
            7.8 * after["labelled_images"] + 34.5 * after["labelled_boxes"]
        )
    selection = read(folder / "cycle_00" / "selection.json")
    assert set(selection["scores"]) == {"combination", "entropy", "margin", "predicted_cost"}
    assert read(folder / "cycle_01" / "pool.json")["labelled"][4:] == selection["image_ids"]
    assert "planned images labelled, for" in (folder / "train.log").read_text()
    assert run_train("-c", path, "--dry-run") == 0
    capsys.readouterr()
    change = "al_settings.args.budget_unit=images"
    assert run_train("--resume", folder, "--set", change) == 2
    assert "al_settings.args.budget_unit was 'boxes'" in capsys.readouterr().err


def config_of_one_box(tmp_path, pick, **args):
    """A run that may buy one box a cycle: one image, which `pick` finds, has one, the others two.

    Returns:
        The config's file, and the id of that image.
    """
    voc = make_voc(tmp_path / "voc", classes=2)
    config = quick_config(voc, tmp_path / "runs")
    config["arch"]["args"]["num_classes"] = 3
    config["al_settings"]["args"] |= {"budget_unit": "boxes", "budget_num": 1, **args}
    config["trainer"] |= {"epochs": 1, "verbosity": 1}
    path = write_config(tmp_path / "config.json", config)
    parser = ConfigParser.from_file(path, registries())
    pool = Pool((), build_dataset(parser).images.splits["train"])
    initial = parser.init_obj("al_settings", seed=config["seed"]).initial(pool)
    picked = pick(config["seed"], pool.label(initial))
    label_file = voc / "Annotations" / f"{Path(picked).stem}.xml"
    text = label_file.read_text()
    label_file.write_text(text[: text.rindex("<object>")] + "</annotation>")
    return path, picked


@pytest.mark.slow
def test_a_run_whose_budget_pays_for_nothing_more_ends_there(tmp_path, capsys):
    # The image of one box is labelled from the start.
    path, _ = config_of_one_box(tmp_path, lambda seed, pool: pool.labelled[0])
    assert run_train("-c", path, "--run-id", "x") == 0
    folder = tmp_path / "runs" / "tiny" / "x"
    summary = read(folder / "summary.json")
    assert len(summary["cycles"]) == 1 and summary["finished"]
    assert summary["cycles"][0]["labelled_boxes"] == 7
    assert read(folder / "cycle_00" / "selection.json")["image_ids"] == []
    assert "cycle 0 is the last: budget_num 1 boxes pays for none" in capsys.readouterr().out
    assert run_train("--resume", folder) == 0
    assert read(folder / "summary.json") == summary


@pytest.mark.slow
def test_a_run_goes_on_to_an_image_it_can_pay_for(tmp_path, capsys):
    def last_by_random(seed, pool):
        drawn = stable_hash("query", seed, 0)
        return min(pool.unlabelled, key=lambda name: stable_hash("random", drawn, name))

    path, cheap = config_of_one_box(tmp_path, last_by_random, al_criterion=["random"])
    assert run_train("-c", path, "--run-id", "x") == 0
    folder = tmp_path / "runs" / "tiny" / "x"
    assert read(folder / "cycle_00" / "selection.json")["image_ids"] == [cheap]
    rows = read(folder / "summary.json")["cycles"]
    assert [row["labelled_boxes"] for row in rows] == [8, 9]
    assert "cycle 1 is the last: budget_num 1 boxes pays for none" in capsys.readouterr().out
