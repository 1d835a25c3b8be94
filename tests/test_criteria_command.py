"""`python -m med_sslal criteria`: the list, and the page of one name."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from med_sslal.__main__ import main
from med_sslal.al.al_criteria import CRITERIA, SELECTORS, describe
from med_sslal.config.signature import signature

ROOT = Path(__file__).parents[1]
EVERY_NAME = sorted({*CRITERIA, *SELECTORS})


def said_by(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["criteria", *words]) == 0
    return capsys.readouterr().out


def test_every_name_has_one_line_in_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    one_pass, more, second, _ = said_by(capsys).split("\n\n")
    lines = [line for group in (one_pass, more) for line in group.splitlines()[2:]]
    assert sorted(line.split()[0] for line in lines) == sorted(CRITERIA)
    assert [line.split()[0] for line in second.splitlines()[2:]] == list(SELECTORS)
    texts = {**describe(CRITERIA)}
    assert all(line.endswith(texts[line.split()[0]]) for line in lines)


def test_the_page_has_the_same_groups(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "criteria.md").read_text()
    for heading, lines in zip(
        ("Criteria of one pass", "Criteria that need more"),
        said_by(capsys).split("\n\n"),
        strict=False,
    ):
        section = page.split(f"## {heading}\n")[1].split("\n## ")[0]
        names = {line.split()[0] for line in lines.splitlines()[2:]}
        assert set(re.findall(r"^### (\w+)$", section, re.M)) == names


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("random", ["0", "-", "-"]),
        ("foreground_random", ["1", "-", "-"]),
        ("entropy", ["1", "mean", "-"]),
        ("localization_tightness", ["1", "score_weighted", "-"]),
        ("box_self_consistency", ["1", "top_3", "refined_boxes"]),
        ("unexplained_objectness", ["1", "-", "-"]),
        ("flip_consistency", ["2", "score_weighted", "flip"]),
        ("localization_stability", ["7", "-", "6 x noise"]),
        ("cald_consistency", ["5", "-", "flip, cutout, downsize, rotate"]),
        ("ensemble_disagreement", ["1 + 5 heads", "mean", "5 x dropout"]),
        ("class_conditional_similarity", ["1", "-", "roi_features"]),
    ],
)
def test_a_line_tells_passes_aggregate_and_needs(
    capsys: pytest.CaptureFixture[str], name: str, cells: list[str]
) -> None:
    (line,) = (line for line in said_by(capsys).splitlines() if line.startswith(f"  {name} "))
    assert [cell.strip() for cell in line.split("  ") if cell.strip()][1:4] == cells


@pytest.mark.parametrize("name", EVERY_NAME)
def test_a_page_holds_formula_and_every_argument(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    page = said_by(capsys, name)
    classes = [registry[name] for registry in (CRITERIA, SELECTORS) if name in registry]
    for cls in classes:
        text = (cls.__doc__ or "").split("Args:")[0]
        assert all(line.strip() in page for line in text.splitlines())
        for argument in signature(cls).arguments.values():
            assert f"    {argument.name} (" in page and f"; {argument.hint})" in page
            assert argument.meaning and argument.meaning.split()[0] in page
    assert page.count('In a config: "al_criterion": [') == len(classes)


def test_a_class_of_the_users_own_has_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own_stage.py").write_text(
        "from med_sslal.al.selectors.top_k import TopK\n\n\n"
        'class Mine(TopK):\n    """Mine: like the best."""\n\n    name = "mine"\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    page = said_by(capsys, "own_stage.Mine")
    assert page.startswith("own_stage.Mine: second stage") and "Mine: like the best." in page


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("entropi", "unknown criterion 'entropi'. Did you mean 'entropy'?"),
        ("no_such_module.Mine", "cannot import 'no_such_module'"),
        ("pathlib.Path", "'pathlib.Path' is no criterion"),
    ],
)
def test_a_wrong_name_is_one_sentence(
    capsys: pytest.CaptureFixture[str], name: str, sentence: str
) -> None:
    assert main(["criteria", name]) == 2
    said = capsys.readouterr()
    assert not said.out and len(said.err.splitlines()) == 1 and sentence in said.err


def test_help_says_of_each_command_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    commands = capsys.readouterr().out.split("positional arguments:")[1]
    assert "download  Fetch a data set" in commands and "`" not in commands


@pytest.mark.parametrize(
    "words", [["--help"], ["train", "--help"], ["test", "--help"], ["select", "--help"]]
)
def test_help_loads_no_torch_and_the_list_neither(words: list[str]) -> None:
    code = (
        "import sys; from med_sslal.__main__ import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "main(['criteria'])\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr
