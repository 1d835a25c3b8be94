"""Plots, contact sheets and the table: what is drawn, where, and what happens to gaps."""

import re
import subprocess
import sys

import cv2
import numpy as np
import pytest

from med_sslal.base.types import Annotation, ImageInfo, Prediction
from med_sslal.eval.drawing import place_labels
from med_sslal.eval.metric import evaluate
from med_sslal.report.charts import to_svg
from med_sslal.report.overlays import best_and_worst, contact_sheet, whole_rows
from med_sslal.report.plots import (
    FrocLine,
    froc_lines,
    froc_over_cycles,
    plot_froc,
    plot_learning_curve,
)
from med_sslal.report.table import cycle_table
from med_sslal.utils.errors import UserError
from med_sslal.utils.text_table import text_table

BLUE, ORANGE = (0, 114, 178), (213, 94, 0)
TRUTH, PREDICTED = (44, 213, 165), (255, 176, 0)


def truth(*rows, ignore=None):
    n = len(rows)
    return Annotation(
        np.array(rows, dtype=np.float32).reshape(-1, 4),
        np.ones(n, dtype=np.int64),
        np.array([False] * n if ignore is None else ignore, dtype=bool),
    )


def found(*rows):
    """Rows are x1, y1, x2, y2, score."""
    table = np.array(rows, dtype=np.float32).reshape(-1, 5)
    return Prediction(table[:, :4], np.ones(len(rows), dtype=np.int64), table[:, 4])


def infos_of(ids):
    return {i: ImageInfo(i, i, f"{i}.png", (64, 64)) for i in ids}


A, B = (10, 10, 30, 30), (40, 40, 60, 60)
ANNOTATIONS = {
    "clean": truth(A),
    "empty": truth(),
    "false": truth(A),
    "half": truth(A, B),
    "missed": truth(A),
    "worst": truth(A),
}
PREDICTIONS = {
    "clean": found((*A, 0.9)),
    "empty": found(),
    "false": found((*A, 0.9), (*B, 0.8)),
    "half": found((*A, 0.9)),
    "missed": found((*A, 0.2)),
    "worst": found((*B, 0.95)),
}


def evaluation(names=("lesion",)):
    return evaluate(
        ["sensitivity_k_fps"],
        PREDICTIONS,
        ANNOTATIONS,
        infos_of(ANNOTATIONS),
        names,
        draws=50,
    )


def rows(**changes):
    base = [
        {
            "cycle": cycle,
            "labelled_images": 40 + 20 * cycle,
            "labelled_boxes": 44 + 22 * cycle,
            "pseudo_images": 15 * cycle,
            "test_sens_0.5fp": 0.4,
            "test_sens_1fp": 0.5,
            "test_sens_2fp": 0.6,
            "test_sens_4fp": 0.7,
            "test_sens_mean": 0.55,
            "test_sens_mean_low": 0.5,
            "test_sens_mean_high": 0.6,
            "test_AP50": 0.45,
            "minutes": 1.25,
        }
        for cycle in range(3)
    ]
    return [{**row, **changes} for row in base]


def picture_of(path):
    picture = cv2.imread(str(path))
    assert picture is not None
    return picture[..., ::-1].astype(int)


def near(picture, colour, tolerance=12):
    return (abs(picture - np.array(colour)) <= tolerance).all(-1)


def test_froc_shows_curve_marks_and_note(tmp_path):
    plot_froc(froc_lines(evaluation()), tmp_path / "a.png", "FROC", note="phantom data")
    plot_froc(froc_lines(evaluation()), tmp_path / "b.png", "FROC")
    with_note, without = picture_of(tmp_path / "a.png"), picture_of(tmp_path / "b.png")
    assert near(with_note, BLUE).sum() > 1000
    changed = (with_note != without).any(-1)
    assert changed.any()
    assert np.argwhere(changed).min(0)[0] > 0.9 * with_note.shape[0]


