"""The contract of every criterion with every selector, and each selector's own rule."""

import math
import warnings

import numpy as np
import pytest
from records import detections, random_images, write_full_record, write_record
from sklearn.cluster import KMeans

from med_sslal.al.al_criteria import CRITERIA, SELECTORS, describe
from med_sslal.al.al_helpers import ActiveLearningHelper
from med_sslal.al.pool import Pool
from med_sslal.al.query import rank
from med_sslal.al.selectors import k_center, typicality


def query(record, names, budget, *, seed=0, cycle=1, **args):
    pool = Pool(("labelled",), tuple(record.image_ids.tolist()))
    helper = ActiveLearningHelper(1, budget, list(names), seed=seed, **args)
    return helper.query(record, pool, budget, cycle)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """The same pool forth and back, and a pool of which nothing was detected."""
    folder = tmp_path_factory.mktemp("records")
    images = random_images(np.random.default_rng(2), 40, 3)
    empty = random_images(np.random.default_rng(2), 40, 3, n=0)
    backwards = dict(reversed(images.items()))
    return {
        "forth": write_full_record(folder / "forth", images, n_classes=3),
        "back": write_full_record(folder / "back", backwards, n_classes=3, shard_size=7),
        "empty": write_full_record(folder / "empty", empty, n_classes=3),
    }


@pytest.mark.parametrize("second", SELECTORS)
@pytest.mark.parametrize("first", CRITERIA)
class TestContract:
    @pytest.mark.parametrize("budget", [1, 7, 20, 40])
    @pytest.mark.parametrize("pool", ["forth", "empty"])
    def test_exactly_the_budget_of_distinct_candidates(self, records, first, second, budget, pool):
        record = records[pool]
        selection = query(record, [first, second], budget)
        assert len(selection.image_ids) == len(set(selection.image_ids)) == budget
        ids = record.image_ids.tolist()
        assert set(selection.image_ids) <= set(ids)
        values = np.array([selection.scores[first][name] for name in ids])
        alone = {"after random": first == "random", "always": True}
        n_candidates = 40 if alone.get(SELECTORS[second].whole_pool) else 2 * budget
        worst = np.sort(values)[::-1][:n_candidates][-1]
        assert all(item.values[first] >= worst for item in selection.items)
        assert [item.rank for item in selection.items] == list(range(1, budget + 1))
        assert all(set(selection.scores[name]) == set(ids) for name in selection.scores)
        assert all(np.isfinite(list(item.values.values())).all() for item in selection.items)

    def test_same_seed_same_answer_and_order_of_files_irrelevant(self, records, first, second):
        selections = [query(records[name], [first, second], 9) for name in ("forth", "back")]
        assert selections[0] == selections[1]


@pytest.mark.parametrize("second", SELECTORS)
def test_noise_of_batch_sizes_changes_no_choice(tmp_path, second):
    generator = np.random.default_rng(8)
    noise = np.random.default_rng(9)
    # On the grid of the rounding, as its middle is where noise cannot reach.
    embeddings = generator.integers(-3000, 3000, (30, 6)) / 1000
    scores = generator.integers(1000, 9999, 30) / 10000

    def record(name, amount):
        images = {
            f"image{number:02d}": detections(
                [float(score + amount * noise.uniform(-5e-7, 5e-7))],
                embedding=(embedding + amount * noise.uniform(-5e-7, 5e-7, 6)).astype("f4"),
            )
            for number, (embedding, score) in enumerate(zip(embeddings, scores, strict=True))
        }
        return write_full_record(tmp_path / name, images)

    names = ["prediction_uncertainty", second]
    first, noisy = query(record("a", 0), names, 8), query(record("b", 1), names, 8)
    assert first == noisy


@pytest.mark.parametrize("second", SELECTORS)
def test_no_budget_takes_nothing(records, second):
    empty = np.zeros(0, dtype=np.int64)
    values = {"entropy": np.zeros(40), "representativeness": np.zeros(40)}
    for candidates in (np.arange(5), empty):
        assert SELECTORS[second]().select(records["forth"], candidates, values, 0, 1) == []


@pytest.mark.parametrize("second", SELECTORS)
def test_ties_follow_seed_and_cycle(records, second):
    chosen = {
        query(records["empty"], ["entropy", second], 5, seed=seed, cycle=cycle).image_ids
        for seed, cycle in ((0, 1), (1, 1), (0, 2))
    }
    assert len(chosen) == 3


def test_top_k_is_the_head_of_the_ranking(records):
    record = records["forth"]
    selection = query(record, ["entropy"], 6)
    values = [selection.scores["entropy"][name] for name in record.image_ids.tolist()]
    assert [item.values["entropy"] for item in selection.items] == sorted(values)[::-1][:6]
    assert selection == query(record, ["entropy", "top_k"], 6)
    assert selection.criteria == ("entropy", "top_k")


