"""ActiveLearningHelper: its arguments, the initial set, budgets, reasons and selection.json."""

import json
import sys

import numpy as np
import pytest
from records import detections, random_images, write_record

from med_sslal.al.al_helpers import ActiveLearningHelper, check_pool
from med_sslal.al.pool import Pool
from med_sslal.al.selection_io import read_selection, write_selection
from med_sslal.utils.errors import ConfigError, DataError


def helper(*names, init=2, budget=3, seed=0, **args):
    return ActiveLearningHelper(init, budget, list(names) or ["entropy"], seed=seed, **args)


def arguments(**changes):
    return {
        "init_num": 2,
        "budget_num": 3,
        "al_criterion": ["entropy"],
        "candidate_factor": "auto",
        "aggregate": None,
        "empty_images": "median",
        **changes,
    }


WRONG = {
    "no image at the start": ({"init_num": 0}, "init_num", "found 0; allowed: 1 or more"),
    "no budget": ({"budget_num": -1}, "budget_num", "found -1; allowed: 1 or more"),
    "no criterion": ({"al_criterion": []}, "al_criterion", "found 0 names"),
    "three criteria": ({"al_criterion": ["entropy"] * 3}, "al_criterion", "found 3 names"),
    "unknown criterion": ({"al_criterion": ["entropi"]}, "al_criterion", "Did you mean 'entropy'?"),
    "the right names": ({"al_criterion": ["entropi"]}, "al_criterion", "localization_tightness"),
    "two uncertainty criteria": (
        {"al_criterion": ["entropy", "localization_tightness"]},
        "al_criterion",
        "'localization_tightness' is an uncertainty criterion, and there can be only one",
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
    "factor under 1": ({"candidate_factor": 0.5}, "candidate_factor", "found 0.5"),
    "factor not finite": ({"candidate_factor": float("nan")}, "candidate_factor", "found nan"),
    "aggregate without boxes": (
        {"al_criterion": ["random"], "aggregate": "max"},
        "aggregate",
        "looks at no boxes",
    ),
    "empty images without boxes": (
        {"al_criterion": ["representativeness"], "empty_images": "first"},
        "empty_images",
        "looks at no boxes",
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
    assert [problem[0] for problem in problems] == [name]
    assert words in problems[0][1]
    with pytest.raises(ConfigError, match=name):
        ActiveLearningHelper(**arguments(**changes), seed=0)


def test_all_problems_come_at_once():
    wrong = arguments(init_num=0, budget_num=0, al_criterion=["a", "b"], candidate_factor=0)
    names = [name for name, _ in ActiveLearningHelper.check_args(wrong)]
    assert names == ["init_num", "budget_num", "candidate_factor", "al_criterion", "al_criterion"]


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
    def box_values(self, section):
        boxes = np.asarray(section.boxes)
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
        ('{"format_version": 99}', "format version 99"),
        ('{"format_version": 1}', "no selection"),
        ("[]", "no selection"),
        ("{", "not valid JSON"),
    ],
    ids=["newer", "without entries", "a list", "no JSON"],
)
def test_a_damaged_selection_is_refused(tmp_path, text, words):
    (tmp_path / "selection.json").write_text(text)
    with pytest.raises(DataError, match=words):
        read_selection(tmp_path / "selection.json")
