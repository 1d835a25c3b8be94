"""A schedule of strategies: which entry is in use, what is refused, and a whole run of one."""

import json
from pathlib import Path
from typing import Any

import pytest
from records import detections, write_record
from same_run import assert_same_run
from tiny import make_voc, quick_config, run_train, tiny_config, write_config

from med_sslal.__main__ import main
from med_sslal.al.al_helpers import ActiveLearningHelper
from med_sslal.al.pool import Pool
from med_sslal.al.schedule import in_use
from med_sslal.utils.errors import ConfigError
from med_sslal.utils.interrupt import StopRequest

FIRST = {"al_criterion": ["random"], "until": {"val_sens_mean": 0.5}}
SECOND = {"al_criterion": ["entropy", "k_center"], "until": {"val_sens_mean": 0.6, "val_AP": 0.2}}
LAST = {"al_criterion": ["flip_consistency", "class_conditional_similarity"]}


def helper(*schedule: dict[str, Any], **args: Any) -> ActiveLearningHelper:
    return ActiveLearningHelper(2, 2, schedule=list(schedule), seed=0, **args)


@pytest.mark.parametrize(
    ("history", "place", "reason"),
    [
        ([], 0, "val_sens_mean is not known"),
        ([(0.43, 0.9)], 0, "val_sens_mean 0.43 < 0.5"),
        ([(0.5, 0.1)], 1,
         "val_sens_mean 0.5 >= 0.5 after cycle 0; val_sens_mean 0.5 < 0.6 and val_AP 0.1 < 0.2"),
        ([(0.2, 0.1), (0.55, 0.3), (0.4, 0.3)], 1,
         "val_sens_mean 0.55 >= 0.5 after cycle 1; val_sens_mean 0.4 < 0.6"),
        ([(0.55, 0.3), (0.7, 0.1), (0.1, 0.7)], 1,
         "val_sens_mean 0.55 >= 0.5 after cycle 0; val_sens_mean 0.1 < 0.6"),
        ([(0.55, 0.3), (0.7, 0.2), (0.1, 0.0)], 2,
         "val_sens_mean 0.7 >= 0.6 and val_AP 0.2 >= 0.2 after cycle 1"),
        ([(0.9, 0.9)], 2, "val_sens_mean 0.9 >= 0.6 and val_AP 0.9 >= 0.2 after cycle 0"),
        ([(0.55, None)], 1, "val_sens_mean 0.55 >= 0.5 after cycle 0; "
         "val_sens_mean 0.55 < 0.6 and val_AP is not known"),
        ([(float("nan"), 1.0)], 0, "val_sens_mean nan < 0.5"),
    ],
    ids=["nothing known", "not yet", "just reached", "no way back", "both at once", "to the last",
         "two at a time", "no value", "nan"],
)  # fmt: skip
def test_the_entry_in_use_follows_from_the_metrics_so_far(history, place, reason):
    untils = [FIRST["until"], SECOND["until"], {}]
    metrics = [{"val_sens_mean": sens, "val_AP": ap, "cycle": 7} for sens, ap in history]
    found, entry = in_use(untils, metrics)
    assert (found, entry.number, entry.of, entry.reason) == (place, place + 1, 3, reason)


def test_a_query_is_made_by_the_entry_in_use_alone(tmp_path, caplog):
    images = {f"image{n}": detections([0.1 * n], embedding=[n * 1.0, 0.0]) for n in range(1, 9)}
    record = write_record(tmp_path / "r", images)
    pool = Pool((), tuple(images))
    one = helper(FIRST, SECOND, LAST)
    # All that the detector has to give at some time.
    assert one.views == ("plain", "flip") and one.columns == ("roi_features",)
    now = one.at(1, 3, [{"val_sens_mean": 0.1}, {"val_sens_mean": 0.5, "val_AP": 0.0}])
    assert now.views == ("plain",) and not now.columns
    with caplog.at_level("INFO"):
        selection = now.query(record, pool, 2, 1)
    plain = ActiveLearningHelper(2, 2, ["entropy", "k_center"], seed=0)
    assert plain.query(record, pool, 2, 1).items == selection.items
    words = "entry 2 of 3 of the schedule: val_sens_mean 0.5 >= 0.5 after cycle 1"
    assert str(selection.entry).startswith(words) and f"cycle 1: {words}" in caplog.text
    with pytest.raises(ValueError, match="a schedule has no one strategy"):
        one.query(record, pool, 2, 1)
    # Where nothing follows, it is a strategy like any other.
    alone = helper({"al_criterion": ["entropy", "k_center"]})
    assert alone.query(record, pool, 2, 1) == plain.query(record, pool, 2, 1)


