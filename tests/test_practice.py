"""Practice mode: a run asks a person, waits, takes the answers, and goes on."""

import json
import multiprocessing
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from practice_runs import (
    export,
    human_config,
    killed,
    make_folder,
    newest_query,
    nth,
    research_config,
    touches,
    truth_of,
)
from same_run import read, same
from tiny import files_of, run_test, run_train, write_config

from med_sslal.__main__ import main
from med_sslal.base.checkpoint import load_checkpoint
from med_sslal.base.types import Annotation
from med_sslal.logger.logger import add_log_file
from med_sslal.practice.answers import Answer
from med_sslal.practice.journal import open_journal, read_journal
from med_sslal.practice.oracle import Progress
from med_sslal.ssl.pseudo_labels import PseudoLabels
from med_sslal.ssl.quality import hidden_truth_quality
from med_sslal.trainer.run_folder import RunFolder

Capture = pytest.CaptureFixture[str]


class Practice:
    """A run that waits for the answers to its first query."""

    def __init__(self, run: Path, pictures: Path) -> None:
        self.run, self.pictures, self.truth = run, pictures, truth_of(pictures)
        self.answers = RunFolder(run).answers

    def export(self, name: str = "answers.json", **others: Any) -> Path:
        """A file of answers to the newest query: the truth, but for `others`."""
        return export(newest_query(self.run)[1], self.truth, self.run.parent / name, **others)

    def take(self, *words: str | Path, query: Path | None = None) -> int:
        return main(["import", *map(str, (query or newest_query(self.run)[0], *words))])

    def standing(self) -> dict[str, Answer]:
        return read_journal(self.answers, ("class0",)).standing()

    def pool(self, cycle: int) -> dict[str, Any]:
        content: dict[str, Any] = read(RunFolder(self.run).cycle(cycle).pool)
        return content


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that waits, and its pictures."""
    folder = tmp_path_factory.mktemp("begun")
    pictures = make_folder(folder / "voc")
    config = write_config(folder / "config.json", human_config(pictures, folder / "runs"))
    assert run_train("-c", config, "--run-id", "h") == 0
    return folder


@pytest.fixture
def practice(begun: Path, tmp_path: Path) -> Practice:
    """A copy of that run; its pictures are shared."""
    run = tmp_path / "runs" / "h"
    shutil.copytree(begun / "runs" / "tiny" / "h", run)
    return Practice(run, begun / "voc" / "JPEGImages")


@pytest.fixture(scope="module")
def research(begun: Path) -> Path:
    """The run that knows the labels from the start."""
    config = research_config(begun / "voc" / "JPEGImages", begun / "runs")
    path = write_config(begun / "research.json", config)
    assert run_train("-c", path, "--run-id", "r") == 0
    return begun / "runs" / "tiny" / "r"


def assert_same_cycle(one: Path, other: Path, number: int) -> None:
    """Weights and selections of a cycle agree to the bit, and so do the labelled images."""
    first, second = (RunFolder(run).cycle(number) for run in (one, other))
    models = [load_checkpoint(cycle.best) for cycle in (first, second)]
    assert same(models[0]["model"], models[1]["model"])
    assert models[0]["labels_fingerprint"] == models[1]["labels_fingerprint"]
    assert first.queried == second.queried
    if first.queried:
        assert read(first.selection) == read(second.selection)
    assert read(first.pool)["labelled"] == read(second.pool)["labelled"]


@contextmanager
def another_has(opened: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Another process has what is opened, as long as this lasts."""
    fork = multiprocessing.get_context("fork")
    there, release = fork.Event(), fork.Event()

    def hold() -> None:
        with opened():
            there.set()
            release.wait(60)

    other = fork.Process(target=hold)
    other.start()
    try:
        assert there.wait(60)
        yield
    finally:
        release.set()
        other.join()


