"""`python -m med_sslal select`: the run's own choice again, other choices, and what is refused."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from commands import blocks, run_command
from records import detections, random_images, write_record
from test_docs import merged
from tiny import files_of, make_voc, quick_config, run_train, write_config

from med_sslal.__main__ import main
from med_sslal.al.al_criteria import CRITERIA, SELECTORS
from med_sslal.cli.registries import registries
from med_sslal.config.jsonc import parse
from med_sslal.config.parse_config import ConfigParser
from med_sslal.report.overlays import PREDICTED, TRUTH

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "criteria.md"
OWN = ("localization_tightness", "k_means_diversity")


def select(record: str | Path, *more: str | Path) -> int:
    return main(["select", "--record", str(record), *(str(word) for word in more)])


def chosen(out: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((out / "selection.json").read_text())
    return result


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with exp_results/tiny/one, a run whose settings all differ from the defaults."""
    folder = tmp_path_factory.mktemp("select")
    config = quick_config(make_voc(folder / "voc", n=36), folder / "exp_results")
    config["seed"] = 11
    config["ssl_settings"] = {"include_pseudolabels": False}
    config["al_settings"]["num_cycles"] = 2
    config["al_settings"]["args"] = {
        "init_num": 4,
        "budget_num": 3,
        "al_criterion": list(OWN),
        "candidate_factor": 1.7,
        "aggregate": "max",
        "empty_images": "random",
    }
    config["trainer"] |= {"epochs": 1, "keep_records": True}
    path = write_config(folder / "config.json", config)
    assert run_train("-c", path, "--run-id", "one") == 0
    return folder


@pytest.fixture(scope="module")
def run(workplace: Path) -> Path:
    return workplace / "exp_results" / "tiny" / "one"


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """The run's folder, to be damaged."""
    heavy = shutil.ignore_patterns("checkpoint_*", "initial*")
    return Path(shutil.copytree(run, tmp_path / "copy", ignore=heavy))


@pytest.fixture
def loose(tmp_path: Path) -> Path:
    """A record of twelve images of four patients that lies in no run."""
    images = random_images(np.random.default_rng(0), 12, 1)
    groups = {name: f"p{number % 4}" for number, name in enumerate(images)}
    labelled = {"known": detections([0.5], embedding=[0.0] * 6)}
    write_record(tmp_path / "loose", images, labelled=labelled, groups=groups)
    return tmp_path / "loose"


