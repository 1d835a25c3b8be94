"""Statistics of a study: hand-worked cases, properties, bad input."""

import json

import numpy as np
import pytest

from med_sslal.report.study_table import study_table
from med_sslal.study.label_efficiency import (
    TIE,
    Curve,
    compare_arms,
    labels_to_reach,
    normalised_area,
)
from med_sslal.study.study_result import Saving
from med_sslal.study.verdict import verdict
from med_sslal.utils.errors import DataError


def flat(height, labels=(20, 40)):
    """A curve whose area and last score are both `height`."""
    return Curve(labels, (height,) * len(labels))


def arms_of(**heights):
    """Arms of flat curves: arm=[height of seed 0, of seed 1, ...]."""
    return {arm: {s: flat(h) for s, h in enumerate(row)} for arm, row in heights.items()}


def noisy(rng, seeds, gain=0.0, labels=(20, 40, 60, 80)):
    steps = np.linspace(0.3, 0.6, len(labels)) + gain
    return {s: Curve(labels, tuple(steps + rng.normal(0, 0.02, len(labels)))) for s in seeds}


@pytest.mark.parametrize(
    ("labels", "values", "area"),
    [
        ((10, 30), (0.4, 0.4), 0.4),
        ((10, 30), (0.2, 0.6), 0.4),
        # (10 x (0.2 + 0.4) / 2 + 30 x (0.4 + 0.8) / 2) / 40 = (3 + 18) / 40
        ((10, 20, 50), (0.2, 0.4, 0.8), 0.525),
        ((10,), (0.7,), 0.7),
        # Nothing bought in the second cycle: 0.5 stands at 10, so (0.5 + 0.7) / 2.
        ((10, 10, 20), (0.1, 0.5, 0.7), 0.6),
        ((10, 10), (0.1, 0.5), 0.5),
    ],
    ids=["level", "slope", "uneven_steps", "one_point", "repeated_labels", "only_repeated"],
)
def test_normalised_area(labels, values, area):
    assert normalised_area(Curve(labels, values)) == pytest.approx(area)


@pytest.mark.parametrize(
    ("values", "target", "labels"),
    [
        ((0.2, 0.4, 0.8), 0.3, 15.0),  # half way from 10 to 20
        ((0.2, 0.4, 0.8), 0.5, 27.5),  # a quarter of the way from 20 to 50
        ((0.2, 0.4, 0.8), 0.4, 20.0),
        ((0.2, 0.4, 0.8), 0.8, 50.0),
        ((0.2, 0.4, 0.8), 0.1, 10.0),
        ((0.2, 0.4, 0.8), 0.81, None),
        ((0.2, 0.6, 0.3), 0.5, 17.5),  # the first crossing, although the curve falls again
        ((0.4, 0.2, 0.8), 0.4, 10.0),
        ((0.4, 0.4, 0.4), 0.5, None),
    ],
    ids=["half", "quarter", "knot", "end", "before", "never", "bump", "starts_there", "level"],
)
def test_labels_to_reach(values, target, labels):
    found = labels_to_reach(Curve((10, 20, 50), values), target)
    assert found is None if labels is None else found == pytest.approx(labels)


@pytest.mark.parametrize(
    ("labels", "values", "words"),
    [
        ((), (), "at least one"),
        ((1, 2), (0.5,), "2 label counts and 1 values"),
        ((1, 2), (0.5, float("nan")), "finite"),
        ((1, float("inf")), (0.5, 0.5), "finite"),
        ((2, 1), (0.5, 0.5), "must not fall"),
    ],
    ids=["empty", "lengths", "nan", "infinite", "falling"],
)
def test_bad_curve_is_one_sentence(labels, values, words):
    with pytest.raises(DataError, match=words) as caught:
        Curve(labels, values)
    assert len(str(caught.value).splitlines()) == 1