def test_a_run_waits_and_goes_on_with_the_answers(practice: Practice, capsys: Capture) -> None:
    folder, query = newest_query(practice.run)
    # Nothing is answered yet: nothing is trained.
    before = {name for name in files_of(practice.run) if "cycle" in name}
    assert run_train("--resume", practice.run) == 0
    assert {name for name in files_of(practice.run) if "cycle" in name} == before
    told = capsys.readouterr().out
    assert "0 of 3 images are answered" in told and "3 more must be answered" in told
    assert f"python -m med_sslal import {folder} FILE..." in told
    assert f"python -m med_sslal train --resume {practice.run}" in told
    assert not read(practice.run / "summary.json")["finished"]
    page = (practice.run / "report.html").read_text()
    assert f"query {query.query_id} of cycle 0: 0 of 3" in page
    first, second, third = (image.image_id for image in query.images)
    assert practice.take(practice.export(**{first: Annotation.empty(), second: "skipped"})) == 0
    assert f"next: python -m med_sslal train --resume {practice.run}" in capsys.readouterr().out
    assert run_train("--resume", practice.run) == 0
    before_it, pool = practice.pool(0), practice.pool(1)
    assert pool["labelled"] == [*before_it["labelled"], first, third] and pool["answers"] == 1
    assert set(pool["unlabelled"]) == {*before_it["unlabelled"]} - {first, second, third}
    assert newest_query(practice.run)[0].parent.name == "cycle_01"
    assert main(["status", str(practice.run)]) == 0
    told = capsys.readouterr().out
    assert "cycle 1 of 2: selected" in told and "1 skipped images" in told
    assert main(["report", str(practice.run)]) == 0
    # What another process has, as a training does, is at work.
    with another_has(lambda: closing(add_log_file(RunFolder(practice.run).log))):
        assert main(["status", str(practice.run)]) == 0
    told = capsys.readouterr().out
    assert "a process is at work in it: wait for its end" in told and "--resume" not in told


@pytest.mark.slow
def test_a_run_ends_as_research_does(practice: Practice, research: Path, capsys: Capture) -> None:
    for number in range(2):
        assert newest_query(practice.run)[0].parent.name == f"cycle_0{number}"
        assert practice.take(practice.export()) == 0
        assert run_train("--resume", practice.run) == 0
        assert practice.pool(number + 1)["answers"] == number + 1
    assert read(practice.run / "summary.json")["finished"]
    for number in range(3):
        assert_same_cycle(practice.run, research, number)
    assert main(["status", str(practice.run)]) == 0
    assert "nothing is left to do" in capsys.readouterr().out
    assert main(["test", "-r", str(practice.run)]) == 0
    assert "the data is not that" not in capsys.readouterr().err


def test_importing_twice_changes_nothing(practice: Practice, capsys: Capture) -> None:
    file = practice.export()
    assert practice.take(file, "--dry-run") == 0
    assert "3 of 3 images are answered" in capsys.readouterr().out
    assert not practice.answers.exists()
    assert practice.take(file) == 0
    content = practice.answers.read_bytes()
    assert practice.take(file) == 0
    assert "was imported before" in capsys.readouterr().out
    # The same answers in another file.
    other = practice.run.parent / "other.json"
    other.write_text(file.read_text() + "\n")
    assert practice.take(other) == 0
    assert "nothing has changed" in capsys.readouterr().out
    assert practice.answers.read_bytes() == content
    [line] = content.decode().splitlines()
    first = json.loads(line)["answers"][0]
    assert first["file_sha256"] and first["query_id"] == newest_query(practice.run)[1].query_id
    # What is taken back is told of, and stays so.
    assert practice.take("--withdraw", first["image_id"]) == 0
    assert practice.take(file) == 0
    assert "taken again; 1 of its answers are withdrawn: to put" in capsys.readouterr().out
    assert first["image_id"] not in practice.standing()


def test_a_file_without_an_answer_to_the_query_is_refused(
    practice: Practice, capsys: Capture
) -> None:
    folder, query = newest_query(practice.run)
    pending: Any = {image.image_id: "pending" for image in query.images}
    none = practice.run.parent / "none.json"
    none.write_text("[]")
    for empty in (none, practice.export("empty.json", **pending)):
        assert practice.take(empty) == 2
        assert f"{empty} has no answer to query {query.query_id}" in capsys.readouterr().err
    # The answers to the query before.
    file = practice.export()
    assert practice.take(file) == 0
    other = folder.with_name(f"query_{'0' * 12}")
    folder.rename(other)
    manifest = other / "manifest.json"
    manifest.write_text(manifest.read_text().replace(query.query_id, "0" * 12))
    capsys.readouterr()
    assert practice.take(file, query=other) == 2
    told = capsys.readouterr()
    assert f"it belongs to query '{query.query_id}'" in told.err and "before" not in told.out


