"""Value for money, the greedy rule for knapsacks (Dantzig, Operations Research 5, 1957)."""

import numpy as np

from med_sslal.al.arrays import ranks_of
from med_sslal.al.budget import PREDICTED_COST
from med_sslal.al.record import PoolRecord
from med_sslal.al.selectors.base import Ranking, Values


class GreedyBoxCost(Ranking):
    """Value for money: the candidates of the best score per predicted cost.

    Formula: the highest r_i / c_i first, where c_i is the predicted cost of image i in the unit of
    the budget (boxes or seconds), and r_i the rank of candidate i by the first criterion (worst =
    1, ties share their mean), so that criteria of any scale and sign can be weighed. Of two alike
    the one that the first criterion rates higher. With a budget in images all cost the same, and
    it is `top_k`; with `candidate_factor: null` it chooses from the whole pool.
    """

    name = "greedy_box_cost"
    words = "{place} by score per cost"

    def worth(self, record: PoolRecord, candidates: np.ndarray, values: Values) -> np.ndarray:
        """Rank per cost, rounded, so that equal quotients of different numbers stay equal."""
        score = next(iter(values.values()))
        costs = values.get(PREDICTED_COST, np.ones_like(score))
        return np.round(ranks_of(score[candidates]) / costs[candidates], 9)