@pytest.mark.parametrize("cycle", [0, 1])
def test_the_runs_own_strategy_gives_its_own_selection(
    run: Path, tmp_path: Path, cycle: int, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run / f"cycle_{cycle:02d}"
    words = ["--criterion", OWN[0], "--selector", OWN[1], "--budget", "3", "--first", "0"]
    assert select(folder / "record", *words, "--out", tmp_path / "out") == 0
    assert chosen(tmp_path / "out") == json.loads((folder / "selection.json").read_text())
    assert "these are the run's own images, in its order" in capsys.readouterr().out


def test_a_run_folder_stands_for_its_newest_record(run: Path, tmp_path: Path) -> None:
    words = ["--criterion", OWN[0], "--selector", OWN[1], "--budget", "3", "--first", "0"]
    for name, path in (("run", run), ("cycle", run / "cycle_01")):
        assert select(path, *words, "--out", tmp_path / name) == 0
        assert chosen(tmp_path / name)["cycle"] == 1


@pytest.mark.parametrize(
    ("criterion", "change"),
    [
        ("random", ["--seed", "12"]),
        ("random", ["--cycle", "5"]),
        ("entropy", ["--aggregate", "max"]),
        ("entropy", ["--empty-images", "first"]),
        ("entropy", ["--candidate-factor", "null"]),
        ("entropy", ["--max-per-group", "2"]),
    ],
    ids=lambda part: part if isinstance(part, str) else " ".join(part),
)
def test_an_option_takes_the_place_of_the_default(
    loose: Path, tmp_path: Path, criterion: str, change: list[str]
) -> None:
    words = ["--criterion", criterion, "--selector", "k_center", "--budget", "5"]
    assert select(loose, *words, "--out", tmp_path / "default") == 0
    assert select(loose, *words, *change, "--out", tmp_path / "other") == 0
    default, other = (chosen(tmp_path / name) for name in ("default", "other"))
    assert (default["image_ids"], default["scores"]) != (other["image_ids"], other["scores"])


def test_another_criterion_takes_its_own_aggregate(run: Path, tmp_path: Path) -> None:
    """`random` has none, and entropy's is the mean."""
    assert select(run, "--criterion", "random", "--budget", "2", "--out", tmp_path / "a") == 0
    long = json.dumps({"type": "entropy", "args": {"aggregate": "mean", "empty_images": "median"}})
    for name, criterion in (("short", "entropy"), ("long", long)):
        assert select(run, "--criterion", criterion, "--budget", "4", "--out", tmp_path / name) == 0
    assert chosen(tmp_path / "short") == chosen(tmp_path / "long")
    assert chosen(tmp_path / "short")["criteria"] == ["entropy", "top_k"]


def test_the_table_explains_every_image(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--criterion", "margin", "--selector", "representativeness", "--budget", "4"]
    assert select(run / "cycle_00", *words, "--out", tmp_path / "out") == 0
    said = capsys.readouterr().out.splitlines()
    images = chosen(tmp_path / "out")["images"]
    assert said[0].startswith("margin, representativeness: 4 of 14 unlabelled images, seed 11")
    assert said[1].split() == [
        "rank", "image", "patient", "margin", "representativeness", "run's", "reason",
    ]  # fmt: skip
    theirs = json.loads((run / "cycle_00" / "selection.json").read_text())["image_ids"]
    for line, image in zip(said[2:6], images, strict=True):
        cells = line.split(maxsplit=6)
        values = [f"{value:.4f}" for value in image["values"].values()]
        assert cells[:5] == [str(image["rank"]), image["image_id"], image["group_id"], *values]
        name = image["image_id"]
        assert cells[5] == (str(theirs.index(name) + 1) if name in theirs else "-")
        assert cells[6] == image["reason"] and "place" in cells[6]
    both = len(set(theirs) & {image["image_id"] for image in images})
    assert f"{both} of these 4 are among the 3 that the run took" in said[7]
    assert said[-1] == f"results: {tmp_path / 'out'}"


def colours(path: Path) -> tuple[int, int]:
    """Number of pixels in the colour of predictions and in that of labels."""
    picture = cv2.imread(str(path))[..., ::-1].astype(int)
    targets = ([int(name[i : i + 2], 16) for i in (1, 3, 5)] for name in (PREDICTED, TRUTH))
    predicted, true = ((np.abs(picture - target).max(2) < 12).sum() for target in targets)
    return int(predicted), int(true)


def test_explain_tells_what_the_run_noted(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run's own criterion is the default, and others stand beside it."""
    before = files_of(run)
    pair = '["entropy", "margin"]'
    for cycle in (0, 1):
        folder = run / f"cycle_{cycle:02d}"
        noted = json.loads((folder / "finds.json").read_text())
        cells = [f"{each['all']:.2f}" for each in noted["findings"].values()]
        for each in noted["findings"].values():
            sign = "-" if each["undefined"] else f"{each['correlation']:+.2f}"
            cells += [f"{each['top']:.2f}", f"({sign})"]
        for place in ("", "record", "record_val"):
            assert select(folder / place, "--explain") == 0
            said = capsys.readouterr().out
            assert f"cycle {cycle}: an image of the best {noted['n_top']} of" in said
            (every,) = [line for line in said.splitlines() if line.startswith("all images")]
            (own,) = [line for line in said.splitlines() if line.startswith(OWN[0])]
            assert [*every.split()[2:], *own.split()[1:]] == cells
    words = [part for name in ("random", pair, OWN[0]) for part in ("--criterion", name)]
    assert select(run, "--explain", *words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert own.split() in [line.split() for line in lines]
    assert [line.split("  ")[0] for line in lines[4:7]] == ["random", pair, OWN[0]]
    assert files_of(run) == before


def other_data(run: Path) -> None:
    """The run's config leads to data with other labels."""
    config = json.loads((run / "config.json").read_text())
    config["dataset"]["args"]["root"] = str(make_voc(run.parent / "other", n=8))
    (run / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(("until", "criterion"), [(0.0, OWN[0]), (2.0, "random")])
def test_explain_takes_the_entry_of_a_schedule_that_chose(
    copy: Path, capsys: pytest.CaptureFixture[str], until: float, criterion: str
) -> None:
    config = json.loads((copy / "config.json").read_text())
    first = {"al_criterion": ["random"], "until": {"val_AP50": until}}
    config["al_settings"]["args"] |= {
        "al_criterion": None,
        "schedule": [first, {"al_criterion": list(OWN)}],
    }
    (copy / "config.json").write_text(json.dumps(config))
    assert select(copy, "--explain") == 0
    assert capsys.readouterr().out.splitlines()[4].split()[0] == criterion


def drop_val(run: Path) -> None:
    for record in run.glob("cycle_*/record_val"):
        shutil.rmtree(record)


def other_labels(run: Path) -> None:
    """One box of the data is another now."""
    config = json.loads((run / "config.json").read_text())
    root = Path(shutil.copytree(config["dataset"]["args"]["root"], run.parent / "changed"))
    for path in root.glob("Annotations/*.xml"):
        path.write_text(re.sub(r"<xmin>\d+", "<xmin>1", path.read_text()))
    config["dataset"]["args"]["root"] = str(root)
    (run / "config.json").write_text(json.dumps(config))


def no_data(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    config["dataset"]["args"]["root"] = str(run / "nowhere")
    (run / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "words", "sentence"),
    [
        (drop_val, ["--explain"], "has no record of the validation images: a run keeps the newest"),
        (other_data, ["--explain"], "another data set than its run's config names now"),
        (other_labels, ["--explain"], "other labels than its run's config names now"),
        (no_data, ["--explain"], "--explain needs the run's labels, but there is no folder"),
        (None, ["--explain", "--criterion", "flip_consistency"], "has no view 'flip', only plain"),
        (None, ["--explain", "--criterion", "k_center"], "is a second stage and needs"),
        (
            None,
            ["--explain", "--criterion", '["margin", "k_center"]'],
            "give --criterion margin",
        ),
        (None, ["--explain", "--budget", "3"], "--budget: --explain chooses nothing"),
        (None, ["--explain", "--max-per-group", "3"], "--max-per-group: --explain chooses"),
        (None, ["--budget", "1"], "give one --criterion"),
        (None, ["--criterion", "entropy"], "give one --criterion (a JSON list combines several)"),
        (None, ["--criterion", "entropy", "--criterion", "margin", "--budget", "1"], "give one"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_what_cannot_be_explained_is_one_sentence(
    copy: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None] | None,
    words: list[str],
    sentence: str,
) -> None:
    if damage is not None:
        damage(copy)
    assert select(copy, *words) == 2
    said = capsys.readouterr()
    assert not said.out and len(said.err.splitlines()) == 1
    assert sentence in said.err


def test_a_record_that_is_not_of_the_pool_or_of_no_run(
    run: Path, loose: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--criterion", "entropy", "--budget", "1"]
    assert select(run / "cycle_01" / "record_val", *words) == 2
    assert "is of the validation images, which nothing is chosen from" in capsys.readouterr().err
    assert select(loose, "--explain", "--criterion", "entropy") == 2
    assert "lies in no run, and only a run has validation images" in capsys.readouterr().err


def test_pictures_show_predictions_and_no_label(run: Path, tmp_path: Path) -> None:
    """The legend has the colour of predictions too, so one image has less of it than four."""
    words = ["--criterion", "entropy", "--empty-images", "last", "--budget", "4"]
    for first in (1, 4):
        out = tmp_path / f"first{first}"
        assert select(run / "cycle_01", *words, "--first", str(first), "--out", out) == 0
    one, four = (colours(tmp_path / f"first{first}" / "images.png") for first in (1, 4))
    assert 0 < one[0] < four[0]
    assert one[1] == four[1] == 0


def test_results_go_to_the_run_unless_told_otherwise(copy: Path) -> None:
    before = files_of(copy)
    assert select(copy, "--criterion", "entropy", "--selector", "k_center", "--budget", "2") == 0
    new = {Path(name).parts for name in files_of(copy) - before}
    assert {parts[1] for parts in new} == {"selection.json", "images.png"}
    (folder,) = {parts[0] for parts in new}
    assert re.fullmatch(r"select_entropy_k_center_\d{8}_\d{6}", folder)


def test_without_the_data_there_are_no_pictures(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["dataset"]["args"]["root"] = str(tmp_path / "gone")
    (copy / "config.json").write_text(json.dumps(config))
    out = tmp_path / "out"
    assert select(copy, "--criterion", "entropy", "--budget", "2", "--out", out) == 0
    assert files_of(out) == {"selection.json"}
    said = capsys.readouterr().out
    assert (
        f"no pictures: there is no folder {tmp_path / 'gone'}, which is dataset.args.root" in said
    )


def test_a_record_outside_of_a_run(loose: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--criterion", "entropy", "--budget", "5", "--max-per-group", "2"]
    assert select(loose, *words) == 0
    (out,) = loose.parent.glob("select_entropy_top_k_*")
    found = chosen(out)
    assert (found["seed"], found["cycle"]) == (0, 0)
    groups = [image["group_id"] for image in found["images"]]
    assert len(groups) == 5 and max(map(groups.count, groups)) <= 2
    assert not (out / "images.png").exists()
    said = capsys.readouterr().out
    assert "no pictures: the record lies in no run" in said
    assert "its data set and model are not checked" in said


def test_criteria_can_be_combined(loose: Path, tmp_path: Path) -> None:
    words = ["--criterion", '["entropy", {"type": "margin", "weight": 2}]', "--budget", "3"]
    assert select(loose, *words, "--out", tmp_path / "out") == 0
    assert set(chosen(tmp_path / "out")["scores"]) == {"combination", "entropy", "margin"}


LONG = '{"type": "entropy", "args": {"agregate": "max"}}'


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--budget", "13"], "budget: found 13; allowed: up to the 12 unlabelled images of"),
        (["--budget", "0"], "--budget: found 0; allowed: integer, 1 or more"),
        (["--criterion", "entropi"], "unknown criterion 'entropi'. Did you mean 'entropy'?"),
        (["--criterion", '["entropy"]'], "give --criterion entropy in its place"),
        (
            ["--criterion", '[["margin", "entropy"], "k_center"]'],
            """give --criterion '["margin", "entropy"]' --selector k_center in""",
        ),
        (["--criterion", LONG], "unknown key. Did you mean 'aggregate'"),
        (["--criterion", "k_center"], "'k_center' is a second stage and needs a criterion"),
        (["--selector", "k_centre"], "unknown second stage 'k_centre'. Did you mean 'k_center'?"),
        (["--criterion", "flip_consistency"], "has no view 'flip', only plain"),
        (["--selector", "class_conditional_similarity"], "has no roi_features"),
        (["--criterion", "box_self_consistency"], "has no refined_boxes: score the pool again"),
        (["--max-per-group", "1"], "leaves 4 images of 4 patients, fewer than the budget of 5"),
        (["--aggregate", "maximum"], '--aggregate: found the string "maximum". Did you mean "max"'),
        (
            ["--candidate-factor", "0.5"],
            "--candidate-factor: found 0.5; allowed: number, 1",
        ),
        (["--suppress-adjacent", "2"], "suppress_adjacent needs the data"),
        (["--spread-groups", "true"], "spread_groups needs the data"),
        (["--out", "."], "is not empty: name another one with --out"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_a_wrong_option_is_one_sentence(
    loose: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(loose.parent)
    before = files_of(loose.parent)
    default = [] if "--criterion" in words else ["--criterion", "entropy"]
    assert select(loose, *default, "--budget", "5", *words) == 2
    said = capsys.readouterr()
    assert not said.out and len(said.err.splitlines()) == 1
    assert sentence in said.err
    assert files_of(loose.parent) == before


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--criterion", '{"type": entropy}'], "argument --criterion: is no JSON"),
        (["--first", "-1"], "argument --first: found -1; allowed: integer, 0 or more"),
        (["--budget", "2.5"], "argument --budget: found 2.5; allowed: integer"),
    ],
)
def test_a_wrong_value_is_refused_by_the_parser(
    loose: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        select(loose, "--criterion", "entropy", "--budget", "2", *words)
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


def header_with(**changes: str) -> Callable[[Path], None]:
    """Changes entries of the newest record's header."""

    def change(run: Path) -> None:
        path = run / "cycle_01" / "record" / "header.json"
        content = json.loads(path.read_text())
        content["header"] |= changes
        path.write_text(json.dumps(content))

    return change


def cut(name: str, size: int) -> Callable[[Path], None]:
    """Cuts a file of the newest record short."""

    def change(run: Path) -> None:
        path = run / "cycle_01" / "record" / name
        path.write_bytes(path.read_bytes()[:size])

    return change


def without_query(run: Path) -> None:
    """As a run is left that has never had to score its pool."""
    drop_records(run)
    config = json.loads((run / "config.json").read_text())
    config["al_settings"]["num_cycles"] = 0
    (run / "config.json").write_text(json.dumps(config))


def drop_records(run: Path) -> None:
    for record in run.glob("cycle_*/record"):
        shutil.rmtree(record)


@pytest.mark.parametrize(
    ("damage", "path", "sentence"),
    [
        (lambda run: None, "nowhere", "there is no pool record"),
        (without_query, "", "a run with al_settings.num_cycles 0 scores no pool"),
        (lambda run: None, "cycle_00/record/plain/boxes.npy", "there is no pool record"),
        (drop_records, "", "has no pool record: a run keeps the newest ones only, here trainer."),
        (drop_records, "cycle_00", "run with trainer.keep_records true to keep them all"),
        (lambda run: None, "cycle_02", "cycle 2 has made none (the last one never does)"),
        (drop_records, "cycle_00/record", "has no pool record: a run keeps the newest ones only"),
        (cut("plain/boxes.npy", 200), "", "boxes.npy"),
        (cut("header.json", 100), "", "header.json is not valid JSON"),
        (header_with(images_fingerprint="x"), "", "is of another data set than"),
        (header_with(model_hash="x"), "", "is of another model than"),
        (header_with(model_hash="x", images_fingerprint="y"), "", "another data set and model"),
        (other_data, "", "is of another data set than its run's config names now"),
    ],
    ids=[
        "nothing",
        "run without a query",
        "a file",
        "run without records",
        "cycle without record",
        "last cycle",
        "dropped record",
        "truncated column",
        "truncated header",
        "fingerprint",
        "model",
        "both",
        "data changed",
    ],
)
def test_a_wrong_record_is_one_sentence(
    copy: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    path: str,
    sentence: str,
) -> None:
    damage(copy)
    before = files_of(copy)
    assert select(copy / path, "--criterion", "entropy", "--budget", "2") == 2
    said = capsys.readouterr()
    assert not said.out and len(said.err.splitlines()) == 1
    assert sentence in said.err
    assert files_of(copy) == before


COMMANDS = [line for block in blocks(PAGE, "sh") for line in block.splitlines()]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_runs(command: str, workplace: Path) -> None:
    before = set((workplace / "exp_results").rglob("images.png"))
    assert run_command(command, workplace) == 0
    new = set((workplace / "exp_results").rglob("images.png")) - before
    assert len(new) == (" select " in command and "--explain" not in command)


@pytest.mark.parametrize("number", range(len(blocks(PAGE, "json"))))
def test_a_config_of_the_page_is_valid(number: int) -> None:
    config = parse((ROOT / "config.json").read_text(), "config.json").value
    block = json.loads(blocks(PAGE, "json")[number])
    ConfigParser(merged(config, block), registries())


def test_the_page_explains_every_criterion_and_second_stage() -> None:
    headings = re.findall(r"^### (.*)$", PAGE.read_text(), re.M)
    # One name stands for both.
    both = [f"{name} (second stage)" if name in CRITERIA else name for name in SELECTORS]
    assert sorted(headings) == sorted([*CRITERIA, *both])
