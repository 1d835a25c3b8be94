"""The initial set in whole runs: full supervision, and images picked from embeddings."""

import json
import shutil
from pathlib import Path

import pytest
from records import detections, write_record
from tiny import files_of, make_voc, quick_config, run_train, write_config

from med_sslal.al.al_helpers import ActiveLearningHelper
from med_sslal.al.pool import Pool
from med_sslal.base.base_dataset import Labels
from med_sslal.base.types import Annotation
from med_sslal.cli.registries import registries
from med_sslal.config.overrides import parse_set
from med_sslal.config.parse_config import ConfigParser
from med_sslal.data.coco import save_coco
from med_sslal.data.voc import PascalVOC
from med_sslal.utils.errors import ConfigError


def read(path: Path):
    return json.loads(path.read_text())


@pytest.fixture
def config(tmp_path: Path) -> dict:
    content = quick_config(make_voc(tmp_path / "voc"), tmp_path / "runs")
    content["al_settings"]["num_cycles"] = 0
    content["trainer"]["epochs"] = 1
    return content


def test_full_supervision_labels_the_whole_pool_and_queries_nothing(config, tmp_path):
    config["al_settings"]["args"] |= {"init_num": "all", "budget_num": 1000}
    # A schedule by steps has to know how many images there are.
    end = {"max_lr": 0.02, "total_steps": 6}
    config["lr_scheduler"] = {"type": "OneCycleLR", "args": end, "interval": "step"}
    path = write_config(tmp_path / "config.json", config)
    assert run_train("-c", path, "--run-id", "full") == 0
    folder = tmp_path / "runs" / "tiny" / "full"
    pool = read(folder / "cycle_00" / "pool.json")
    assert sorted(pool["labelled"]) == sorted(read(folder / "split.json")["train"])
    assert not pool["unlabelled"] and not (folder / "cycle_00" / "selection.json").exists()
    assert len(read(folder / "summary.json")["cycles"]) == 1
    before = files_of(folder)
    assert run_train("-c", path, "--dry-run") == 0
    assert run_train("--resume", folder, "--set", "al_settings.num_cycles=1") == 2
    assert files_of(folder) == before


def test_full_supervision_with_queries_is_refused_with_all_other_problems(config, tmp_path):
    config["al_settings"]["args"]["init_num"] = "all"
    path = write_config(tmp_path / "config.json", config)
    overrides = [parse_set("al_settings.num_cycles=2"), parse_set("seed=-1")]
    with pytest.raises(ConfigError) as caught:
        ConfigParser.from_file(path, registries(), overrides)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert any(
        "al_settings.num_cycles: found 2" in line and "set it to 0" in line for line in lines
    )


def test_labels_without_any_object_are_told_of(config, tmp_path, caplog):
    voc = PascalVOC(str(tmp_path / "voc"))
    none = dict.fromkeys(voc.labels.annotations, Annotation.empty())
    labels = Labels(voc.labels.class_names, none)
    save_coco(tmp_path / "voc" / "a.json", voc.images, labels, folder="JPEGImages")
    data = {"root": str(tmp_path / "voc"), "annotations": "a.json", "images": "JPEGImages"}
    config["dataset"] = {"type": "COCO", "args": data}
    path = write_config(tmp_path / "config.json", config)
    assert run_train("-c", path, "--dry-run") == 0
    assert "no image of validation or test has an object" in caplog.text


@pytest.mark.parametrize("how", ["k_center", "k_means_diversity", "typicality"])
def test_a_cold_start_covers_the_embeddings(tmp_path, how):
    # Three heaps of images, the first far larger: a draw would hardly meet the others.
    places = {"a": (30, [0.0, 0.0]), "b": (2, [90.0, 0.0]), "c": (2, [0.0, 90.0])}
    images = {
        f"{heap}{number:02d}": detections([0.5], embedding=[at[0] + number / 9, at[1]])
        for heap, (size, at) in places.items()
        for number in range(size)
    }
    records = [
        write_record(tmp_path / "forth", images),
        write_record(tmp_path / "back", dict(reversed(images.items()))),
    ]
    pool = Pool((), tuple(images))
    for seed in range(5):
        helper = ActiveLearningHelper(3, 1, ["entropy"], initial=how, seed=seed)
        assert helper.cold_start
        picked = [helper.initial_query(record, pool) for record in records]
        assert picked[0] == picked[1], "the order of files plays no part"
        assert sorted(name[0] for name in picked[0].image_ids) == ["a", "b", "c"]
        assert picked[0].criteria == ("random", how)
        assert all(item.reason for item in picked[0].items)
    too_many = ActiveLearningHelper(35, 1, ["entropy"], initial=how, seed=0)
    with pytest.raises(ConfigError, match=r"init_num 35 .* the 34 images"):
        too_many.initial_query(records[0], pool)


def test_a_drawn_initial_set_needs_no_record():
    assert not ActiveLearningHelper(3, 1, ["entropy"], seed=0).cold_start
    assert not ActiveLearningHelper("all", 1, ["entropy"], initial="k_center", seed=0).cold_start


@pytest.mark.slow
def test_a_run_picks_its_initial_set_once_and_keeps_it(config, tmp_path, capsys):
    config["al_settings"]["args"]["initial"] = "k_center"
    config["trainer"]["verbosity"] = 1
    path = write_config(tmp_path / "config.json", config)
    assert run_train("-c", path, "--run-id", "x") == 0
    folder = tmp_path / "runs" / "tiny" / "x"
    chosen = folder / "initial_selection.json"
    picked = read(chosen)
    assert read(folder / "cycle_00" / "pool.json")["labelled"] == picked["image_ids"]
    assert len(picked["image_ids"]) == 4 and picked["criteria"] == ["random", "k_center"]
    assert not (folder / "initial_record").exists()
    warning = "picked from embeddings of a backbone with random weights"
    assert (folder / "train.log").read_text().count(warning) == 1
    # A resumed run takes what is written, and makes no second pass.
    other = sorted(set(read(folder / "split.json")["train"]) - set(picked["image_ids"]))[:4]
    images = [
        {**item, "image_id": name} for item, name in zip(picked["images"], other, strict=True)
    ]
    chosen.write_text(json.dumps({**picked, "image_ids": other, "images": images}))
    shutil.rmtree(folder / "cycle_00")
    assert run_train("--resume", folder) == 0
    assert read(folder / "cycle_00" / "pool.json")["labelled"] == other
    assert (folder / "train.log").read_text().count(warning) == 1
    capsys.readouterr()
    change = "al_settings.args.initial=random"
    assert run_train("--resume", folder, "--set", change) == 2
    assert "al_settings.args.initial was 'k_center'" in capsys.readouterr().err
    # Weights that were trained are no reason for a warning; they pick otherwise.
    given = folder / "cycle_00" / "model_best.pth"
    assert run_train("-c", path, "--run-id", "y", "--init-from", given) == 0
    log = (folder.parent / "y" / "train.log").read_text()
    assert "picking the initial set: scoring 12 images" in log and warning not in log