def test_a_study_by_hand():
    """Two arms, three seeds, every number worked out below."""
    labels = (10, 20, 30)
    curves = {
        "random": {
            0: Curve(labels, (0.2, 0.4, 0.6)),  # area 0.4
            1: Curve(labels, (0.2, 0.3, 0.4)),  # area 0.3
            2: Curve(labels, (0.3, 0.5, 0.7)),  # area 0.5
        },
        "entropy": {
            0: Curve(labels, (0.2, 0.6, 0.7)),  # area (0.4 + 0.65) / 2 = 0.525
            1: Curve(labels, (0.2, 0.4, 0.4)),  # area (0.3 + 0.4) / 2 = 0.35
            2: Curve(labels, (0.3, 0.6, 0.7)),  # area (0.45 + 0.65) / 2 = 0.55
        },
    }
    # 90 % of full: 0.63, 0.45, 0.54; 95 %: 0.665, 0.475, 0.57.
    result = compare_arms(curves, {0: 0.7, 1: 0.5, 2: 0.6}, unit="images")
    random, entropy = result.arms["random"], result.arms["entropy"]
    assert result.ranges == dict.fromkeys(range(3), (10, 30))
    assert random.area.value == pytest.approx(0.4)
    assert entropy.areas == pytest.approx({0: 0.525, 1: 0.35, 2: 0.55})
    compared = entropy.comparison
    assert random.comparison is None
    # Differences of areas 0.125, 0.05, 0.05, of last scores 0.1, 0, 0.
    assert compared.area.value == pytest.approx(0.075)
    # A draw holds 0.05 thrice in 8 of 27 cases and 0.125 thrice in 1 of 27 = 3.7 %: both ends.
    assert compared.area.interval == pytest.approx((0.05, 0.125))
    assert compared.last.value == pytest.approx(0.1 / 3)
    assert (compared.p, compared.smallest_p, compared.p_holm) == (1.0, 0.25, 1.0)
    assert compared.significant is None
    assert "3 seeds" in compared.reason
    assert result.matrix["entropy"]["random"] == (3, 0, 0)
    assert result.matrix["random"]["entropy"] == (0, 0, 3)
    # random reaches 0.63 never, 0.45 never, 0.54 at 22; 0.57 at 23.5.
    ninety, more = random.goals
    assert (ninety.per_seed[0], ninety.per_seed[1]) == (None, None)
    assert ninety.per_seed[2] == pytest.approx(22.0)
    assert (ninety.median, ninety.n_censored) == (None, 2)
    assert more.per_seed[2] == pytest.approx(23.5)
    # entropy: 0.63 at 23, 0.45 never, 0.54 at 18: median 23 with one infinite.
    ninety = entropy.goals[0]
    assert ninety.per_seed[0] == pytest.approx(23.0)
    assert (ninety.per_seed[1], ninety.n_censored) == (None, 1)
    assert ninety.median == pytest.approx(23.0)
    # Its mean curve (0.7, 1.6, 1.8) / 3 against 0.9 x 1.8 / 3: 20 + 10 x (1.62 - 1.6) / 0.2.
    assert ninety.mean_curve == pytest.approx(21.0)
    # random's mean ends at 1.7 / 3 (30 images); entropy's mean has that at 20 + 10 x 0.1 / 0.2.
    assert compared.saving.value == pytest.approx(5.0)
    assert entropy.curve.values == pytest.approx((0.7 / 3, 1.6 / 3, 0.6))


def test_saving_compares_first_crossings_of_both():
    """A baseline that had its last score before, on a bump, gets that bump counted too."""
    labels = (10, 20, 30)
    curves = {
        "random": {s: Curve(labels, (0.2, 0.6, 0.5)) for s in range(5)},
        "entropy": {s: Curve(labels, (0.3, 0.7, 0.8)) for s in range(5)},
    }
    saving = compare_arms(curves, None).arms["entropy"].comparison.saving
    # 0.5 is reached at 17.5 by random and at 15 by entropy.
    assert saving.value == pytest.approx(2.5)
    assert saving.interval == pytest.approx((2.5, 2.5))


def test_saving_has_open_ends_where_the_score_is_not_reached():
    labels = (10, 20)
    base = {s: Curve(labels, (0.2, 0.6)) for s in range(5)}
    mixed = {s: Curve(labels, (0.2, 0.9 if s else 0.1)) for s in range(5)}
    never = {s: Curve(labels, (0.2, 0.5)) for s in range(5)}
    arms = compare_arms({"random": base, "mixed": mixed, "never": never}, None).arms
    saving = arms["mixed"].comparison.saving
    # Mean end 0.74: 0.6 at 10 + 10 x 0.4 / 0.54; with seed 0 twice or more never: 0.58.
    assert saving.value == pytest.approx(10 - 4 / 0.54)
    assert saving.interval == (None, pytest.approx(10 - 10 * 0.4 / 0.7))
    assert arms["never"].comparison.saving.value is None
    assert arms["never"].comparison.saving.interval == (None, None)


def test_significance_only_from_eight_seeds():
    gains = np.linspace(0.01, 0.08, 8)
    base = np.full(8, 0.5)
    eight = compare_arms(arms_of(random=base, a=base + gains, b=base - gains), None)
    compared = eight.arms["a"].comparison
    assert (compared.p, compared.p_holm) == pytest.approx((2 / 256, 4 / 256))
    assert (compared.significant, compared.reason) == (True, None)
    seven = compare_arms(arms_of(random=base[:7], a=(base + gains)[:7]), None)
    compared = seven.arms["a"].comparison
    assert compared.p == pytest.approx(2 / 128)
    assert compared.significant is None
    assert "7 seeds" in compared.reason
    assert "0.015625" in compared.reason
    flips = base + gains * np.tile([1, -1], 4)
    compared = compare_arms(arms_of(random=base, a=flips), None).arms["a"].comparison
    assert compared.significant is False


