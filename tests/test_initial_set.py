"""The initial set in whole runs: full supervision, and images picked from embeddings."""

import json
from pathlib import Path

import pytest
from tiny import files_of, make_voc, quick_config, run_train, write_config

from med_sslal.cli.registries import registries
from med_sslal.config.overrides import parse_set
from med_sslal.config.parse_config import ConfigParser
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