def test_froc_of_several_classes_leaves_out_the_undefined(tmp_path):
    lines = froc_lines(evaluation(("lesion", "never")))
    assert set(lines) == {"lesion"}
    line = lines["lesion"]
    # Four of six lesions are found, one of them at 0.2; two false positives in six images.
    assert line.marks == pytest.approx([4 / 6] * 4)
    assert line.reach == pytest.approx(2 / 6)
    several = {name: line for name in ("a", "b", "c")}
    plot_froc(several, tmp_path / "several.png", "FROC")
    picture = picture_of(tmp_path / "several.png")
    assert near(picture, BLUE).any()
    assert near(picture, ORANGE).any()


def test_froc_without_any_curve_or_detection(tmp_path):
    plot_froc({}, tmp_path / "none.png", "FROC")
    result = evaluate(
        ["sensitivity_k_fps"],
        {"i": found()},
        {"i": truth(A)},
        infos_of("i"),
        ["lesion"],
    )
    plot_froc(froc_lines(result), tmp_path / "zero.png", "FROC")
    assert near(picture_of(tmp_path / "zero.png"), BLUE).any()


def test_froc_values_stay_out_of_the_axis_labels(tmp_path):
    low = FrocLine([1.0], [0.01], 20.0, [0.0, 0.01, 0.02, 0.06], [None] * 4, 0.02, None)
    plot_froc({}, tmp_path / "none.png", "FROC")
    plot_froc({"lesion": low}, tmp_path / "low.png", "FROC")
    none, drawn = picture_of(tmp_path / "none.png"), picture_of(tmp_path / "low.png")
    rows = slice(int(0.868 * len(none)), int(0.91 * len(none)))
    assert near(none[rows], (34, 34, 34), 60).any(), "the axis' numbers are here"
    assert (none[rows] == drawn[rows]).all()

    page = to_svg(froc_over_cycles([low], "#0072B2"), "title")
    ends = re.findall(r'<g class="value">\n<text [^>]*y="([\d.]+)"', page)
    assert len(ends) == 4 and max(map(float, ends)) < 310 * 0.85 - 2


def test_a_chart_of_a_page_is_small_equal_and_has_tips():
    lines = list(froc_lines(evaluation()).values()) * 3
    one, again = (to_svg(froc_over_cycles(lines, "#0072B2"), "FROC of <x>") for _ in range(2))
    assert one == again and len(one) < 25_000
    assert "<title>FROC of &lt;x&gt;</title>" in one and "<title>0.667 at 1 FPs per image" in one
    assert "var(--ink)" in one and "#8b949e" not in one
    assert not re.search(r"<style|<metadata|<\?xml|<g id=", one)


def test_equal_plots_are_equal_bytes_and_pyplot_stays_out(tmp_path):
    code = (
        "import sys; from pathlib import Path; import med_sslal.report.overlays\n"
        "from med_sslal.report.plots import plot_learning_curve\n"
        "plot_learning_curve([{'labelled_images': 1, 'test_AP50': 0.5}], Path(sys.argv[1]), 't')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.png")], check=True)
    row = {"labelled_images": 1, "test_AP50": 0.5}
    plot_learning_curve([row], tmp_path / "b.png", "t")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    ("name", "changes", "blue", "orange"),
    [
        ("all", {}, True, True),
        ("no COCO", {"test_AP50": None}, True, False),
        ("no interval", {"test_sens_mean_low": None}, True, True),
        ("no FROC", {"test_sens_mean": None}, False, True),
    ],
)
def test_learning_curve_draws_what_is_known(tmp_path, name, changes, blue, orange):
    plot_learning_curve(rows(**changes), tmp_path / "curve.png", "Curve")
    picture = picture_of(tmp_path / "curve.png")
    assert near(picture, BLUE).any() == blue
    assert near(picture, ORANGE).any() == orange