def test_win_tie_loss_counts_seeds_by_area():
    result = compare_arms(
        arms_of(
            random=[0.5, 0.5, 0.5, 0.5],
            a=[0.5 + 0.9 * TIE, 0.5 + 1.1 * TIE, 0.5 - 1.1 * TIE, 0.5],
        ),
        None,
    )
    assert result.matrix == {"random": {"a": (1, 2, 1)}, "a": {"random": (1, 2, 1)}}


def test_equal_arms_show_no_difference():
    result = compare_arms(
        arms_of(random=[0.3, 0.4, 0.5, 0.4, 0.5], a=[0.3, 0.4, 0.5, 0.4, 0.5]), None
    )
    compared = result.arms["a"].comparison
    assert (compared.area.value, compared.area.interval, compared.p) == (0.0, (0.0, 0.0), 1.0)
    assert "no difference shown" in verdict(result)[0]


def test_different_label_counts_are_compared_over_the_common_range():
    """Budgets in boxes: every run ends elsewhere."""
    curves = {
        "random": {0: Curve((10, 20, 40), (0.2, 0.4, 0.8)), 1: Curve((12, 30), (0.24, 0.6))},
        "a": {0: Curve((10, 36), (0.2, 0.72)), 1: Curve((10, 16, 32), (0.2, 0.32, 0.64))},
    }
    result = compare_arms(curves, None, unit="boxes")
    assert result.ranges == {0: (10, 36), 1: (12, 30)}
    assert result.label_range == (10, 36)
    # All lie on labels / 50: mean heights 23 / 50 and 21 / 50, last scores 0.72 and 0.6.
    for arm in result.arms.values():
        assert arm.areas == pytest.approx({0: 0.46, 1: 0.42})
    compared = result.arms["a"].comparison
    assert compared.area.value == pytest.approx(0, abs=1e-12)
    assert compared.last.value == pytest.approx(0, abs=1e-12)
    assert compared.p == 1.0
    assert result.arms["random"].curve.labels == (12, 20, 30)
    assert result.arms["random"].curve.values == pytest.approx((0.24, 0.4, 0.6))
    assert result.notes[0].startswith("areas and last scores of a seed are taken over the boxes")
    assert "from 10 to 36 boxes (less in some seeds)" in study_table(result)


def test_last_scores_are_read_where_the_first_arm_ends():
    curves = {
        "random": {0: Curve((10, 30), (0.2, 0.6))},
        "a": {0: Curve((10, 20), (0.2, 0.5))},
    }
    arm = compare_arms(curves, None).arms["a"]
    # random has 0.4 at 20: area 0.35 - 0.3, last 0.5 - 0.4.
    assert arm.comparison.area.value == pytest.approx(0.05)
    assert arm.comparison.last.value == pytest.approx(0.1)


def test_seeds_without_a_common_label_count_are_still_paired():
    """Initial sets of few images can hold very different numbers of boxes."""
    curves = {
        arm: {s: Curve((20 * s + 5, 20 * s + 15), (0.2, 0.5 + gain)) for s in range(5)}
        for arm, gain in (("random", 0.0), ("a", 0.1))
    }
    result = compare_arms(curves, dict.fromkeys(range(5), 0.6), unit="boxes")
    arm = result.arms["a"]
    assert (arm.curve.labels, arm.curve.values, arm.curve.low) == ((), (), None)
    assert arm.comparison.area.value == pytest.approx(0.05)
    assert arm.comparison.saving == Saving(None, None)
    # 0.54 of 0.6 at 5 + 10 x 0.34 / 0.4 = 13.5, 20 more in every seed: median that of seed 2.
    assert arm.goals[0].median == pytest.approx(53.5)
    assert arm.goals[0].mean_curve is None
    assert "the seeds share no range of boxes" in verdict(result)[0]
    json.dumps(result.to_json(), allow_nan=False)


def test_one_seed_has_no_interval():
    result = compare_arms(arms_of(random=[0.5], a=[0.7]), {0: 0.7})
    assert "1 seed, no interval" in result.notes
    arm = result.arms["a"]
    assert arm.area.interval is arm.curve.low is arm.curve.high is None
    assert arm.comparison.saving.interval is None
    assert (
        verdict(result)[0] == "a: area +0.200 against random: 1 seed, no interval, so no verdict."
    )
    assert study_table(result).endswith("1 seed, no interval")


