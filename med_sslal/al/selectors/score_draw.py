"""A draw by score over predicted classes (ClaSP PE, TMLR 2026)."""

from collections.abc import Sequence
from copy import copy
from typing import Self

import numpy as np

from med_sslal.al.arrays import ranks_of, round_scores
from med_sslal.al.record import PLAIN, PoolRecord, RecordSection
from med_sslal.al.selectors.base import Choice, Selector, Values

# From the first query of a run to its last.
FIRST_BETA, LAST_BETA = 1.0, 100.0


class ScoreDraw(Selector):
    """A draw by score: at random in the first cycles, best first in the last, classes in turn.

    Formula: the highest log(x_i) + Gumbel(0, 1 / beta) are taken, so images come by a draw with
    P ~ x_i^beta; beta = 100^(t / (T - 1)) in query t of T, from 1 to 100. One third of the budget
    goes to x_i = s_i, the percentile rank of candidate i by the first criterion (rank / K, worst =
    1, ties share their mean), in (0, 1]. Before it two thirds are split over the predicted classes
    in a seeded order, each with x_i = p_ic s_i, where p_ic is the highest score of a detection of
    class c; what a class cannot fill goes to the last third. With one class these are the thirds
    of the images by the size of their best detection, and p_i is its score. Source: ClaSP PE, TMLR
    2026. The candidates are the whole pool unless `candidate_factor` is a number.
    """

    name = "score_draw"
    whole_pool = "always"

    _beta = FIRST_BETA

    def at(self, cycle: int, num_cycles: int) -> Self:
        """With the beta of a query."""
        share = min(cycle / (num_cycles - 1), 1.0) if num_cycles > 1 else 0.0
        one = copy(self)
        one._beta = FIRST_BETA * (LAST_BETA / FIRST_BETA) ** share
        return one

    def select(
        self, record: PoolRecord, candidates: np.ndarray, values: Values, budget: int, seed: int
    ) -> list[Choice]:
        """Draw for each class, then for the rest of the budget."""
        generator = np.random.default_rng(seed)
        section = record.section(PLAIN)
        score = next(iter(values.values()))[candidates]
        shares = ranks_of(score) / max(len(candidates), 1)
        free, parts = np.ones(len(candidates), dtype=bool), []

        def draw(worth: np.ndarray, n_images: int, words: str) -> None:
            """Take the highest of `worth` [K] after the noise, of those that are left."""
            # A number for each row of the record, whatever candidates there are.
            noise = generator.gumbel(size=len(section))[candidates] / self._beta
            possible = free & (worth > 0)
            keys = np.full(len(worth), -np.inf)
            keys[possible] = np.log(worth[possible]) + noise[possible]
            taken = np.argsort(-keys, kind="stable")[: min(n_images, possible.sum())]
            free[taken] = False
            reason = f"drawn by score {words}, beta {self._beta:.3g}"
            parts.append([Choice(int(candidates[place]), reason) for place in taken])

        # Place of each row among the candidates; -1 where it is none.
        places = np.full(len(section), -1)
        places[candidates] = np.arange(len(candidates))
        strata = _strata(section, places, record.header.class_names)
        share, more = divmod(2 * budget // 3, max(len(strata), 1))
        for turn, number in enumerate(generator.permutation(len(strata))):
            name, rows = strata[number]
            best = np.zeros(len(candidates))
            np.maximum.at(best, places[section.owners[rows]], round_scores(section.scores[rows]))
            draw(best * shares, share + (turn < more), f"among {name}")
        draw(shares, budget - sum(map(len, parts)), "among all")
        # Mixed, as a budget in boxes may end before the last.
        order = [
            ((turn + 0.5) / len(part), each) for part in parts for turn, each in enumerate(part)
        ]
        return [choice for _, choice in sorted(order, key=lambda pair: pair[0])]


def _strata(
    section: RecordSection, places: np.ndarray, class_names: Sequence[str]
) -> list[tuple[str, np.ndarray]]:
    """In words and as rows, the candidates' detections of each class, or of each third by size.

    `places` holds -1 for images that are no candidates; a part without a detection is left out.
    """
    rows = np.flatnonzero(places[section.owners] >= 0)
    if len(class_names) > 1:
        names, numbers = [f"images of {name}" for name in class_names], section.labels[rows]
    else:
        names = [f"images of {third} objects" for third in ("small", "medium", "large")]
        rows, numbers = _thirds(section, rows)
    found = ((name, rows[numbers == number]) for number, name in enumerate(names, start=1))
    return [(name, own) for name, own in found if len(own)]


def _thirds(section: RecordSection, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of `rows` the best detection of each image (all that tie), and its third by size, 1 to 3."""
    owners, scores = section.owners[rows], round_scores(section.scores[rows])
    best, sizes = np.zeros(len(section)), np.zeros(len(section))
    np.maximum.at(best, owners, scores)
    is_best = scores == best[owners]
    rows, owners = rows[is_best], owners[is_best]
    sides = section.boxes[rows, 2:] - section.boxes[rows, :2]
    # Square root of the area, rounded so that noise of the boxes decides nothing.
    np.maximum.at(sizes, owners, np.round(np.sqrt(sides.prod(axis=1)), 1))
    known = sizes[np.unique(owners)]
    limits = np.quantile(known, [1 / 3, 2 / 3], method="lower") if len(known) else np.zeros(2)
    return rows, np.searchsorted(limits, sizes[owners]) + 1
