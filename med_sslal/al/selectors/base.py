"""The contract of a selector (the second stage of a query)."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple, Self

import numpy as np

from med_sslal.al.criteria.base import Criterion, Reader
from med_sslal.al.record import PoolRecord

Values = Mapping[str, np.ndarray]
"""Name of a criterion to its values over a whole record: float64 [N]."""


class Choice(NamedTuple):
    """The row of an image that a selector takes, and why: a part of a sentence, or nothing."""

    row: int
    reason: str


class Selector(Reader):
    """Takes exactly the budget from the candidates, from the record alone.

    Attributes:
        criteria: Criteria that it ranks by; their values over the whole pool are handed to it and
            written to selection.json.
        whole_pool: Whether `candidate_factor` "auto" hands it the whole pool, because it is a
            strategy of its own: never, after the criterion `random`, or always.
    """

    criteria: ClassVar[tuple[type[Criterion], ...]] = ()
    whole_pool: ClassVar[Literal["never", "after random", "always"]] = "never"

    def at(self, cycle: int, num_cycles: int) -> Self:
        """The selector of one of a run's queries, of which `num_cycles` are planned, from 0 on.

        One that goes by how far a run has come returns a copy that knows it.
        """
        return self

    @abstractmethod
    def select(
        self, record: PoolRecord, candidates: np.ndarray, values: Values, budget: int, seed: int
    ) -> list[Choice]:
        """Choose images.

        Args:
            record: What the pass over the pool saw.
            candidates: int64 [K] distinct rows of the record, best first by the first criterion.
            values: Criterion name to float64 [N] over the whole record: the first criterion's,
                then those of `criteria`.
            budget: How many to take, at most K.
            seed: For what is random in the selector.

        Returns:
            Exactly `budget` choices among the candidates, in the order of selection.
        """


class Ranking(Selector):
    """Takes the candidates of the highest worth; of two alike, the one that comes first.

    Attributes:
        words: Why an image was taken, with its {worth} and its {place}, "place 3 of 20".
    """

    words: ClassVar[str] = ""

    @abstractmethod
    def worth(self, record: PoolRecord, candidates: np.ndarray, values: Values) -> np.ndarray:
        """Worth of each candidate, float64 [K], rounded. The arguments are those of `select`."""

    def select(
        self, record: PoolRecord, candidates: np.ndarray, values: Values, budget: int, seed: int
    ) -> list[Choice]:
        """Take the `budget` best by worth."""
        worth = self.worth(record, candidates, values)
        choices = []
        for number, row in enumerate(np.argsort(-worth, kind="stable")[:budget], start=1):
            place = f"place {number} of {len(candidates)}"
            reason = self.words.format(worth=float(worth[row]), place=place)
            choices.append(Choice(int(candidates[row]), reason))
        return choices
