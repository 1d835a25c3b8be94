"""ActiveLearningHelper: its arguments, the initial set, budgets, reasons and selection.json."""

import json
import logging
import sys
from collections import Counter

import numpy as np
import pytest
from records import detections, random_images, write_full_record, write_record
from tiny import make_voc, run_train, small_config, write_config

from med_sslal.al.al_criteria import CRITERIA, SELECTORS
from med_sslal.al.al_helpers import ActiveLearningHelper
from med_sslal.al.arrays import rank_correlation
from med_sslal.al.pool import Pool
from med_sslal.al.restrict import check_groups, check_pool
from med_sslal.al.selection_io import read_selection, write_selection
from med_sslal.base.types import ImageInfo
from med_sslal.utils.errors import ConfigError, DataError


def helper(*names, init=2, budget=3, seed=0, **args):
    return ActiveLearningHelper(init, budget, list(names) or ["entropy"], seed=seed, **args)


def arguments(**changes):
    return {
        "init_num": 2,
        "budget_num": 3,
        "al_criterion": ["entropy"],
        "budget_unit": "images",
        "seconds_per_image": 7.8,
        "seconds_per_box": 34.5,
        "candidate_factor": "auto",
        "aggregate": None,
        "empty_images": "median",
        "max_per_group": None,
        "spread_groups": False,
        "suppress_adjacent": None,
        **changes,
    }


WRONG = {
    "no criterion": ({"al_criterion": []}, "al_criterion", "found 0 stages"),
    "three criteria": ({"al_criterion": ["entropy"] * 3}, "al_criterion", "found 3 stages"),
    "unknown criterion": ({"al_criterion": ["entropi"]}, "al_criterion", "Did you mean 'entropy'?"),
    "the right names": ({"al_criterion": ["entropi"]}, "al_criterion", "localization_tightness"),
    "two uncertainty criteria": (
        {"al_criterion": ["entropy", "localization_tightness"]},
        "al_criterion",
        "'localization_tightness' is a criterion, and stands in the first place",
    ),
    "a second stage alone": (
        {"al_criterion": ["k_means_diversity"]},
        "al_criterion",
        "needs a criterion before it: random",
    ),
    "unknown second stage": (
        {"al_criterion": ["entropy", "kmeans_diversity"]},
        "al_criterion",
        "Did you mean 'k_means_diversity'?",
    ),
    "aggregate without boxes": (
        {"al_criterion": ["random"], "aggregate": "max"},
        "aggregate",
        "the criterion has no",
    ),
    "empty images without boxes": (
        {"al_criterion": ["representativeness"], "empty_images": "first"},
        "empty_images",
        "the criterion has no",
    ),
    "no such module": ({"al_criterion": ["no_such.Thing"]}, "al_criterion", "cannot import"),
    "a class of another kind": (
        {"al_criterion": ["collections.OrderedDict"]},
        "al_criterion",
        "must be a subclass of Criterion",
    ),
    "an abstract class": (
        {"al_criterion": ["med_sslal.al.criteria.base.Criterion"]},
        "al_criterion",
        "must be a subclass of Criterion",
    ),
}


@pytest.mark.parametrize(("changes", "name", "words"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_named(changes, name, words):
    problems = ActiveLearningHelper.check_args(arguments(**changes))
    [(at, sentence)] = problems
    assert (at if isinstance(at, str) else at[0]) == name
    assert words in sentence
    with pytest.raises(ConfigError, match=name):
        ActiveLearningHelper(**arguments(**changes), seed=0)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("init_num", 0, 'found 0; allowed: integer, 1 or more, or "all"'),
        ("budget_num", -1, "found -1; allowed: integer, 1 or more"),
        ("candidate_factor", 0.5, "found 0.5; allowed: number, 1 or more"),
        ("candidate_factor", float("nan"), "found NaN; allowed: number, 1 or more"),
        ("max_per_group", 0, "found 0; allowed: integer, 1 or more, or null"),
        ("suppress_adjacent", 0, "found 0; allowed: integer, 1 or more, or null"),
        ("seconds_per_image", 0.0, "found 0.0; allowed: number, more than 0"),
        ("seconds_per_box", -1.0, "found -1.0; allowed: number, 0 or more"),
    ],
)
def test_a_value_out_of_its_range_is_refused(name, value, words):
    with pytest.raises(ConfigError, match=f"^{name}: {words}"):
        ActiveLearningHelper(**arguments(**{name: value}), seed=0)