WRONG: dict[str, tuple[list[dict[str, Any]] | None, list[str]]] = {
    "neither": (None, ["al_criterion: it is missing: give this, or a schedule in its place"]),
    "empty": ([], ["schedule: found an empty list; allowed: one entry or more"]),
    "until of the last": (
        [FIRST, FIRST],
        ["schedule[1].until: the last entry has none, as nothing follows it"],
    ),
    "no until before the last": (
        [{"al_criterion": ["random"]}, LAST],
        ["schedule[0].until: it is missing, and without it the next entry is never reached"],
    ),
    "until of nothing": (
        [{"al_criterion": ["random"], "until": {}}, LAST],
        ["schedule[0].until: it is missing"],
    ),
    "until in words": (
        [{**FIRST, "until": {"val_AP": "high"}}, LAST],
        ["schedule[0].until: found an object; allowed: object of (number)"],
    ),
    "misspelt keys": (
        [{"al_criteria": ["random"], "untl": {"val_AP": 1}}, LAST],
        [
            "schedule[0].al_criteria: unknown key. Did you mean 'al_criterion'",
            "schedule[0].untl: unknown key. Did you mean 'until'",
            "schedule[0].until: it is missing",
        ],
    ),
    "no criterion": ([{}], ["schedule[0].al_criterion: required key is missing"]),
    "wrong criterion": (
        [FIRST, {"al_criterion": ["entropi", "k_centre"]}],
        [
            "schedule[1].al_criterion[0]: unknown criterion 'entropi'. Did you mean 'entropy'?",
            "schedule[1].al_criterion[1]: unknown second stage 'k_centre'",
        ],
    ),
    "wrong argument": (
        [FIRST, {"al_criterion": [{"type": "entropy", "args": {"floor": 2}}]}],
        ["schedule[1].al_criterion[0].args.floor: found 2; allowed: number, 0 to 1"],
    ),
    "a string": (
        ["random", LAST],  # type: ignore[list-item]
        ['schedule: found the list ["random", '],
    ),
}


def config_of(tmp_path: Path, schedule: Any) -> Path:
    config = tiny_config(tmp_path / "nowhere", tmp_path / "runs")
    del config["al_settings"]["args"]["al_criterion"]
    if schedule is not None:
        config["al_settings"]["args"]["schedule"] = schedule
    return write_config(tmp_path / "config.json", config)