def test_a_missing_folder_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="cannot write"):
        plot_froc({}, tmp_path / "nowhere" / "froc.png", "FROC")
    assert list(tmp_path.iterdir()) == []


def test_best_and_worst_order():
    best, worst = best_and_worst(
        PREDICTIONS, ANNOTATIONS, infos_of(ANNOTATIONS), ["lesion"], n=3, min_score=0.3
    )
    assert [r.image_id for r in best] == ["clean", "half", "false"]
    assert [r.image_id for r in worst] == ["worst", "empty", "missed"]
    by_id = {r.image_id: r for r in (*best, *worst)}
    assert by_id["clean"].quality == pytest.approx(0.9)
    assert by_id["half"].quality == pytest.approx(0.45)
    assert by_id["false"].quality == pytest.approx(0.1)
    assert by_id["worst"].quality == pytest.approx(-0.95)
    assert by_id["clean"].caption == "1 of 1 found, none false"
    assert by_id["worst"].caption == "0 of 1 found, false 0.95"
    assert by_id["empty"].caption == "no lesion, none false"


def test_none_is_best_where_nothing_was_found():
    nothing = {"missed": found((*B, 0.4)), "worse": found((*B, 0.9)), "empty": found()}
    annotations = {name: ANNOTATIONS["empty" if name == "empty" else "missed"] for name in nothing}
    best, worst = best_and_worst(nothing, annotations, infos_of(nothing), ["lesion"])
    assert best == [] and [r.image_id for r in worst] == ["worse", "missed", "empty"]


@pytest.mark.parametrize(("n", "left"), [(0, 0), (3, 3), (4, 4), (5, 4), (8, 8)])
def test_no_row_of_a_sheet_is_begun_for_one_image(n, left):
    assert whole_rows(list(range(n))) == list(range(left))


def test_labels_stay_inside_and_apart():
    boxes = np.array([(90, 50, 99, 60), (92, 52, 99, 60), (93, 51, 99, 59), (91, 53, 99, 60),
                      (5, 0, 40, 30), (70, 50, 80, 99)], dtype=np.float32)  # fmt: skip
    places = place_labels(boxes, [30] * 6, 8, (100, 100))
    assert places[0] == (70, 42), "shifted to the left, above the box"
    assert places[2] is None, "no room beside two better ones"
    assert places[4] == (5, 0)
    drawn = [place for place in places if place is not None]
    for i, (x, y) in enumerate(drawn):
        assert 0 <= x <= 70 and 0 <= y <= 92
        assert all(abs(x - a) >= 30 or abs(y - b) >= 8 for a, b in drawn[:i])


def test_sheet_draws_the_best_ten_only(tmp_path):
    rows = [(0, 0, 2 * i + 2, 60, 0.9 - 0.01 * i) for i in range(14)]
    annotations = {"i": truth(A)}
    ten, all_ = (sheet(tmp_path, {"i": found(*rows[:n])}, annotations) for n in (10, 14))
    nine = sheet(tmp_path, {"i": found(*rows[:9])}, annotations)
    assert (ten == all_).all() and (ten != nine).any()


def test_lower_floor_finds_the_missed_one():
    best, worst = best_and_worst(
        PREDICTIONS, ANNOTATIONS, infos_of(ANNOTATIONS), ["lesion"], n=6, min_score=0.1
    )
    missed = next(r for r in (*best, *worst) if r.image_id == "missed")
    assert missed.n_found == 1
    assert len(best) + len(worst) == len(ANNOTATIONS)


def sheet(tmp_path, predictions, annotations, name="sheet.png", **more):
    ids = list(annotations)
    best, worst = best_and_worst(predictions, annotations, infos_of(ids), ["lesion"], n=2)
    groups = {"Best": best, "Worst": worst}
    contact_sheet(
        {name: {r.image_id: r.caption for r in g} for name, g in groups.items()},
        lambda image_id: np.full((64, 64, 3), 0.5, dtype=np.float32),
        predictions,
        annotations,
        ["lesion"],
        tmp_path / name,
        title="Sheet",
        **more,
    )
    return picture_of(tmp_path / name)