def test_the_four_states_and_the_draft(practice: Practice, capsys: Capture) -> None:
    a, b, c = (image.image_id for image in newest_query(practice.run)[1].images)
    empty = Annotation.empty()
    assert practice.take(practice.export(**{a: empty, b: "in_progress", c: "pending"})) == 0
    told = capsys.readouterr().out
    assert "1 of 3 images are answered: 0 labelled, 1 confirmed empty, 0 skipped" in told
    assert "1 in progress, 1 pending" in told
    # A draft takes no answer's place, and what is pending is no negative.
    assert practice.take(practice.export("2.json", **{a: "in_progress", b: "skipped"})) == 0
    assert {name: each.state for name, each in practice.standing().items()} == {
        a: "confirmed_empty", b: "skipped", c: "labelled",
    }  # fmt: skip
    assert main(["status", str(practice.run)]) == 0
    assert f"next: python -m med_sslal train --resume {practice.run}" in capsys.readouterr().out
    # Taken back: pending again, and the run waits.
    assert practice.take("--withdraw", b, c) == 0
    assert "2 more must be answered" in capsys.readouterr().out
    assert list(practice.standing()) == [a]
    assert practice.take("--withdraw", b, "nobody") == 2
    told = capsys.readouterr().err
    assert f"{b} has no answer" in told and "nobody is no image of the query" in told


def test_boxes_are_padded_inside_the_image_and_the_reader_is_noted(practice: Practice) -> None:
    a = newest_query(practice.run)[1].images[0].image_id
    box = Annotation(np.array([[2, 20, 62, 40]], np.float32), np.array([1]), np.array([False]))
    file = practice.export(**{a: box})
    assert practice.take(file, "--pad", "5", "--reader", "newest") == 0
    assert practice.standing()[a].boxes.tolist() == [[0, 15, 64, 45]]
    # Read otherwise, the file says something else.
    assert practice.take(file, "--pad", "1") == 0
    assert practice.standing()[a].boxes.tolist() == [[1, 19, 63, 41]]
    assert practice.standing()[a].reader == "4"


def test_a_box_left_as_it_was_shown_is_not_padded(practice: Practice) -> None:
    image = next(image for image in newest_query(practice.run)[1].images if len(image.shown.labels))
    boxes = np.concatenate([image.shown.boxes[:1], np.array([[20, 20, 40, 40]], np.float32)])
    kept = Annotation(boxes, np.array([image.shown.labels[0], 1]), np.zeros(2, bool))
    assert practice.take(practice.export(**{image.image_id: kept}), "--pad", "5") == 0
    left, drawn = practice.standing()[image.image_id].boxes
    assert left == pytest.approx(boxes[0], abs=0.01)
    assert drawn.tolist() == [15, 15, 45, 45]


def test_all_that_is_wrong_is_listed_and_nothing_is_taken(
    practice: Practice, capsys: Capture, begun: Path
) -> None:
    a, b, _ = (image.image_id for image in newest_query(practice.run)[1].images)
    one, two = practice.export("1.json"), practice.export("2.json", **{a: Annotation.empty()})
    strange = practice.run.parent / "3.json"
    strange.write_text(one.read_text().replace("class0", "tumour"))
    picture = begun / "voc" / "JPEGImages" / f"{b}.jpg"
    content = picture.read_bytes()
    before = files_of(practice.run)
    try:
        picture.write_bytes(content + b" ")
        assert practice.take(one, two, strange, practice.run / "none.json") == 2
    finally:
        picture.write_bytes(content)
    told = capsys.readouterr().err
    assert f"2.json: {a} is answered otherwise than in a file before it" in told
    assert f"{b}: its file {b}.jpg has changed since the query was written" in told
    assert "unknown class 'tumour'" in told and "there is no file" in told
    assert files_of(practice.run) == before


def test_a_query_is_its_runs_wherever_that_lies(practice: Practice, capsys: Capture) -> None:
    folder, file = newest_query(practice.run)[0], practice.export()
    shutil.copytree(folder, practice.run.parent / folder.name)
    assert practice.take(file, query=practice.run.parent / folder.name) == 2
    assert "lies in no run" in capsys.readouterr().err
    # Another run's: another model chose.
    shutil.copytree(practice.run, other := practice.run.with_name("other"))
    chosen = RunFolder(other).cycle(0).selection
    chosen.write_text(json.dumps(read(chosen) | {"model_hash": "0" * 64}))
    assert practice.take(file, query=other / "cycle_00" / folder.name) == 2
    assert "is a query of cycle 0 of the run h, and not the one" in capsys.readouterr().err
    moved = practice.run.rename(practice.run.with_name("a b"))
    query, place = moved / "cycle_00" / folder.name, f"dataset.args.root={practice.pictures}"
    # So may the data.
    config = RunFolder(moved).config
    config.write_text(config.read_text().replace(str(practice.pictures), "/gone"))
    assert practice.take(file, query=query) == 2
    assert practice.take(file, "--set", "oracle.args.box_padding_px=3", query=query) == 2
    assert "oracle.args.box_padding_px cannot change here, only where" in capsys.readouterr().err
    assert practice.take(file, "--set", place, query=query) == 0
    assert f"next: python -m med_sslal train --resume '{moved}'" in capsys.readouterr().out
    assert len(RunFolder(moved).answers.read_text().splitlines()) == 1


