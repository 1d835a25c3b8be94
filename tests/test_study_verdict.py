"""What a study says: sentences and tables, and how often its intervals are wrong."""

import re

import numpy as np
import pytest

from med_sslal.report.study_table import study_table
from med_sslal.study.label_efficiency import Curve, compare_arms
from med_sslal.study.verdict import CHANCE, verdict


def flat(height, labels=(20, 40)):
    """A curve whose area and last score are both `height`."""
    return Curve(labels, (height,) * len(labels))


def arms_of(**heights):
    """Arms of flat curves: arm=[height of seed 0, of seed 1, ...]."""
    return {arm: {s: flat(h) for s, h in enumerate(row)} for arm, row in heights.items()}


@pytest.mark.parametrize("n_seeds", [3, 5, 8, 20])
def test_intervals_miss_the_truth_as_often_as_the_verdict_says(n_seeds):
    """400 studies of two arms that differ by 0.02 for sure: how often is that outside?"""
    rng = np.random.default_rng(n_seeds)
    missed = 0
    for _ in range(400):
        shared = rng.normal(0.5, 0.1, n_seeds)
        gain = rng.normal(0.02, 0.03, n_seeds)
        result = compare_arms(arms_of(random=shared, a=shared + gain), None, draws=400)
        low, high = result.arms["a"].comparison.area.interval
        missed += not low <= 0.02 <= high
    share = CHANCE.get(n_seeds, 8) / 100  # docs/studies.md says 8 % at 20
    three_standard_errors = 3 * np.sqrt(share * (1 - share) / 400)
    assert missed / 400 == pytest.approx(share, abs=three_standard_errors)


def study(n_seeds, **gains):
    """Arms with a rising curve, ahead by gain x (1 + small differences between seeds)."""
    labels = (20, 40, 60)
    rng = np.random.default_rng(4)
    curves = {"random": {s: Curve(labels, (0.2, 0.4, 0.5 + 0.01 * s)) for s in range(n_seeds)}}
    for arm, gain in gains.items():
        moves = gain * (1 + 0.2 * rng.normal(size=n_seeds))
        curves[arm] = {
            s: Curve(labels, tuple(v + moves[s] for v in curves["random"][s].values))
            for s in range(n_seeds)
        }
    return compare_arms(curves, None, unit="images")


def test_verdict_says_what_the_interval_supports():
    result = study(5, better=0.1, worse=-0.1)
    better, worse, limits = verdict(result)
    saving = result.arms["better"].comparison.saving
    assert better.startswith("better: area +0.")
    assert "against random over 5 seeds: better; saves labels: about" in better
    assert f"about {saving.value:.0f} fewer images" in better
    assert worse.endswith("against random over 5 seeds: worse.")
    assert "saves" not in worse
    assert limits.startswith("5 seeds cannot show area differences much smaller than 0.0")
    assert "about 16 of 100" in limits
    assert "p cannot fall below 0.0625" in limits
    assert "significant" not in better + worse


def test_verdict_claims_nothing_below_five_seeds():
    for sentence in verdict(study(4, better=0.1, worse=-0.1))[:2]:
        assert sentence.endswith("over 4 seeds: too few seeds for a verdict, which takes 5.")


def test_verdict_without_a_number_of_labels():
    """Ahead at first, level at the end: the baseline's last score comes no sooner."""
    labels = (20, 40, 60)
    curves = {
        "random": {s: Curve(labels, (0.2, 0.3, 0.6)) for s in range(5)},
        "short": {s: Curve(labels, (0.2, 0.5 + 0.01 * s, 0.55)) for s in range(5)},
        "level": {s: Curve(labels, (0.2, 0.5, 0.6 + 0.02 * (s - 2))) for s in range(5)},
    }
    short, level, _ = verdict(compare_arms(curves, None, unit="images"))
    assert "better; it does not reach random's last score itself" in short
    assert "better; how many images that saves is open: 0 (95 % interval open to " in level


def test_verdict_without_a_curve_counts_no_labels():
    curves = {
        arm: {s: flat(height + s / 100, (20,)) for s in range(5)}
        for arm, height in {"random": 0.5, "a": 0.6}.items()
    }
    sentence = verdict(compare_arms(curves, None, unit="images"))[0]
    assert sentence.endswith("better; one label count does not tell how many images that saves.")


def test_verdict_names_significance_from_eight_seeds():
    sentences = verdict(study(8, better=0.1))
    assert "last budget +0.098, significant" in sentences[0]
    assert "significant (p 0.00781, 0.00781 after Holm)" in sentences[0]
    many = study(8, **{f"arm{i}": 0.1 for i in range(7)})
    assert "not significant (p 0.00781, 0.0547 after Holm)" in verdict(many)[0]
    assert "(0.00781) times 7 comparisons is 0.0547" in verdict(many)[-1].replace(
        "0.0078125", "0.00781"
    )


def test_study_table_by_hand():
    result = compare_arms(arms_of(random=[0.4, 0.5], a=[0.5, 0.6]), {0: 0.5, 1: 0.9}, unit="images")
    # a minus random is 0.1 for both seeds; a has 90 % of 0.5 from the start, of 0.9 never.
    lines = study_table(result).splitlines()
    assert len({len(line) for line in lines[:4]}) == 1
    columns = "arm|seeds|area|minus random (95 %)|to 90 %|to 95 %|last|p|Holm|w/t/l"
    assert "|".join(re.split(r"\s{2,}", lines[0])) == columns
    assert set(lines[1]) == {"-", " "}
    cells = "random 2 0.450 - > 40 (2/2) > 40 (2/2) - - - -"
    assert lines[2].split() == cells.split()
    cells = "a 2 0.550 +0.100 (+0.100 to +0.100) > 40 (1/2) > 40 (1/2) +0.100 0.5 0.5 2/0/0"
    assert lines[3].split() == cells.split()
    assert "20 to 40 images" in lines[5]
