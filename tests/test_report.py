"""Reports: what is on the pages, that nothing foreign becomes markup, and that they stand alone."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from report_runs import make_result, make_run, make_study
from tiny import files_of, make_voc, tiny_config

from med_sslal.__main__ import main
from med_sslal.report.colours import styles
from med_sslal.report.pages import MAX_BYTES, write_page
from med_sslal.report.run_choices import MAX_PICTURE_BYTES, MAX_PICTURES, jpeg
from med_sslal.utils.errors import UserError

SECTIONS = [
    "cycles",
    "label-efficiency",
    "froc",
    "queries",
    "finds",
    "bought",
    "pseudo-labels",
    "calibration",
    "time",
    "reproduce",
]
VOID = {"meta"}


class Page(HTMLParser):
    """A page as its parts: every element closed where it must be, or parsing fails."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.size = path.stat().st_size
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.tables: dict[str, list[list[list[str]]]] = {}
        self._open: list[str] = []
        self._section = ""
        self.feed(self.source)
        self.close()
        assert not self._open
        self.texts = {name: " ".join(text.split()) for name, text in self.texts.items()}
        self.tables = {
            name: [[[" ".join(c.split()) for c in row] for row in table] for table in tables]
            for name, tables in self.tables.items()
        }

    def handle_starttag(self, name: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(attrs)))
        if name in VOID:
            return
        self._open.append(name)
        if name == "section":
            self._section = str(dict(attrs)["id"])
        tables = self.tables.setdefault(self._section, [])
        if name == "table":
            tables.append([])
        elif name == "tr":
            tables[-1].append([])
        elif name in ("td", "th"):
            tables[-1][-1].append("")

    def handle_endtag(self, name: str) -> None:
        assert self._open.pop() == name
        if name == "section":
            self._section = ""

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.texts[self._section] = self.texts.get(self._section, "") + data
        if "td" in self._open or "th" in self._open:
            self.tables[self._section][-1][-1][-1] += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    @property
    def sections(self) -> list[str]:
        return [str(attrs["id"]) for name, attrs in self.elements if name == "section"]

    @property
    def text(self) -> str:
        return "".join(self.texts.values())

    def pictures(self) -> int:
        return sum(name == "image" for name, _ in self.elements)


def report(*paths: Path) -> int:
    return main(["report", *map(str, paths)])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("report"), classes=2)


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    assert report(run) == 0
    return Page(run / "report.html")


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def assert_alone(page: Page) -> None:
    """No element asks for anything but what the page holds, except links to sibling reports."""
    for name, attrs in page.elements:
        assert name not in ("script", "link", "iframe", "object", "embed", "base", "form")
        assert not [key for key in attrs if key.startswith("on")]
        for key in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
            value = attrs.get(key)
            if name == "a" and value is not None and not value.startswith("#"):
                assert re.fullmatch(r"[\w.-]+/s\d+/report\.html", value)
            elif value is not None:
                assert value.startswith(("data:image/jpeg;base64,", "#")), (name, value[:80])
    style = page.source.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style
    assert page.size < MAX_BYTES


def test_a_run_report_has_every_section_and_stands_alone(page: Page) -> None:
    assert page.sections == SECTIONS
    assert_alone(page)
    links = [attrs["href"] for name, attrs in page.elements if name == "a"]
    assert links == [f"#{name}" for name in SECTIONS]
    assert "not a medical device" in page.text
    assert "in progress" not in page.text and "could not be opened" not in page.text


def test_a_page_serves_phones_dark_rooms_and_paper(page: Page) -> None:
    metas = [attrs for name, attrs in page.elements if name == "meta"]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in metas
    for rule in ("(max-width: 640px)", "(prefers-color-scheme: dark)", "@media print"):
        assert rule in page.source
    boxes = sum(attrs.get("class") == "scroll" for _, attrs in page.elements)
    assert boxes == sum(name == "table" for name, _ in page.elements) > 0