def test_full_score_of_zero_or_absent_leaves_its_seed_out():
    curves = arms_of(random=[0.5, 0.5], a=[0.6, 0.6])
    goal = compare_arms(curves, {0: 0.0, 1: 0.5}).arms["a"].goals[0]
    assert goal.per_seed == {1: 20.0}
    assert (goal.median, goal.mean_curve, goal.n_censored) == (20.0, 20.0, 0)
    assert compare_arms(curves, {7: 0.5}).arms["a"].goals[0].per_seed == {}
    assert compare_arms(curves, None).arms["a"].goals == ()


def test_single_label_count():
    result = compare_arms(
        {a: {s: flat(h, (20,)) for s in range(5)} for a, h in (("random", 0.5), ("a", 0.6))}, None
    )
    assert result.arms["a"].comparison.area.value == pytest.approx(0.1)
    assert any("one label count only" in note for note in result.notes)


@pytest.mark.parametrize(
    ("curves", "words"),
    [
        ({"a": {0: flat(0.5)}}, r"arm 'a' has the seeds \[0\] and the baseline 'random' \[\]"),
        ({"random": {0: flat(0.5)}, "a": {1: flat(0.5)}}, r"seeds \[1\] and .* \[0\]: run both"),
        ({"random": {0: flat(0.5)}, "a": {}}, r"arm 'a' has the seeds \[\]"),
        ({"random": {}}, "arm 'random' has the seeds"),
        (
            {"random": {0: flat(0.5)}, "a": {0: flat(0.5, (50, 60))}},
            "with seed 0 no label count .* every arm: one starts at 50, but another ends at 40",
        ),
    ],
    ids=["baseline", "other_seeds", "empty_arm", "empty_baseline", "apart"],
)
def test_what_cannot_be_compared_is_one_sentence(curves, words):
    with pytest.raises(DataError, match=words) as caught:
        compare_arms(curves, None)
    assert len(str(caught.value).splitlines()) == 1


def test_order_of_arms_and_seeds_changes_nothing():
    rng = np.random.default_rng(0)
    curves = {
        arm: noisy(rng, range(6), gain)
        for arm, gain in (("random", 0.0), ("a", 0.01), ("b", -0.01), ("c", 0.03))
    }
    full = {s: 0.6 for s in range(6)}
    turned = {arm: dict(reversed(curves[arm].items())) for arm in reversed(curves)}
    one, other = compare_arms(curves, full), compare_arms(turned, full)
    assert one.to_json() == other.to_json()
    assert list(other.arms) == ["c", "b", "a", "random"]
    assert sorted(verdict(one)) == sorted(verdict(other))


def test_a_shift_of_all_scores_moves_no_difference():
    rng = np.random.default_rng(1)
    curves = {"random": noisy(rng, range(6)), "a": noisy(rng, range(6), 0.02)}
    moved = {
        arm: {s: Curve(c.labels, tuple(v + 0.25 for v in c.values)) for s, c in by_seed.items()}
        for arm, by_seed in curves.items()
    }
    before = compare_arms(curves, None).arms["a"]
    after = compare_arms(moved, None).arms["a"]
    assert after.area.value == pytest.approx(before.area.value + 0.25)
    for name in ("area", "last"):
        old, new = (getattr(arm.comparison, name) for arm in (before, after))
        assert (new.value, *new.interval) == pytest.approx((old.value, *old.interval))
    assert after.comparison.p == before.comparison.p
    assert after.comparison.saving.value == pytest.approx(before.comparison.saving.value)


def test_a_shift_per_seed_that_arms_share_moves_no_difference():
    """What pairing is for: easy and hard seeds cancel."""
    rng = np.random.default_rng(2)
    curves = {"random": noisy(rng, range(5)), "a": noisy(rng, range(5), 0.02)}
    moved = {
        arm: {s: Curve(c.labels, tuple(v + 0.1 * s for v in c.values)) for s, c in by_seed.items()}
        for arm, by_seed in curves.items()
    }
    before, after = (compare_arms(given, None).arms["a"] for given in (curves, moved))
    assert after.comparison.area.interval == pytest.approx(before.comparison.area.interval)
    width = np.ptp(after.area.interval)
    assert width > 5 * np.ptp(after.comparison.area.interval)


def test_result_is_plain_json():
    rng = np.random.default_rng(3)
    curves = {"random": noisy(rng, range(3)), "a": noisy(rng, range(3), 0.02)}
    for full in (None, {0: 0.6, 1: 0.6, 2: 2.0}):
        content = compare_arms(curves, full).to_json()
        assert json.loads(json.dumps(content, allow_nan=False)) == content
    goal = content["arms"]["a"]["goals"][0]
    assert goal["per_seed"]["2"] is None
    assert content["arms"]["random"]["comparison"] is None