def test_ties_are_ranked_by_a_hash_and_not_by_position():
    values, ids = np.zeros(50), tuple(f"i{number:02d}" for number in range(50))
    order = rank(values, ids, seed=3)
    assert sorted(order.tolist()) == list(range(50))
    assert order.tolist() != list(range(50))
    assert order.tolist() != rank(values, ids, seed=4).tolist()
    by_id = {ids[row]: place for place, row in enumerate(order.tolist())}
    back = rank(values, ids[::-1], seed=3)
    assert {ids[::-1][row]: place for place, row in enumerate(back.tolist())} == by_id


def clusters(embeddings, scores):
    """Images named by letter; the value of `prediction_uncertainty` is 1 - score."""
    return {
        letter: detections([score], embedding=embedding)
        for letter, embedding, score in zip("abcdefgh", embeddings, scores, strict=False)
    }


def test_k_means_takes_the_best_of_each_cluster_before_the_second_best(tmp_path):
    far = [[0.0, 0], [0.0, 1], [0.0, 2], [100.0, 0], [100.0, 1], [0.0, 100]]
    # Clusters abc, de and f; by uncertainty the order is b, d, a, f, c, e.
    record = write_record(tmp_path / "r", clusters(far, [0.3, 0.1, 0.5, 0.2, 0.6, 0.4]))
    names = ["prediction_uncertainty", "k_means_diversity"]
    assert query(record, names, 3).image_ids == ("b", "d", "f")
    assert query(record, [names[0], "top_k"], 3).image_ids == ("b", "d", "a")
    reasons = [item.reason for item in query(record, names, 3).items]
    assert reasons[1] == (
        "prediction_uncertainty 0.8000, place 2 of 6; best of cluster 2 of 3 (size 2)"
    )