def test_the_cycles_are_those_of_the_summary(run: Path, page: Page) -> None:
    rows = json.loads((run / "summary.json").read_text())["cycles"]
    heading, *lines = page.tables["cycles"][0]
    assert heading[:4] == ["Cycle", "Images", "Boxes", "Pseudo-labelled"]
    assert [line[:4] for line in lines] == [
        [str(row[key]) for key in ("cycle", "labelled_images", "labelled_boxes", "pseudo_images")]
        for row in rows
    ]
    for line, row in zip(lines, rows, strict=True):
        mean = line[heading.index("Mean (95 % interval)")]
        assert mean.startswith(f"{row['test_sens_mean']:.3f} ({row['test_sens_mean_low']:.3f} to")
        assert line[heading.index("AP50 class1")] == f"{row['test_AP50/class1']:.3f}"
    assert "1 seed, no interval" in page.texts["label-efficiency"]


def test_the_gallery_shows_queries_by_rank_and_contrast(run: Path, page: Page) -> None:
    selection = json.loads((run / "cycle_00" / "selection.json").read_text())
    text = page.texts["queries"]
    places = [text.index(f"{i}. {name}") for i, name in enumerate(selection["image_ids"], start=1)]
    assert places == sorted(places)
    assert "localization_tightness 0.5000, place 1 of 8" in text
    shown = json.loads((run / "cycle_00" / "selection_detections.json").read_text())["images"]
    others = {image["image_id"] for image in shown} - set(selection["image_ids"])
    assert sum(name in text for name in others) >= 5 and "not taken" in text
    # Of 7 detections those from 0.3 on and at least 5 are kept; the best 4 may carry their score,
    # and of these, all of them at the upper edge of a small picture, three have room for it.
    assert "class0 0.90 class0 0.40 class0 0.30 image" in text and "class0 0.15" not in text
    kinds = [attrs.get("class") for name, attrs in page.elements if name == "rect"]
    n, n_pseudo = (3 + 5) + (3 + 2), 2
    assert page.pictures() == n + n_pseudo
    assert kinds.count("found") == 3 * n + 1 + (2 + 1) and kinds.count("faint") == 2 * n
    # Truth of what was bought alone: both queries, and those of the contrast bought later.
    assert kinds.count("truth") == 2 * (3 + 3 + 3) + 1 + 2 * n_pseudo


def test_what_was_bought_is_counted_from_the_labels(page: Page) -> None:
    heading, *lines = page.tables["bought"][0]
    assert [line[0] for line in lines] == [
        "initial set",
        "query after cycle 0",
        "query after cycle 1",
        "validation and test",
    ]
    assert [line[heading.index("Images")] for line in lines] == ["4", "3", "3", "12"]
    assert [line[heading.index("Boxes")] for line in lines] == ["8", "6", "6", "24"]
    assert "whole pool" not in page.texts["bought"]
    assert {line[heading.index("class0")] for line in lines} == {"50 %"}
    assert {line[heading.index("Without object")] for line in lines} == {"0 %"}
    thirds = [int(cell.removesuffix(" %")) for cell in lines[-1][-3:]]
    assert sum(thirds) in (99, 100, 101) and min(thirds) >= 29


def test_finds_are_those_of_the_file(run: Path, page: Page) -> None:
    heading, *lines = page.tables["finds"][0]
    assert heading[3:] == ["Missed objects", "False positives", "Loose boxes", "Box loss"]
    for cycle, line in enumerate(lines):
        found = json.loads((run / f"cycle_{cycle:02d}" / "finds.json").read_text())
        assert line[:3] == [str(cycle), "entropy", f"{found['n_top']} of {found['n_images']}"]
        for cell, each in zip(line[3:], found["findings"].values(), strict=True):
            rank = "\N{EN DASH}" if each["undefined"] else f"{each['correlation']:+.2f}"
            wanted = f"{each['top']:.2f} all {each['all']:.2f}, rank corr. {rank}"
            assert cell == wanted
    assert len(lines) == 2 and "against all of them" in page.texts["finds"]


def test_pseudo_labels_are_graded_by_the_truth(page: Page) -> None:
    heading, *lines = page.tables["pseudo-labels"][0]
    graded = [dict(zip(heading, line, strict=True)) for line in lines]
    # Of class0 one box is right and one false; of two objects one is met.
    assert [(g["Cycle"], g["Class"], g["Precision"], g["Recall"]) for g in graded] == [
        ("0", "class0", "0.50", "0.50"),
        ("0", "class1", "1.00", "0.50"),
        ("1", "class0", "0.50", "0.50"),
        ("1", "class1", "1.00", "0.50"),
    ]
    assert {g["Mean IoU"] for g in graded} == {"1.00"}
    verdict = ["without pseudo-labels", "val_AP50", "0.600", "0.500"]
    assert page.tables["pseudo-labels"][1][1:] == [["0", *verdict], ["1", *verdict]]
    assert "least score 0.95" in page.texts["pseudo-labels"]


