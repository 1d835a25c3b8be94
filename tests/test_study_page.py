"""The page of a study: what it says, links to and leaves out."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_runs import make_result, make_study
from test_report import Page, assert_alone, report


def test_nothing_foreign_becomes_markup_in_a_study(tmp_path: Path) -> None:
    scores = make_result()
    folder = make_study(tmp_path, {name.replace("e", "<script>"): v for name, v in scores.items()})
    assert report(folder) == 0
    page = Page(folder / "report.html")
    assert "<script" not in page.source
    for section in ("", "label-efficiency", "images", "runs", "reproduce"):
        assert "<script>ntropy" in page.texts[section]


def test_a_study_says_its_verdict_and_links_to_its_runs(tmp_path: Path) -> None:
    folder = make_study(tmp_path, make_result(seeds=5))
    (folder / "entropy" / "s1" / "report.html").write_text("x")
    assert report(folder) == 0
    page = Page(folder / "report.html")
    assert_alone(page)
    assert page.sections == [
        "label-efficiency",
        "images",
        "boxes",
        "matrix",
        "runs",
        "reproduce",
    ]
    results = json.loads((folder / "results.json").read_text())
    (family,) = results["families"]
    for sentence in family["verdict"]:
        assert sentence in page.texts[""]
    assert "Made on the phantom" in page.text and "not a medical device" in page.text
    arm = family["images"]["arms"]["entropy"]
    low, high = arm["comparison"]["area"]["interval"]
    assert page.tables["images"][0][2] == [
        "entropy",
        f"{arm['area']['value']:.3f}",
        "random",
        f"{arm['comparison']['area']['value']:+.3f} ({low:+.3f} to {high:+.3f})",
        "",
        "32",
        page.tables["images"][0][2][6],
        f"{arm['comparison']['last']['value']:+.3f}",
        f"{arm['comparison']['p_holm']:.3g}",
        "5 / 0 / 0",
    ]
    assert page.tables["matrix"][0][2][1] == "5 / 0 / 0"
    links = [a["href"] for n, a in page.elements if n == "a" and not str(a["href"]).startswith("#")]
    assert links == ["entropy/s1/report.html"]
    assert page.tables["runs"][0][3] == ["full", *["0.600"] * 5]


@pytest.mark.parametrize(
    ("seeds", "compared", "said"),
    [
        pytest.param(1, True, "1 seed, no interval", id="one seed"),
        pytest.param(2, False, "comparison is not made yet", id="in progress"),
    ],
)
def test_a_study_that_lacks_something(
    tmp_path: Path, seeds: int, compared: bool, said: str
) -> None:
    folder = make_study(tmp_path, make_result(seeds=seeds), compared=compared)
    if not compared:
        shutil.rmtree(folder / "entropy" / "s1")
    assert report(folder) == 0
    page = Page(folder / "report.html")
    assert said in page.text
    assert ("images" in page.sections) is compared
    assert ("5 of 6 runs have ended" in page.text) is not compared


def test_a_study_without_full_supervision_has_no_goals(tmp_path: Path) -> None:
    scores = make_result()
    del scores["full"]
    folder = make_study(tmp_path, scores)
    assert report(folder) == 0
    headings = Page(folder / "report.html").tables["images"][0][0]
    assert "To 90 %" not in headings and headings[5] == "Last budget"


@pytest.mark.parametrize("content", ['{"format_version": 7}', '{"name": "x"}', "[]"])
def test_a_damaged_study_is_named(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "study.json").write_text(content)
    assert report(tmp_path) == 2
    assert str(tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda study: study.update(metrics=["test_AP50"]), "that the study has no longer"),
        (lambda study: study.update(baselines=["entropy"]), "that the study has no longer"),
        (
            lambda study: study["arms"].update(other=study["arms"].pop("entropy")),
            "that the study has no longer",
        ),
        (lambda study: study.update(results="none.json"), "none.json: runs that it alone had"),
    ],
    ids=["other metric", "other baseline", "another name", "no results"],
)
def test_a_comparison_of_before_the_study_was_changed(
    tmp_path: Path, change: Callable[[Any], Any], told: str
) -> None:
    """As it is between two commands: study.json is new, and results.json of the one before."""
    folder = make_study(tmp_path, make_result(seeds=5))
    study = json.loads((folder / "study.json").read_text())
    change(study)
    (folder / "study.json").write_text(json.dumps(study))
    assert report(folder) == 0
    page = Page(folder / "report.html")
    assert told in page.text
    assert ("matrix" in page.sections) == ("none.json" in told)