def test_all_problems_come_at_once():
    wrong = arguments(init_num=0, budget_num=0, candidate_factor=0)
    with pytest.raises(ConfigError, match=r"init_num: .*; budget_num: .*; candidate_factor: "):
        ActiveLearningHelper(**wrong, seed=0)
    paths = [at for at, _ in ActiveLearningHelper.check_args(arguments(al_criterion=["a", "b"]))]
    assert paths == [("al_criterion", 0), ("al_criterion", 1)]


@pytest.mark.parametrize(
    "names",
    [
        ["random"],
        ["entropy", "top_k"],
        ["prediction_uncertainty", "representativeness"],
        ["localization_tightness", "k_means_diversity"],
        ["representativeness", "top_k"],
    ],
    ids=" then ".join,
)
def test_right_arguments_have_no_problem(names):
    assert ActiveLearningHelper.check_args(arguments(al_criterion=names)) == []


def test_pool_must_hold_the_initial_set_and_the_first_query():
    check_pool(4, 6, 10)
    with pytest.raises(ConfigError, match=r"init_num 4 \+ budget_num 7 is more than the 10 images"):
        check_pool(4, 7, 10)


def test_the_initial_set_is_a_seeded_draw_from_the_ids():
    ids = tuple(f"image{number:03d}" for number in range(60))
    pool = Pool((), ids)
    drawn = helper(init=20).initial(pool)
    assert len(drawn) == len(set(drawn)) == 20
    assert set(drawn) <= set(ids)
    assert drawn == helper("random", init=20).initial(Pool((), ids[::-1])), "same for every arm"
    assert set(drawn) != set(helper(init=20, seed=1).initial(pool))
    assert set(drawn) != set(ids[:20])
    with pytest.raises(ConfigError, match="more than the 60 images"):
        helper(init=61).initial(pool)


def test_the_whole_pool_can_be_the_initial_set():
    pool = Pool((), tuple(f"image{number:03d}" for number in range(60)))
    assert ActiveLearningHelper.check_args(arguments(init_num="all")) == []
    drawn = helper(init="all").initial(pool)
    assert len(drawn) == 60 and set(drawn) == set(pool.unlabelled)
    assert drawn[:20] == helper(init=20).initial(pool), "the order of any other initial set"


def test_a_last_query_takes_what_is_left(tmp_path):
    record = write_record(tmp_path / "r", random_images(np.random.default_rng(0), 4, 1))
    pool = Pool(("x",), tuple(record.image_ids.tolist()))
    for names in (["entropy"], ["entropy", "k_means_diversity"], ["random", "representativeness"]):
        selection = helper(*names).query(record, pool, 10, 0)
        assert sorted(selection.image_ids) == list(pool.unlabelled)


def test_a_record_of_other_images_is_refused(tmp_path):
    record = write_record(tmp_path / "r", random_images(np.random.default_rng(0), 4, 1))
    pool = Pool((record.image_ids[0],), tuple(record.image_ids[1:].tolist()))
    with pytest.raises(DataError, match="score the pool again"):
        helper().query(record, pool, 2, 0)


@pytest.fixture(scope="module")
def patients(tmp_path_factory):
    """24 images, forth and back, of 3 patients with 12, 8 and 4 of them."""
    folder = tmp_path_factory.mktemp("patients")
    images = random_images(np.random.default_rng(3), 24, 1)
    owners = dict(zip(images, "a" * 12 + "b" * 8 + "c" * 4, strict=True))
    backwards = dict(reversed(images.items()))
    return {
        "forth": write_full_record(folder / "forth", images, groups=owners),
        "back": write_full_record(folder / "back", backwards, groups=owners),
    }


@pytest.mark.parametrize("second", SELECTORS)
@pytest.mark.parametrize("first", CRITERIA)
def test_no_patient_gives_more_images_than_the_cap(patients, first, second):
    for cap, budget in ((1, 3), (3, 7), (5, 14)):
        selections = []
        for record in patients.values():
            pool = Pool(("x",), tuple(record.image_ids.tolist()))
            strategy = helper(first, second, max_per_group=cap)
            selections.append(strategy.query(record, pool, budget, 0))
        assert selections[0] == selections[1], "the order of files plays no part"
        counts = Counter(item.group_id for item in selections[0].items)
        assert counts.total() == budget and max(counts.values()) <= cap


def test_a_cap_takes_the_best_of_each_patient_and_none_is_the_default(tmp_path):
    images = {name: detections([1 - number / 10]) for number, name in enumerate("abcdef", start=1)}
    owners = dict(zip(images, ["p", "p", "q", "r", "r", "r"], strict=True))
    record = write_record(tmp_path / "r", images, groups=owners)
    pool = Pool((), tuple(images))

    def chosen(**args):
        return helper("prediction_uncertainty", **args).query(record, pool, 3, 0).image_ids

    # The later letter is the less certain one.
    assert chosen() == chosen(max_per_group=None) == chosen(max_per_group=3) == tuple("fed")
    assert chosen(max_per_group=2) == tuple("fec")
    assert chosen(max_per_group=1) == tuple("fcb")


@pytest.mark.parametrize("second", [None, *SELECTORS])
@pytest.mark.parametrize("first", ["random", "entropy"])
def test_patients_with_the_fewest_labels_come_first(patients, first, second):
    """Twelve images of patient a, eight of b, four of c, and two labelled ones of a."""
    infos = {name: ImageInfo(name, "a", f"{name}.png", (8, 8)) for name in ("x", "y")}
    groups = {2: "bc", 4: "bbcc", 7: "abbbccc", 24: "aaaaaaaaaaaabbbbbbbbcccc"}
    for budget, taken in groups.items():
        chosen = []
        for record in patients.values():
            pool = Pool(("x", "y"), tuple(record.image_ids.tolist()))
            stages = [first] if second is None else [first, second]
            strategy = helper(*stages, spread_groups=True)
            chosen.append(strategy.query(record, pool, budget, 0, infos))
        assert chosen[0] == chosen[1], "the order of files plays no part"
        assert "".join(sorted(item.group_id for item in chosen[0].items)) == taken
        numbers = Counter("aa")  # What is labelled already.
        for item in chosen[0].items:
            numbers[item.group_id] += 1
            assert f"image {numbers[item.group_id]} of its patient" in item.reason
    with pytest.raises(ConfigError, match="that of 2 is not known"):
        strategy.query(record, pool, 2, 0)


@pytest.mark.parametrize(
    ("cap", "budget", "words"),
    [
        (1, 4, "max_per_group 1 leaves 3 images of 3 patients, fewer than the budget of 4"),
        (5, 15, "max_per_group 5 leaves 14 images of 3 patients"),
        (11, 24, "lower budget_num to at most 23"),
    ],
    ids=["fewer patients", "small patients", "one short"],
)
def test_a_cap_that_makes_the_first_query_impossible_says_what_could_be_had(cap, budget, words):
    with pytest.raises(ConfigError, match=words):
        check_groups("a" * 12 + "b" * 8 + "c" * 4, budget, cap)