def test_calibration_is_that_of_the_test_images(page: Page) -> None:
    # 6 images with two found objects of score 0.5, 0.6, 0.7 and a false box of 0.2 each.
    expected = [(2 * (0.5 - 0.1 * c) + 0.2) / 3 for c in range(3)]
    lines = page.tables["calibration"][0][1:]
    assert [line[1:] for line in lines] == [["18", f"{error:.3f}"] for error in expected]


def test_time_config_and_environment(page: Page) -> None:
    heading, *lines = page.tables["time"][0]
    first = dict(zip(heading, lines[0], strict=True))
    assert first["Training"] == "1.0 min" and first["Evaluation"] == "30.0 s"
    assert first["Selection"] == "0.5 s" and first["Together"] == "1.5 min"
    changes = {line[0]: line[1:] for line in page.tables["reproduce"][0][1:]}
    assert changes["seed"] == ["3", "0"] and "lr_scheduler.type" in changes
    assert "2.8.0" in page.texts["reproduce"]
    assert "python -m med_sslal train -c" in page.texts["reproduce"]


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_one_time_for_one_run(page: Page) -> None:
    # Three cycles of 90 s and two selections of 0.5 s.
    assert "time 4.5 min all stages" in page.texts[""]
    assert "Where the 4.5 min of the stages below went" in page.texts["time"]
    assert (
        "Minutes are those of training and evaluation, with the pseudo-labels"
        in page.texts["cycles"]
    )


@pytest.mark.parametrize(
    ("bias", "words"),
    [
        (
            0.95,
            "0.95: the criterion hardly does more than count boxes, and prefers images with many",
        ),
        (
            -0.9,
            "-0.90: the criterion hardly does more than count boxes, and prefers images with few",
        ),
        (0.5, "0.50: images with many detections tend to score higher"),
        (-0.53, "-0.53: images with few detections tend to score higher"),
        (-0.1, "-0.10: the score depends little on how many boxes were found"),
    ],
)
def test_the_bias_in_words(copy: Path, bias: float, words: str) -> None:
    change(copy / "cycle_01" / "selection.json", box_count_bias=bias)
    assert report(copy) == 0
    assert words in Page(copy / "report.html").texts["queries"]


def test_one_earlier_cycle_is_no_row_of_them(tmp_path: Path, page: Page) -> None:
    assert "cycles 0 to 1, later ones stronger" in page.texts["froc"]
    folder = make_run(tmp_path, queries=1)
    assert report(folder) == 0
    text = Page(folder / "report.html").texts["froc"]
    assert "cycle 0" in text and "stronger" not in text


@pytest.mark.parametrize(("pattern", "units"), [(None, "images"), ("(.)$", "patients")])
def test_what_the_intervals_are_over(tmp_path: Path, pattern: str | None, units: str) -> None:
    data = make_voc(tmp_path / "voc")
    dataset = tiny_config(data, tmp_path)["dataset"]
    dataset["args"]["group_pattern"] = pattern
    folder = make_run(tmp_path, data=data, pseudo=False, config_changes={"dataset": dataset})
    assert report(folder) == 0
    page = Page(folder / "report.html")
    for section in ("label-efficiency", "froc"):
        assert f"over test {units}" in page.texts[section]


@pytest.mark.parametrize(
    ("left", "reason"),
    [
        (0, "every image of the pool is labelled"),
        (1, "the budget pays for none of the images to label next"),
    ],
)
def test_a_run_that_ended_early_says_why(copy: Path, left: int, reason: str) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["al_settings"]["num_cycles"] = 20
    change(copy / "config.json", al_settings=config["al_settings"])
    change(copy / "summary.json", finished=True)
    pool = json.loads((copy / "cycle_02" / "pool.json").read_text())
    ids = pool["labelled"] + pool["unlabelled"]
    n = len(ids) - left
    change(copy / "cycle_02" / "pool.json", labelled=ids[:n], unlabelled=ids[n:])
    assert report(copy) == 0
    page = Page(copy / "report.html")
    assert f"of 21 planned, ended: {reason}" in page.texts[""]
    assert "interrupted" not in page.text


