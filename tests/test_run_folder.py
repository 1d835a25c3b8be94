"""What lies where in a run folder, in which order, and that one module alone says so."""

import ast
import json
import re
from pathlib import Path

import pytest
from records import detections, write_record
from report_runs import make_run

import med_sslal
from med_sslal.base.checkpoint import save_checkpoint
from med_sslal.cli.origin import find_record
from med_sslal.report.run_data import load_run
from med_sslal.study import study_folder
from med_sslal.trainer import prediction_folder, run_folder
from med_sslal.trainer.run_folder import CycleFolder, RunFolder
from med_sslal.utils.errors import DataError
from med_sslal.utils.util import read_versioned, write_versioned

# What the names of a run's files look like in code.
NAMES = re.compile(
    r"cycle_|checkpoint_(last|epoch)|model_best|initial\.pth|initial_(selection|record)|latest$|"
    r"\b(config|environment|split|summary|pool|training|timing|metrics|selection|pseudo_labels|"
    r"predictions\w*|selection_detections)\.json|(froc|overlays|learning_curve)\.png|results\.csv|report\.html|train\.log|^record$"
)


def long_run(root: Path) -> RunFolder:
    """A run of cycles 99 and 100: their names sort the other way round."""
    run = RunFolder(make_run(root, queries=1))
    run.cycle(1).path.rename(run.cycle(100).path)
    run.cycle(0).path.rename(run.cycle(99).path)
    return run


def test_cycles_come_by_number(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for number in (100, 7, 99, 1000, 10):
        run.cycle(number).path.mkdir()
    (tmp_path / "cycle_old").mkdir()
    assert [cycle.number for cycle in run.cycles()] == [7, 10, 99, 100, 1000]


def test_the_last_cycle_is_the_one_of_the_highest_number(tmp_path: Path) -> None:
    run = long_run(tmp_path)
    for number in (99, 100):
        save_checkpoint(run.cycle(number).best, {"cycle": number})
        run.cycle(number).drop_records()
        write_record(run.cycle(number).record, {"a": detections([0.5])})
    path, content, _ = run.finished_best()
    assert (path.parent.name, content["cycle"]) == ("cycle_100", 100)
    assert find_record(str(run)).number == 100
    assert [cycle.number for cycle in load_run(run, None, None).cycles] == [99, 100]


def test_numbered_checkpoints_come_by_number(tmp_path: Path) -> None:
    folder = CycleFolder(tmp_path)
    for epoch in (9, 99, 100, 10):
        folder.numbered(epoch).touch()
    assert folder.resumable() == [folder.numbered(epoch) for epoch in (100, 99, 10, 9)]
    folder.last.touch()
    assert folder.resumable()[0] == folder.last


@pytest.mark.parametrize("with_student", [True, False])
def test_a_kill_while_a_cycle_is_reopened_finds_the_same_case_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_student: bool
) -> None:
    """After whichever file: until all is removed the training can be made longer."""
    unlink, left = Path.unlink, [0]

    def dying(self: Path, *, missing_ok: bool = False) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise MemoryError("the power is gone")
        unlink(self, missing_ok=missing_ok)

    for number in range(30):
        folder = CycleFolder(tmp_path / f"{number}")
        first = folder.supervised if with_student else folder
        first.path.mkdir(parents=True)
        for part in {folder, first}:
            write_versioned(part.training, 1, {"planned": "2 epochs"})
            for path in (part.metrics, part.val_predictions, part.best, part.last):
                path.touch()
        folder.gate.touch() if with_student else None
        left[0] = number
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", dying)
            try:
                folder.reopen()
            except MemoryError:
                assert folder.trained or first.trained
                assert folder.planned == "2 epochs" and folder.closed is None
                continue
        break
    assert 3 < number < 29 and not folder.trained and not first.trained
    assert first.resumable() and not first.val_predictions.exists()


def test_taking_the_supervised_model_again_makes_no_student_of_it(tmp_path: Path) -> None:
    folder = CycleFolder(tmp_path)
    folder.supervised.path.mkdir()
    write_versioned(folder.supervised.training, 1, {"seconds": 5})
    save_checkpoint(folder.supervised.best, {"x": 1})
    for _ in range(2):
        folder.take_supervised()
        assert folder.trained and not folder.rejected.exists()
    write_versioned(folder.training, 1, {"seconds": 7})
    for _ in range(2):
        folder.take_supervised()
        assert json.loads(folder.rejected.read_text())["seconds"] == 7


def test_a_run_that_trains_on_is_not_finished(tmp_path: Path) -> None:
    run = RunFolder(make_run(tmp_path, queries=1))
    assert run.finished
    run.cycles()[-1].reopen()
    assert not run.finished


def test_where_a_path_lies(tmp_path: Path) -> None:
    cycle = RunFolder(tmp_path).cycle(3)
    assert CycleFolder.around(cycle.record) is None
    RunFolder(tmp_path).config.touch()
    for path in (cycle.path, cycle.record, cycle.best):
        found = CycleFolder.around(path)
        assert found is not None and (found.number, found.run.path) == (3, tmp_path)
    assert CycleFolder.around(tmp_path) is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"format_version": 2}, "format_version 2, this program reads up to 1: update"),
        ({}, "no format_version"),
        ([], "no format_version"),
        ({"format_version": "1"}, "no format_version"),
        ({"format_version": True}, "no format_version"),
    ],
)
def test_a_version_that_is_not_read(tmp_path: Path, content: object, words: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=words):
        read_versioned(path, 1)


def test_a_version_that_is_no_longer_read(tmp_path: Path) -> None:
    write_versioned(tmp_path / "x.json", 2, {})
    with pytest.raises(DataError, match="format_version 2, this program reads from 3 on: make it"):
        read_versioned(tmp_path / "x.json", 3, oldest=3)


def test_versioned_files_come_back(tmp_path: Path) -> None:
    write_versioned(tmp_path / "x.json", 3, {"a": [1.5, None]})
    assert read_versioned(tmp_path / "x.json", 3) == {"format_version": 3, "a": [1.5, None]}


def literals(path: Path) -> list[tuple[int, str]]:
    """Strings of a module that are no prose: docstrings and sentences have spaces in them."""
    return [
        (node.lineno, node.value)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if not re.search(r"\s", node.value)
    ]


def test_no_other_module_spells_a_name_of_a_run_folder() -> None:
    # A study has a table too, and what `predict` writes is no run.
    own = [Path(one.__file__) for one in (run_folder, study_folder, prediction_folder)]
    spelt = [
        f"{path.name}:{line}: {text}"
        for path in Path(med_sslal.__file__).parent.rglob("*.py")
        if path not in own
        for line, text in literals(path)
        if NAMES.search(text)
    ]
    assert not spelt, "\n".join(spelt)