@pytest.mark.parametrize(
    ("cap", "budget", "taken"),
    [(1, 4, 3), (5, 15, 14), (11, 24, 23)],
    ids=["fewer patients", "small patients", "one short"],
)
def test_a_cap_that_a_later_query_cannot_meet_takes_what_it_allows_and_says_so(
    patients, caplog, cap, budget, taken
):
    record = patients["forth"]
    pool = Pool(("x",), tuple(record.image_ids.tolist()))
    selection = helper("entropy", "k_center", max_per_group=cap).query(record, pool, budget, 3)
    counts = Counter(item.group_id for item in selection.items)
    assert counts.total() == taken and max(counts.values()) <= cap
    assert f"max_per_group {cap} allows only {taken} of the 24 unlabelled images" in caplog.text


def test_a_cap_that_fits_takes_a_last_query_too(patients):
    record = patients["forth"]
    pool = Pool(("x",), tuple(record.image_ids.tolist()))
    selection = helper("entropy", "k_center", max_per_group=12).query(record, pool, 100, 0)
    assert sorted(selection.image_ids) == list(pool.unlabelled)


@pytest.mark.parametrize(
    ("aggregate", "bias", "words"),
    [("sum", 1.0, ": 1.00"), ("mean", -0.4, ": -0.40"), ("max", None, "undefined")],
    ids=["a box counter", "the reverse", "no difference"],
)
def test_box_count_bias_is_logged_and_kept(tmp_path, caplog, aggregate, bias, words):
    # 1 - P of each box; the highest is 0.5 everywhere.
    scores = {"a": [0.5], "b": [0.5, 0.9], "c": [0.5, 0.8, 0.9], "d": [0.5, 0.6, 0.7, 0.8]}
    record = write_record(tmp_path / "r", {name: detections(row) for name, row in scores.items()})
    strategy = helper("prediction_uncertainty", aggregate=aggregate)
    with caplog.at_level(logging.INFO):
        selection = strategy.query(record, Pool((), tuple(scores)), 2, 7)
    assert selection.box_count_bias == bias
    start = "cycle 7: rank correlation of prediction_uncertainty and the number of detections"
    assert any(line.startswith(start) and words in line for line in caplog.messages)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 2, 3], [10, 20, 30], 1.0),
        ([1, 2, 3, 4], [9, 9, 1, 1], -0.8944),
        ([1, 2, 3], [10, 30, 20], 0.5),
        ([1, 1, 1], [1, 2, 3], None),
        ([1], [1], None),
        ([], [], None),
    ],
    ids=["same order", "ties share their mean rank", "half", "all equal", "one", "none"],
)
def test_rank_correlation(first, second, expected):
    assert rank_correlation(np.array(first), np.array(second)) == expected


def test_aggregate_and_empty_images_reach_the_criterion(tmp_path):
    images = {
        "crowded": detections([0.9] * 8),
        "unsure": detections([0.6]),
        "empty": detections([]),
    }
    record = write_record(tmp_path / "r", images)
    pool = Pool((), tuple(images))

    def best(**args):
        return helper("prediction_uncertainty", **args).query(record, pool, 1, 0).image_ids[0]

    assert best() == "unsure"
    assert best(aggregate="sum") == "crowded"
    assert best(empty_images="first") == "empty"


def test_views_are_those_of_criterion_and_selector():
    assert helper("random").views == ("plain",)
    assert helper("localization_tightness", "k_means_diversity").views == ("plain",)


OWN = '''
import numpy as np
from med_sslal.al.criteria.base import BoxCriterion
from med_sslal.al.selectors.base import Choice, Selector

class BoxArea(BoxCriterion):
    """Large boxes first."""
    name = "box_area"
    def box_values(self, record):
        boxes = np.asarray(record.section("plain").boxes)
        return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])

class WorstFirst(Selector):
    """Worst candidate first."""
    name = "worst_first"
    def select(self, record, candidates, values, budget, seed):
        return [Choice(int(row), "worst") for row in candidates[::-1][:budget]]

class TakesTooFew(WorstFirst):
    def select(self, record, candidates, values, budget, seed):
        return super().select(record, candidates, values, budget, seed)[1:]
'''


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "my_stages.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_stages"
    sys.modules.pop("my_stages", None)


