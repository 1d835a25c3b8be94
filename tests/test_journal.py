"""The journal of answers, and what a run makes of it: pools, shares and seconds."""

import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from practice_runs import answer
from records import detections, write_record

from med_sslal.al.al_helpers import ActiveLearningHelper
from med_sslal.al.budget import CostModel
from med_sslal.al.pool import Pool
from med_sslal.base.types import Annotation
from med_sslal.practice.answers import Answer
from med_sslal.practice.journal import Journal, Told, open_journal, read_journal
from med_sslal.practice.oracle import HumanOracle, Progress
from med_sslal.utils.errors import DataError, UserError


def told(*answers: Answer) -> Told:
    return Told("q", (), answers)


def test_a_torn_tail_is_ignored_and_cut(tmp_path: Path) -> None:
    path, names = tmp_path / "answers.jsonl", ("x",)
    empty = Annotation.empty()
    with open_journal(path, names) as first:
        first.add(told(answer("a", empty), answer("b", "skipped")), {"a": "1"})
    whole = path.read_bytes()
    for cut in (1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole + whole[:cut])
        assert len(read_journal(path, names)) == 1
    with open_journal(path, names) as second:
        second.add(told(answer("b", empty)), {})
    assert path.read_bytes().startswith(whole) and len(path.read_bytes().splitlines()) == 2
    assert list(read_journal(path, names).labels()) == ["a", "b"]
    assert list(read_journal(path, names).labels(1)) == ["a"]
    path.write_bytes(b"{}\n" + whole)
    with pytest.raises(DataError, match="line 1 is no such file"):
        read_journal(path, names)
    path.write_bytes(whole.replace(b'"skipped"', b'"skipped'))
    with pytest.raises(DataError, match="line 1 is damaged"):
        read_journal(path, names)


def test_a_full_disk_takes_no_part_of_an_import(tmp_path: Path) -> None:
    path, names = tmp_path / "answers.jsonl", ("x",)
    with open_journal(path, names) as writer:
        writer.add(told(answer("c", "skipped")), {})
        writer.add(told(answer("a", "skipped")), {})
    assert list(read_journal(path, names).standing()) == ["c", "a"]
    whole = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open_journal(path, names) as writer:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 20, hard))
        try:
            with pytest.raises(UserError, match=r"cannot write .*answers\.jsonl"):
                writer.add(told(answer("b", "skipped")), {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == whole


def oracle(*imports: Told, **args: Any) -> HumanOracle:
    return HumanOracle({"i": Annotation.empty()}, Journal(imports), **args)


def test_the_next_pool_is_what_is_answered_by_then() -> None:
    empty, train = Annotation.empty(), "abcdefgi"
    first = told(answer("b", empty), answer("a", "skipped"), answer("c", "in_progress"))
    pool = oracle(first).pool_after(Pool(("i",), tuple("abcdefg")), "abc", train)
    assert pool == Pool(("i", "b"), tuple("cdefg"), 1), "skipped is out, a draft is unlabelled"
    # The second query, in its order; then what came late; what was taken back is unlabelled.
    late = told(answer("a", empty), answer("d", empty), answer("c", empty))
    second = told(answer("f", empty), answer("b", "withdrawn"))
    both = oracle(first, late, second)
    after = both.pool_after(pool, "fed", train)
    assert after == Pool(("i", "f", "d", "a", "c"), tuple("beg"), 3)
    assert list(both.label(pool.labelled, pool.answers)) == ["i", "b"], "as of then"
    with pytest.raises(DataError, match="no label for 1 image"):
        both.label(("b",), 3)
    with pytest.raises(DataError, match="stands on 4 imports of answers, and its journal has 3"):
        both.label(("i",), 4)


def test_a_share_of_the_answers_is_enough() -> None:
    journal = Journal((told(answer("a", "skipped"), answer("b", "in_progress")),))
    progress = Progress.of("abcdefghij", journal)
    assert (progress.answered, progress.total) == (1, 10)
    assert [progress.missing(share) for share in (0.1, 0.11, 0.3, 1.0)] == [0, 1, 2, 9]
    assert Progress.of([str(n) for n in range(30)], Journal()).missing(0.1) == 3


def test_seconds_are_those_of_the_reader_once_twenty_answers_have_a_time(tmp_path: Path) -> None:
    costs = CostModel("seconds", seconds_per_image=10, seconds_per_box=20)
    box, one = np.array([[1, 1, 9, 9]], np.float32), np.array([1])

    def of(n: int, **more: Any) -> CostModel:
        # Half as long as is said of an image with a box, and lunch.
        answers = [Answer(f"i{k}", "labelled", box, one, seconds=15.0) for k in range(n)]
        answers += [Answer("lunch", "labelled", box, one, seconds=3000.0)]
        answers += [Answer("skipped", "skipped", box[:0], one[:0], seconds=1.0)]
        journal = Journal((Told("q", (), tuple(answers)),))
        return HumanOracle({}, journal).paced(replace(costs, **more), 1)

    assert of(19) == costs
    assert of(20) == CostModel("seconds", 5.0, 10.0)
    assert of(20, unit="boxes").seconds_per_box == 20
    helper = ActiveLearningHelper(2, 60, ["entropy"], seed=3, budget_unit="seconds").costing(of(20))
    record = write_record(tmp_path / "r", {n: detections([0.9]) for n in "abcdefgh"})
    # Of a box each: 15 seconds an image.
    chosen = helper.query(record, Pool((), tuple("abcdefgh")), 60, 0, {})
    assert len(chosen.items) == 4