def test_a_threshold_that_no_score_passes(copy: Path) -> None:
    path = copy / "cycle_01" / "pseudo_labels.json"
    stats = json.loads(path.read_text())["stats"]
    stats["class0"]["threshold"], stats["class1"]["threshold"] = 1.0001, 0.9996
    change(path, stats=stats)
    assert report(copy) == 0
    page = Page(copy / "report.html")
    heading, *lines = page.tables["pseudo-labels"][0]
    at = heading.index("Threshold")
    assert [line[at] for line in lines] == ["0.80", "0.80", "none passes", "0.9996"]
    assert "density cap" in page.texts["pseudo-labels"]


def test_phones_stack_the_config_and_show_that_tables_scroll(page: Page) -> None:
    cells = [attrs.get("data-label") for name, attrs in page.elements if name == "td"]
    n = len(page.tables["reproduce"][0]) - 1
    assert cells.count("Key") == cells.count("Value") == cells.count("Default") == n > 0
    phone = page.source.split("@media (max-width: 640px)")[1]
    assert "attr(data-label)" in phone and ".stacked thead { display: none; }" in phone
    scroll = page.source.split(".scroll {")[1].split("}")[0]
    assert "local" in scroll and "var(--shade)" in scroll


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param(
            {"queries": 0, "pseudo": False},
            {"queries": "asks for no query", "pseudo-labels": "uses no pseudo-labels"},
            id="one training",
        ),
        pytest.param(
            {"queries": 1, "pseudo": False},
            {"pseudo-labels": "uses no pseudo-labels"},
            id="no pseudo-labels",
        ),
        pytest.param({"queries": 1, "seen": False}, {"calibration": "\N{EN DASH}"}, id="blind"),
        pytest.param(
            {"queries": 0, "planned": 2}, {"queries": "No image has been queried"}, id="cut off"
        ),
    ],
)
def test_runs_that_lack_something(
    tmp_path: Path, options: dict[str, int | bool], words: dict[str, str]
) -> None:
    folder = make_run(tmp_path, **options)  # type: ignore[arg-type]
    assert report(folder) == 0
    page = Page(folder / "report.html")
    assert_alone(page)
    # A run without a query has not looked at what one would find.
    assert page.sections == [n for n in SECTIONS if n != "finds" or options["queries"]]
    for section, text in words.items():
        assert text in page.texts[section]
    assert ("in progress or was interrupted" in page.text) is ("planned" in options)