def test_a_users_own_stages_are_found_by_dotted_path(tmp_path, own_module):
    sizes = {"a": 5.0, "b": 9.0, "c": 7.0, "d": 1.0}
    images = {
        name: detections([0.5], boxes=[[0.0, 0, side, side]], proposals=[[0.0, 0, 1, 1]])
        for name, side in sizes.items()
    }
    record = write_record(tmp_path / "r", images)
    pool = Pool((), tuple(images))
    strategy = helper(f"{own_module}.BoxArea", f"{own_module}.WorstFirst")
    selection = strategy.query(record, pool, 1, 0)
    assert selection.image_ids == ("c",), "the worse of the two best by area"
    assert selection.scores["box_area"] == {"a": 25.0, "b": 81.0, "c": 49.0, "d": 1.0}
    with pytest.raises(ValueError, match="must return 2 distinct candidates, found 1"):
        helper("entropy", f"{own_module}.TakesTooFew").query(record, pool, 2, 0)


def test_selection_json_holds_every_score_and_comes_back(tmp_path):
    record = write_record(tmp_path / "r", random_images(np.random.default_rng(6), 12, 1))
    pool = Pool(("x",), tuple(record.image_ids.tolist()))
    strategy = helper("localization_tightness", "representativeness", seed=5)
    selection = strategy.query(record, pool, 4, 2)
    write_selection(tmp_path / "selection.json", selection, cycle=2, header=record.header)
    assert read_selection(tmp_path / "selection.json") == selection
    content = json.loads((tmp_path / "selection.json").read_text())
    assert content["image_ids"] == list(selection.image_ids)
    assert (content["cycle"], content["seed"]) == (2, 5)
    assert content["box_count_bias"] == selection.box_count_bias is not None
    assert (content["model_hash"], content["config_hash"]) == ("model", "config")
    for name in ("localization_tightness", "representativeness"):
        assert set(content["scores"][name]) == set(pool.unlabelled)
    first = content["images"][0]
    assert first["rank"] == 1
    assert first["group_id"] == f"patient_{first['image_id']}"
    assert first["values"] == {
        name: content["scores"][name][first["image_id"]] for name in content["scores"]
    }
    assert first["reason"].startswith("localization_tightness ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"format_version": 99}', "format_version 99"),
        ('{"format_version": 1}', "no selection"),
        ("[]", "no format_version"),
        ("{", "not valid JSON"),
    ],
    ids=["newer", "without entries", "a list", "no JSON"],
)
def test_a_damaged_selection_is_refused(tmp_path, text, words):
    (tmp_path / "selection.json").write_text(text)
    with pytest.raises(DataError, match=words):
        read_selection(tmp_path / "selection.json")


OWN_HELPERS = """
from med_sslal.al.al_helpers import ActiveLearningHelper


class AlwaysTwo(ActiveLearningHelper):
    def __init__(self, budget_num: int, criterion: str = "entropy", *, seed: int) -> None:
        super().__init__(2, budget_num, [criterion], seed=seed)


class NoHelper:
    def __init__(self, budget_num: int, *, seed: int) -> None:
        self.budget_num = budget_num
"""


def test_a_users_own_helper_may_take_other_arguments(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_helpers.py").write_text(OWN_HELPERS)
    monkeypatch.syspath_prepend(tmp_path)
    config = small_config(make_voc(tmp_path / "voc"), tmp_path / "runs")
    config["al_settings"] |= {"type": "my_helpers.AlwaysTwo", "args": {"budget_num": 3}}
    path = write_config(tmp_path / "config.json", config)
    assert run_train("-c", path, "--dry-run") == 0
    capsys.readouterr()
    change = ["--set", "al_settings.args.criterion=entropi"]
    assert run_train("-c", path, *change) == 2
    assert "Did you mean 'entropy'?" in capsys.readouterr().err
    assert run_train("-c", path, "--set", "al_settings.type=my_helpers.NoHelper") == 2
    said = capsys.readouterr().err
    assert "al_settings.type: my_helpers.NoHelper must be a subclass of" in said
    assert not (tmp_path / "runs").exists()