def test_sheet_draws_boxes_where_they_are(tmp_path):
    """One image in the upper left cell: its true box and the empty space beside it."""
    picture = sheet(tmp_path, {"i": found()}, {"i": truth((16, 16, 48, 32))})
    grey = near(picture, (128, 128, 128), 2)
    # Letters have grey rims too, but no long runs of grey.
    ys, xs = (np.flatnonzero(grey.sum(axis) > 100) for axis in (1, 0))
    cell = picture[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    size = cell.shape[0]
    assert abs(cell.shape[1] - size) <= 2
    green_y, green_x = np.nonzero(near(cell, TRUTH, 30))
    scale = size / 64
    assert green_x.min() == pytest.approx(16 * scale, abs=3)
    assert green_x.max() == pytest.approx(48 * scale, abs=3)
    assert green_y.min() == pytest.approx(16 * scale, abs=3)
    assert green_y.max() == pytest.approx(32 * scale, abs=3)
    assert not near(cell, PREDICTED, 30).any()


def test_sheet_draws_predictions_above_the_floor_only(tmp_path):
    annotations = {"i": truth(A)}
    legend = near(sheet(tmp_path, {"i": found()}, annotations), PREDICTED, 30).sum()
    low = near(sheet(tmp_path, {"i": found((*A, 0.29))}, annotations), PREDICTED, 30).sum()
    high = near(sheet(tmp_path, {"i": found((*A, 0.31))}, annotations), PREDICTED, 30).sum()
    assert legend == low < high


def test_sheet_with_empty_groups_ignore_regions_and_note(tmp_path):
    annotations = {"i": truth(A, B, ignore=[False, True]), "j": truth()}
    predictions = {"i": found((*B, 0.9)), "j": found((*A, 0.4))}
    picture = sheet(tmp_path, predictions, annotations, note="phantom data")
    assert picture.shape[1] > 1000
    contact_sheet(
        {"Best": {}, "Worst": {}},
        lambda image_id: np.zeros((4, 4, 3)),
        {},
        {},
        ["lesion"],
        tmp_path / "none.png",
        title="Sheet",
    )
    assert picture_of(tmp_path / "none.png").shape[0] < picture.shape[0]


def test_table():
    text = cycle_table(rows()[:2])
    assert text == (
        "cycle  images  boxes  pseudo  sens@0.5     @1     @2     @4          mean (95 %)   AP50"
        "  minutes\n"
        "-----  ------  -----  ------  --------  -----  -----  -----  -------------------  -----"
        "  -------\n"
        "    0      40     44       0     0.400  0.500  0.600  0.700  0.550 (0.500-0.600)  0.450"
        "      1.2\n"
        "    1      60     66      15     0.400  0.500  0.600  0.700  0.550 (0.500-0.600)  0.450"
        "      1.2"
    )


def test_table_of_gaps_and_classes():
    gaps = {"cycle": 0, "test_AP50/RBC": 0.25, "test_sens_mean": 0.5, "test_AP50": None}
    heading, _, line = cycle_table([gaps]).splitlines()
    assert heading.split() == [
        "cycle", "images", "boxes", "pseudo", "sens@0.5", "@1", "@2", "@4", "mean", "(95", "%)",
        "AP50", "AP50/RBC", "minutes",
    ]  # fmt: skip
    assert line.split() == ["0", *["-"] * 7, "0.500", "-", "0.250", "-"]
    assert len(cycle_table([]).splitlines()) == 2


def test_a_text_table_of_no_rows_and_one_rule():
    assert text_table([["arm", "area"]], "<>").splitlines() == ["arm  area", "---  ----"]
    rows = [["a", "b", "c"], ["longer", "2", ""]]
    assert text_table(rows, "<>", rule=False).splitlines() == ["a       b  c", "longer  2"]