@pytest.mark.parametrize(("schedule", "sentences"), WRONG.values(), ids=WRONG)
def test_a_wrong_schedule_is_told_before_any_data_is_read(schedule, sentences, tmp_path, capsys):
    assert run_train("-c", config_of(tmp_path, schedule)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(sentences), lines
    for sentence in sentences:
        assert any(f"al_settings.args.{sentence}" in line for line in lines), lines
    assert not (tmp_path / "runs").exists()


def test_both_forms_at_once_are_refused(tmp_path, capsys):
    path = config_of(tmp_path, [FIRST, LAST])
    assert run_train("-c", path, "--set", 'al_settings.args.al_criterion=["random"]') == 2
    said = capsys.readouterr().err
    assert "al_settings.args.al_criterion: it is given beside a schedule" in said
    with pytest.raises(ConfigError, match="aggregate: the criterion has no 'aggregate'"):
        helper(FIRST, {"al_criterion": ["representativeness"]}, aggregate="max")
    helper(FIRST, {"al_criterion": ["entropy"]}, aggregate="max")


def test_what_detector_and_metrics_do_not_give_is_told_at_the_start(tmp_path, capsys):
    config = quick_config(make_voc(tmp_path / "voc"), tmp_path / "runs")
    args = config["al_settings"]["args"]
    del args["al_criterion"]
    path = tmp_path / "config.json"
    args["schedule"] = [{**FIRST, "until": {"val_sens_meen": 0.5, "loss": 1.0}}, LAST]
    assert run_train("-c", write_config(path, config)) == 2
    first, second = capsys.readouterr().err.splitlines()
    name = "al_settings.args.schedule[0].until"
    meant = "unknown metric 'val_sens_meen'. Did you mean 'val_sens_mean'? Allowed: val_"
    assert f"{name}.val_sens_meen: {meant}" in first
    assert f"{name}.loss: unknown metric 'loss'" in second
    args["schedule"] = [FIRST, {"al_criterion": ["ensemble_disagreement"]}]
    assert run_train("-c", write_config(path, config)) == 2
    said = capsys.readouterr().err
    assert "al_settings.args.schedule: ensemble_disagreement needs arch.args.box_head" in said
    assert not (tmp_path / "runs").exists()


METRIC = '''
"""Something that differs from cycle to cycle, and its opposite: one of them rises."""

from med_sslal.eval.eval_utils import MetricResult


def drift(predictions, annotations, infos, class_names, draws, seed):
    scores = [float(s) for found in predictions.values() for s in found.scores]
    mean = sum(scores) / max(len(scores), 1)
    return MetricResult({"up": mean, "down": -mean})
'''


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.slow
def test_a_run_changes_its_strategy_once_and_goes_on_to_the_bit(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_metrics.py").write_text(METRIC)
    monkeypatch.syspath_prepend(tmp_path)
    config = quick_config(make_voc(tmp_path / "voc"), tmp_path / "runs")
    config["metrics"] = ["sensitivity_k_fps", "my_metrics.drift"]
    config["ssl_settings"] = {"include_pseudolabels": False}
    config["trainer"] |= {"epochs": 1, "verbosity": 1, "keep_records": True}
    config["al_settings"]["num_cycles"] = 1
    args = config["al_settings"]["args"]
    args |= {"budget_num": 3, "al_criterion": ["random"]}
    path, runs = tmp_path / "config.json", tmp_path / "runs" / "tiny"
    assert run_train("-c", write_config(path, config), "--run-id", "probe") == 0
    rows = read(runs / "probe" / "summary.json")["cycles"]
    name = next(n for n in ("val_up", "val_down") if rows[1][n] > rows[0][n])
    second = ["entropy", "class_conditional_similarity"]
    config["al_settings"]["num_cycles"] = 3
    args |= {
        "al_criterion": None,
        "schedule": [
            {"al_criterion": ["random"], "until": {name: rows[1][name]}},
            {"al_criterion": second},
        ],
    }
    write_config(path, config)
    assert run_train("-c", path, "--run-id", "whole") == 0
    whole = runs / "whole"
    chosen = [read(whole / f"cycle_0{cycle}" / "selection.json") for cycle in range(3)]
    assert [each["criteria"] for each in chosen] == [["random", "top_k"], second, second]
    assert [each["schedule"]["number"] for each in chosen] == [1, 2, 2]
    reasons = [each["schedule"]["reason"] for each in chosen]
    assert reasons[0].startswith(f"{name} ") and " < " in reasons[0]
    assert reasons[1] == reasons[2] and reasons[1].endswith("after cycle 1")
    said = f"cycle 1: entry 2 of 2 of the schedule: {reasons[1]}: {' + '.join(second)}"
    assert said in (whole / "train.log").read_text()
    columns = [(whole / f"cycle_0{n}/record/plain/roi_features.npy").exists() for n in (0, 1)]
    assert columns == [False, True], "a pass records what its own query reads"
    page = (whole / "report.html").read_text()
    assert f"By entry 2 of 2 of the schedule: {reasons[1].replace('>', '&gt;')}." in page
    assert f"random until {name} &gt;= " in page

    # Killed while the first pool of the second entry is scored, and again in a later training.
    broken = runs / "broken"
    places = [("cycle_01/metrics.json", "cycle_01/selection.json"), ("cycle_02", "cycle_03")]
    words: list[Any] = ["-c", path, "--run-id", "broken"]
    for there, not_there in places:
        with monkeypatch.context() as patch:

            def check(self, there=there, not_there=not_there):
                if (broken / there).exists() and not (broken / not_there).exists():
                    raise MemoryError

            patch.setattr(StopRequest, "check", check)
            with pytest.raises(MemoryError):
                run_train(*words)
        words = ["--resume", broken]
    assert run_train("--resume", broken) == 0
    assert_same_run(whole, broken)
    capsys.readouterr()
    assert run_train("--resume", broken, "--set", "al_settings.args.schedule=null",
                     "--set", 'al_settings.args.al_criterion=["random"]') == 2  # fmt: skip
    assert "al_settings.args.schedule was [" in capsys.readouterr().err

    # The criterion of an entry gives the query of that entry.
    words = ["--record", whole / "cycle_01", "--budget", "3", "--first", "0"]
    words += ["--criterion", second[0], "--selector", second[1], "--out", tmp_path / "again"]
    assert main(["select", *map(str, words)]) == 0
    again = read(tmp_path / "again" / "selection.json")
    assert again["images"] == chosen[1]["images"] and again["schedule"] is None