def test_k_means_goes_round_again_where_distinct_embeddings_are_few(tmp_path):
    two_points = [[0.0, 0], [0.0, 0], [0.0, 0], [5.0, 5], [5.0, 5]]
    record = write_record(tmp_path / "r", clusters(two_points, [0.1, 0.2, 0.3, 0.4, 0.5]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        selection = query(record, ["prediction_uncertainty", "k_means_diversity"], 4)
    assert selection.image_ids == ("a", "d", "b", "e")
    assert "2nd best of cluster 1 of 2" in selection.items[2].reason


@pytest.mark.parametrize("budget", [1, 3, 5])
def test_k_means_on_equal_embeddings_is_top_k(tmp_path, budget):
    equal = [[1.0, 2.0]] * 5
    record = write_record(tmp_path / "r", clusters(equal, [0.5, 0.4, 0.3, 0.2, 0.1]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        selection = query(record, ["prediction_uncertainty", "k_means_diversity"], budget)
    assert selection.image_ids == tuple("edcba")[:budget]


def test_representativeness_takes_the_most_typical_candidates(tmp_path):
    angles = [[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [1.0, 0.1], [0.0, 1.0], [-1.0, 0.0]]
    record = write_record(tmp_path / "r", clusters(angles, [0.5, 0.1, 0.2, 0.9, 0.15, 0.12]))
    names = ["prediction_uncertainty", "representativeness"]
    # Candidates are the best four by uncertainty: b, f, e, c.
    selection = query(record, names, 2)
    assert selection.image_ids == ("c", "b")
    assert selection.criteria == tuple(names)
    assert set(selection.items[0].values) == set(names)
    assert "place 1 of 4 candidates" in selection.items[0].reason
    # From the whole pool d joins, which the first criterion rates last.
    assert set(query(record, names, 3, candidate_factor=None).image_ids) == {"b", "c", "d"}


def whole(embedding):
    """Whole numbers of 1e-3, which Python adds and multiplies without any error."""
    return [round(float(value) * 1000) for value in embedding]


def literal_distance(a, b):
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def literal_k_center(points, known, budget):
    """Places of the candidates in the order of the greedy cover."""
    chosen, covered = [], list(known)
    while len(chosen) < budget:
        best, farthest = None, -1.0
        for place, point in enumerate(points):
            distance = min((literal_distance(point, other) for other in covered), default=math.inf)
            if place not in chosen and distance > farthest:
                best, farthest = place, distance
        chosen.append(best)
        covered.append(points[best])
    return chosen


def literal_k_means_plus_plus(points, scores, budget, seed):
    """Places of the candidates in the order of the draws."""
    generator = np.random.default_rng(seed)
    weights = [
        (sum(s < own for s in scores) + 1 + sum(s <= own for s in scores)) / 2 for own in scores
    ]
    chosen = []
    while len(chosen) < budget:
        distances = [
            min((literal_distance(point, points[place]) for place in chosen), default=1)
            for point in points
        ]
        chances = [weight * distance for weight, distance in zip(weights, distances, strict=True)]
        if sum(chances) == 0:
            chosen.append(next(place for place in range(len(points)) if place not in chosen))
            continue
        mark, passed = generator.random() * sum(chances), 0.0
        for place, chance in enumerate(chances):
            passed += chance
            if passed > mark:
                chosen.append(place)
                break
    return chosen


@pytest.fixture(scope="module")
def hundred(tmp_path_factory):
    """Records with their candidates, best first, and budgets; often with equal embeddings."""
    folder = tmp_path_factory.mktemp("hundred")
    generator = np.random.default_rng(11)
    cases = []
    for number in range(100):
        n_images, n_labelled = int(generator.integers(1, 14)), number % 4
        names = [f"image{image:02d}" for image in range(n_images + n_labelled)]
        scale = 3.0 if number % 2 else 1.2345
        found = {
            name: detections([0.5], embedding=(generator.integers(0, 3, 2) * scale).astype("f4"))
            for name in names
        }
        pool, labelled = names[:n_images], names[n_images:]
        record = write_record(
            folder / str(number),
            {name: found[name] for name in pool},
            labelled={name: found[name] for name in labelled},
        )
        scores = generator.integers(-3, 3, n_images).astype(float)
        candidates = np.argsort(-scores, kind="stable")[: int(generator.integers(1, n_images + 1))]
        points = [whole(found[pool[row]].embedding) for row in candidates]
        known = [whole(found[name].embedding) for name in labelled]
        budget = int(generator.integers(1, len(candidates) + 1))
        cases.append((record, candidates, scores, points, known, budget))
    return cases


def test_k_center_equals_the_literal_reference(hundred, monkeypatch):
    monkeypatch.setattr(k_center, "BLOCK_CENTERS", 2)
    for record, candidates, scores, points, known, budget in hundred:
        expected = candidates[literal_k_center(points, known, budget)]
        chosen = SELECTORS["k_center"]().select(record, candidates, {"any": scores}, budget, 0)
        assert [choice.row for choice in chosen] == expected.tolist()


def test_k_means_plus_plus_equals_the_literal_reference(hundred):
    for seed, (record, candidates, scores, points, _, budget) in enumerate(hundred):
        own = scores[candidates].tolist()
        expected = candidates[literal_k_means_plus_plus(points, own, budget, seed)]
        selector = SELECTORS["k_means_plus_plus"]()
        chosen = selector.select(record, candidates, {"any": scores}, budget, seed)
        assert [choice.row for choice in chosen] == expected.tolist()


def literal_typicality(points, known, budget, seed, n_neighbours):
    """Places of the candidates, given in the order of their ids as (place, point) pairs."""
    rows = [(-1, point) for point in known] + points
    grid = np.array([point for _, point in rows]) / 1000
    k = min(len(known) + budget, len({tuple(point) for _, point in rows}))
    labels = KMeans(k, n_init=1, random_state=seed).fit_predict(grid).tolist()
    clusters = [[rows[i] for i in range(len(rows)) if labels[i] == c] for c in range(k)]

    def mean_distance(image, members):
        others = [math.sqrt(literal_distance(image[1], m[1])) for m in members if m is not image]
        nearest = sorted(others)[:n_neighbours]
        return sum(nearest) / max(len(nearest), 1)

    chosen = []
    while len(chosen) < budget:
        best = None
        for members in clusters:
            own = [image for image in members if image[0] >= 0]
            left = [image for image in own if image[0] not in chosen]
            if left:
                n_covered = len(members) - len(left)
                turn = (n_covered, -len(own), min(place for place, _ in own))
                if best is None or turn < best[0]:
                    best = turn, members, left
        _, members, left = best
        chosen.append(min(left, key=lambda image: (mean_distance(image, members), image[0]))[0])
    return chosen


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("neighbours", [2, 20])
def test_typicality_equals_the_literal_reference(hundred, monkeypatch, neighbours):
    monkeypatch.setattr(typicality, "BLOCK_VALUES", 5)
    monkeypatch.setattr(typicality, "N_NEIGHBOURS", neighbours)
    for seed, (record, candidates, _, points, known, budget) in enumerate(hundred):
        by_id = [(int(place), points[place]) for place in np.argsort(candidates)]
        expected = candidates[literal_typicality(by_id, known, budget, seed, neighbours)]
        chosen = SELECTORS["typicality"]().select(record, candidates, {}, budget, seed)
        assert [choice.row for choice in chosen] == expected.tolist()


def test_typicality_takes_the_middle_of_what_has_no_label(tmp_path):
    # A labelled heap of abc, one of defg around e, and h alone.
    places = [[0.0, 0], [0.0, 1], [0.0, 2], [50, 0], [51, 0], [52.5, 0], [51, 9], [0.0, 80]]
    images = clusters(places, [0.5] * 8)
    labelled = {"z": detections([], embedding=[0.0, 1.5])}
    record = write_record(tmp_path / "r", images, labelled=labelled)
    # By default from the whole pool after `random`, not from twice the budget.
    selection = query(record, ["random", "typicality"], 2)
    assert selection.image_ids == ("e", "h")
    assert selection == query(record, ["random", "typicality"], 2, candidate_factor=None)
    mean = f"{(1 + 1.5 + 9) / 3:.3f}"
    reasons = [item.reason.split("; ")[1] for item in selection.items]
    assert reasons == [
        f"mean distance {mean} to 3 neighbours in a cluster of 4, without a label",
        "mean distance 0.000 to 0 neighbours in a cluster of 1, without a label",
    ]


def test_typicality_goes_round_again_where_distinct_embeddings_are_few(tmp_path):
    two_points = [[0.0, 0], [0.0, 0], [0.0, 0], [5.0, 5], [5.0, 5]]
    record = write_record(tmp_path / "r", clusters(two_points, [0.5] * 5))
    selection = query(record, ["random", "typicality"], 4)
    assert [name in "abc" for name in selection.image_ids] == [True, False, True, False]
    assert selection.items[2].reason.endswith("in a cluster of 3, with 1 labelled or chosen")


def test_k_center_covers_what_the_labelled_images_do_not(tmp_path):
    places = [[0.0, 1], [0.0, 9], [0.0, 10], [40.0, 0], [41.0, 0], [0.0, 0]]
    images = clusters(places, [0.5] * 6)
    labelled = {"z": detections([], embedding=[42.0, 0.0])}
    record = write_record(tmp_path / "r", images, labelled=labelled)
    selection = query(record, ["random", "k_center"], 3, candidate_factor=None)
    # c is farthest from z, then f from both; 1 is left for b (to c) and a (to f), 2 for d.
    assert selection.image_ids == ("c", "f", "d")
    assert selection.items[2].reason.endswith(
        "distance 2.000 to the nearest labelled or chosen image"
    )


def test_k_means_plus_plus_draws_by_score_and_distance(tmp_path):
    # Two heaps far apart, alike but for the score inside each.
    places = [[0.0, 0], [0.0, 0], [0.0, 0], [9.0, 9], [9.0, 9], [9.0, 9]]
    record = write_record(tmp_path / "r", clusters(places, [0.1, 0.5, 0.9] * 2))
    names = ["prediction_uncertainty", "k_means_plus_plus"]
    drawn = [query(record, names, 2, seed=seed, candidate_factor=None) for seed in range(200)]
    pairs = ["".join(selection.image_ids) for selection in drawn]
    assert all((a in "abc") != (b in "abc") for a, b in pairs), "never two of one heap"
    often = {letter: sum(letter in pair for pair in pairs) for letter in "abc"}
    # Mean ranks are 5.5, 3.5 and 1.5 of 10.5: about 105, 67 and 29 of 200.
    assert 80 < often["a"] < 130 and 45 < often["b"] < 90 and 12 < often["c"] < 50
    assert "drawn first, by score" in drawn[0].items[0].reason
    assert "by distance 12.728 to the nearest" in drawn[0].items[1].reason


@pytest.mark.parametrize(
    ("names", "n_candidates"),
    [
        (["random", "k_center"], 40),
        (["foreground_random", "k_center"], 10),
        (["entropy", "typicality"], 10),
        (["random", "k_means_diversity"], 10),
    ],
)
def test_covering_after_random_takes_from_the_whole_pool(records, names, n_candidates):
    def chosen(factor):
        return query(records["forth"], names, 5, candidate_factor=factor)

    assert chosen("auto") == chosen(n_candidates / 5)
    assert (chosen("auto") == chosen(None)) == (n_candidates == 40)


@pytest.mark.parametrize(
    ("factor", "allowed"),
    [("auto", 10), (3, 15), (1, 5), (1.5, 8), (None, 40), (100, 40)],
    ids=["auto", "3", "1", "1.5 rounds up", "whole pool", "more than the pool"],
)
def test_candidate_factor_bounds_the_second_stage(records, factor, allowed):
    names = ["entropy", "representativeness"]
    selection = query(records["forth"], names, 5, candidate_factor=factor)
    places = [int(item.reason.split("place ")[1].split(" of")[0]) for item in selection.items]
    assert max(places) <= allowed
    assert f"of {allowed} candidates" in selection.items[0].reason


def test_every_selector_is_described_in_one_line():
    lines = describe(SELECTORS)
    assert len(set(lines.values())) == len(SELECTORS)
    assert all(20 < len(line) < 100 for line in lines.values())