def test_a_run_that_has_measured_nothing(copy: Path) -> None:
    for path in (*copy.glob("cycle_0[12]"), copy / "summary.json"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name in ("metrics", "training", "timing", "selection", "pseudo_labels"):
        (copy / "cycle_00" / f"{name}.json").unlink()
    (copy / "environment.json").unlink()
    assert report(copy) == 0
    page = Page(copy / "report.html")
    assert page.sections == ["reproduce"]
    assert "No training has been measured yet." in page.text and "--resume" in page.text


def test_a_run_of_before_detections_were_kept(copy: Path) -> None:
    for path in copy.glob("cycle_*/selection_detections.json"):
        path.unlink()
    assert report(copy) == 0
    page = Page(copy / "report.html")
    assert page.pictures() == (3 + 5) + (3 + 2) + 2
    assert "were not kept" in page.texts["queries"]
    found = [a for name, a in page.elements if name == "rect" and a.get("class") == "found"]
    assert len(found) == 3, "the pseudo-labels alone"


@pytest.mark.parametrize("what", ["gone", "changed"])
def test_a_run_whose_data_cannot_be_had(copy: Path, what: str) -> None:
    config = json.loads((copy / "config.json").read_text())
    if what == "gone":
        config["dataset"]["args"]["root"] = str(copy / "nowhere")
    else:
        config["dataset"]["args"]["split_seed"] = 5
    (copy / "config.json").write_text(json.dumps(config))
    assert report(copy) == 0
    page = Page(copy / "report.html")
    assert "could not be opened" in page.texts[""] and page.pictures() == 0
    assert page.sections == [s for s in SECTIONS if s not in ("bought", "calibration")]
    assert page.tables["pseudo-labels"][0][1][-3] == "0.50", "what the evaluation wrote down"


def test_nothing_foreign_becomes_markup(tmp_path: Path) -> None:
    nasty = "<img src=x onerror=alert(1)>&\"'"
    data = make_voc(tmp_path / "voc")
    for path in sorted(data.rglob("*.*")):
        if path.suffix == ".xml":
            text = path.read_text().replace("class0", "&lt;script&gt;class&lt;/script&gt;")
            path.write_text(text.replace("image0", "&lt;script&gt;image0"))
        path.rename(path.with_name(path.name.replace("image0", "<script>image0")))
    config = {"trainer": {"epochs": 1, "monitor": "off", "save_dir": nasty}}
    folder = make_run(
        tmp_path, data=data, queries=1, config_changes=config, device=nasty, reason=nasty
    )
    assert report(folder) == 0
    page = Page(folder / "report.html")
    assert_alone(page)
    assert {"img", "script"}.isdisjoint(name for name, _ in page.elements)
    assert "<script" not in page.source and "<img" not in page.source
    assert "&lt;script&gt;image0" in page.source and "<script>image0" in page.texts["queries"]
    assert nasty in page.texts["queries"]
    assert "&lt;script&gt;class&lt;/script&gt;" in page.source
    assert "<script>class</script>" in page.texts["pseudo-labels"]
    assert nasty in page.texts[""] and json.dumps(nasty) in page.texts["reproduce"]


def test_a_name_that_no_config_may_have_is_text(copy: Path) -> None:
    change(copy / "config.json", name="<script>alert(1)</script>")
    assert report(copy) == 0
    page = Page(copy / "report.html")
    assert "<script" not in page.source
    assert page.source.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 2, "title and heading"
    assert "<script>alert(1)</script>" in page.texts[""]


def test_several_paths_each_get_their_own(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(tmp_path, make_result())
    assert report(copy, study) == 0
    written = [str(folder / "report.html") for folder in (copy, study)]
    assert capsys.readouterr().out.splitlines() == written
    first = (copy / "report.html").read_bytes()
    assert report(copy) == 0
    assert (copy / "report.html").read_bytes() == first, "the same run, the same page"


@pytest.mark.parametrize("name", ["missing", "empty", "cycle_00", "config.json"])
def test_what_is_neither_run_nor_study_is_refused(
    copy: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "empty").mkdir()
    (copy / "report.html").unlink(missing_ok=True)
    before = files_of(copy)
    assert report(copy, copy / name) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {copy / name} is neither a run folder") and len(error) < 400
    assert files_of(copy) == before, "none is written where one is wrong"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("cycle_01/metrics.json", "{", "not valid JSON"),
        ("cycle_01/pool.json", '{"unlabelled": 3}', "not those of a cycle"),
        ("cycle_00/selection.json", "{}", "no format_version"),
        ("cycle_00/predictions.json", '{"format_version": 9}', "format_version 9"),
    ],
)
def test_a_damaged_file_is_named(
    copy: Path, name: str, content: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / name).write_text(content)
    (copy / "report.html").unlink(missing_ok=True)
    assert report(copy) == 2
    assert said in capsys.readouterr().err
    assert not (copy / "report.html").exists()


def test_a_page_stays_below_its_limit(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).random((700, 900, 3))
    assert len(jpeg(noise)) <= MAX_PICTURE_BYTES
    assert MAX_PICTURES * MAX_PICTURE_BYTES * 4 / 3 < 0.7 * MAX_BYTES
    with pytest.raises(UserError, match="more than 15 MB"):
        write_page(tmp_path / "x.html", "x" * (MAX_BYTES + 1))
    assert not list(tmp_path.iterdir())


def test_strategies_keep_their_colour_and_differ() -> None:
    names = [
        "random",
        "entropy",
        "localization_tightness",
        "localization_tightness_max",
        "k_center",
    ]
    many, few = styles(names), styles(names[:3])
    assert all(many[name] == few[name] for name in few)
    assert len(set(many.values())) == len(names)
    assert styles(["my_own"])["my_own"] == styles(["my_own", "random"])["my_own"]