def test_the_second_of_two_imports_at_once_is_refused(practice: Practice, capsys: Capture) -> None:
    with another_has(lambda: open_journal(practice.answers, ("class0",))):
        assert practice.take(practice.export()) == 2
    assert "another import adds to" in capsys.readouterr().err
    assert practice.answers.read_bytes() == b""
    assert practice.take(practice.export()) == 0 and len(practice.standing()) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["al_settings.args.init_num=3"], "al_settings.args.init_num: 12 of 16 training images"),
        (
            ["dataset.args.labels=truth.json"],
            'training images have a label, so that "labelled" leaves none',
        ),
        (["ssl_settings.oracle=true"], "ssl_settings.oracle asks for a truth"),
        (["oracle.args.min_answered=0"], "oracle.args.min_answered: found 0; allowed: number"),
        (["oracle.args.blind=2"], "oracle.args.blind: found 2; allowed: number, 0 to 1"),
        (["oracle.type=person"], "oracle.type: unknown type 'person'"),
        (["al_settings.args.budget_num=13"], "budget_num"),
        (["oracle.type=simulated", "oracle.args={}"], 'set oracle.type to "human"'),
        (["dataset.type=tests.practice_runs.NoFiles"], "needs a data set of picture files"),
        (["oracle.args.windows=[[-175, 275]]"], "oracle.args.windows: pictures of 8 bits"),
        (
            ["oracle.args.windows=[[275, -175]]"],
            "windows: found the list [[275, -175]]",
        ),
        (["oracle.args.neighbours=1"], "oracle.args.neighbours: no image has a place in a series"),
    ],
)
def test_a_config_that_cannot_ask_a_person(
    changes: list[str], message: str, begun: Path, capsys: Capture
) -> None:
    words = [word for change in changes for word in ("--set", change)]
    assert run_train("-c", begun / "config.json", *words) == 2
    assert message in capsys.readouterr().err


def test_a_query_that_a_kill_cut_is_written_anew(practice: Practice) -> None:
    folder, query = newest_query(practice.run)
    shutil.rmtree(folder)
    resume = ["train", "--resume", practice.run]
    assert killed(resume, touches("manifest.json"))
    assert not list((practice.run / "cycle_00").glob("query_*"))
    assert list((practice.run / "cycle_00").glob(".query_*"))
    assert run_train("--resume", practice.run) == 0
    assert len(list((practice.run / "cycle_00").glob("*query_*"))) == 1
    assert not list((practice.run / "cycle_00").glob(".query_*"))
    again = newest_query(practice.run)[1]
    assert [image.image_id for image in again.images] == [i.image_id for i in query.images]
    assert again.query_id != query.query_id


def test_an_import_that_is_killed_is_there_or_not(practice: Practice) -> None:
    words = ["import", newest_query(practice.run)[0], practice.export()]
    assert killed(words, touches("answers.jsonl"))
    assert not practice.answers.exists()
    # The journal is written, and its folder is opened to make that last.
    assert killed(words, lambda event, args: event == "open" and str(args[0]) == str(practice.run))
    assert len(practice.standing()) == 3
    assert practice.take(practice.export()) == 0
    assert len(practice.answers.read_text().splitlines()) == 1


@pytest.mark.slow
def test_a_training_stands_on_the_answers_that_it_began_with(
    practice: Practice, research: Path
) -> None:
    """A correction and a withdrawal that come in the middle hold from the next cycle on."""
    first, query = newest_query(practice.run)
    a, b, _ = (image.image_id for image in query.images)
    assert practice.take(practice.export()) == 0
    assert killed(["train", "--resume", practice.run], touches("cycle_01/.model_best"))
    other = Annotation(np.array([[3, 4, 20, 30]], np.float32), np.array([1]), np.array([False]))
    assert practice.take(practice.export("2.json", **{a: other})) == 0
    assert practice.take("--withdraw", b, query=first) == 0
    assert run_train("--resume", practice.run, "--set", "oracle.args.min_answered=0.6") == 0
    assert_same_cycle(practice.run, research, 1)
    assert practice.pool(1)["answers"] == 1
    pool = RunFolder(practice.run).cycle(1).pool
    aside = pool.rename(pool.with_name("aside"))
    assert run_train("--resume", practice.run) == 2, "no other file tells its answers"
    aside.rename(pool)
    waiting = newest_query(practice.run)[1].images[0].image_id
    assert practice.take(practice.export("3.json", **{waiting: "pending"})) == 0
    assert killed(["train", "--resume", practice.run], touches("cycle_02/.model_best"))
    pool = practice.pool(2)
    assert pool["answers"] == 4 and a in pool["labelled"]
    assert {b, waiting} <= {*pool["unlabelled"]}, "two of three were enough"
    names = ("class0",)
    labels = read_journal(practice.answers, names).labels(4)
    assert labels[a].boxes.tolist() == other.boxes.tolist()


@pytest.mark.slow
def test_killed_at_twenty_instants_nothing_is_lost_or_doubled(
    begun: Path, research: Path, tmp_path: Path
) -> None:
    draw, kills, number = random.Random(0), 0, 0
    while kills < 20:
        number += 1
        run = tmp_path / str(number) / "h"
        shutil.copytree(begun / "runs" / "tiny" / "h", run)
        shutil.rmtree(newest_query(run)[0])
        one, folder = Practice(run, begun / "voc" / "JPEGImages"), RunFolder(run)
        steps = 0
        while not folder.finished:
            waits = folder.cycles()[-1].query is not None
            words: list[str | Path] = ["train", "--resume", run]
            if waits and Progress.of(
                [image.image_id for image in newest_query(run)[1].images],
                read_journal(folder.answers, ("class0",)),
            ).missing(1.0):
                words = ["import", newest_query(run)[0], one.export(f"{steps}.json")]
            left = draw.randint(1, 8 if words[0] == "import" else 120)
            steps += 1
            kills += killed(words, nth(touches(str(run)), left if kills < 20 else 10**9))
        for cycle in range(3):
            assert_same_cycle(run, research, cycle)
        assert len(folder.answers.read_text().splitlines()) == 2
        assert [len(list(each.path.glob("*query_*"))) for each in folder.cycles()] == [1, 1, 0]
        assert not [name for name in files_of(run) if name.endswith(".partial")]


@pytest.mark.slow
def test_pseudo_labels_are_graded_by_the_labels_that_come_later(tmp_path: Path) -> None:
    pictures = make_folder(tmp_path / "voc")
    config = human_config(pictures, tmp_path / "runs")
    config["ssl_settings"] = {
        "include_pseudolabels": True,
        "tail": 0.0,
        "args": {"threshold": 0.05, "ignore_floor": None, "density_cap": None},
    }
    config["trainer"] |= {"epochs": 2}
    assert run_train("-c", write_config(tmp_path / "config.json", config), "--run-id", "h") == 0
    practice = Practice(tmp_path / "runs" / "tiny" / "h", pictures)
    assert practice.take(practice.export()) == 0
    assert run_train("--resume", practice.run) == 0
    cycles = [RunFolder(practice.run).cycle(number) for number in (0, 1)]
    earlier = [read(cycle.metrics)["earlier_pseudo_quality"] for cycle in cycles]
    assert earlier[0] == {}
    made = PseudoLabels.read(cycles[0].pseudo_labels).labels
    came = made.keys() & set(practice.pool(1)["labelled"])
    assert came, "some of what was asked for had pseudo-labels"
    wanted = hidden_truth_quality({name: made[name] for name in came}, practice.truth, ("class0",))
    assert earlier[1] == {"class0": wanted["class0"]._asdict()}
    assert earlier[1]["class0"]["recall"] is not None
    text = f"cycle 0: pseudo-labels, by the labels of {len(came)} images that came later"
    assert text in RunFolder(practice.run).log.read_text()
    assert "what readers have answered since" in RunFolder(practice.run).report.read_text()


@pytest.mark.slow
def test_labels_that_come_into_the_data_do_not_lock_a_run_out(
    tmp_path: Path, capsys: Capture
) -> None:
    pictures = make_folder(tmp_path / "voc")
    config = write_config(tmp_path / "config.json", human_config(pictures, tmp_path / "runs"))
    assert run_train("-c", config, "--run-id", "h") == 0
    practice = Practice(tmp_path / "runs" / "tiny" / "h", pictures)
    assert practice.take(practice.export()) == 0
    shutil.copy(pictures / "truth.json", pictures / "labels.json")
    assert run_train("--resume", practice.run) == 0
    assert "images have got a label since this run began" in capsys.readouterr().out
    assert len(practice.pool(1)["labelled"]) == len(practice.pool(0)["labelled"]) + 3
    assert run_test("-r", practice.run) == 0
    assert run_train("-c", config, "--run-id", "new") == 2
    assert 'so that "labelled" leaves none to ask for' in capsys.readouterr().err
