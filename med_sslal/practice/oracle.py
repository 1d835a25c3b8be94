"""Where labels come from in practice: a person answers queries, over days."""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import median
from typing import Annotated

from annotated_types import Ge, Gt, Le

from med_sslal.al.budget import CostModel
from med_sslal.al.oracle import Oracle
from med_sslal.al.pool import Pool
from med_sslal.base.types import Annotation
from med_sslal.config.schema import Share
from med_sslal.data.pictures import Window
from med_sslal.practice.beside import Beside
from med_sslal.practice.corrections import MAX_SECONDS
from med_sslal.practice.journal import Journal
from med_sslal.utils.errors import DataError

logger = logging.getLogger(__name__)

# Answers with a time from which on these tell the pace of who answers.
ENOUGH_TIMES = 20


@dataclass(frozen=True)
class Progress:
    """How many images of a query are in which state."""

    labelled: int
    confirmed_empty: int
    skipped: int
    in_progress: int  # a draft is no answer
    pending: int

    @classmethod
    def of(cls, image_ids: Sequence[str], journal: Journal) -> "Progress":
        """That of the images of a query; answers to another query with them count too."""
        held = journal.standing()
        states = [held[name].state if name in held else "pending" for name in image_ids]
        return cls(**{each.name: states.count(each.name) for each in fields(cls)})

    @property
    def answered(self) -> int:
        """Images with an answer: that it was skipped is one."""
        return self.labelled + self.confirmed_empty + self.skipped

    @property
    def total(self) -> int:
        """All images of the query."""
        return self.answered + self.in_progress + self.pending

    def missing(self, min_answered: float) -> int:
        """Answers that are missing until such a share of the images has one."""
        # 0.1 * 30 is a little more than 3.
        return max(0, math.ceil(min_answered * self.total - 1e-9) - self.answered)

    def __str__(self) -> str:
        return (
            f"{self.answered} of {self.total} images are answered: {self.labelled} labelled, "
            f"{self.confirmed_empty} confirmed empty, {self.skipped} skipped; "
            f"{self.in_progress} in progress, {self.pending} pending"
        )


class HumanOracle(Oracle):
    """A person: it knows the labels of the data, and the answers that the journal has of them.

    Args:
        annotations: Labels of training images that the data has, by image id.
        journal: What was answered until now.
        min_answered: Share of a query that must be answered before the run goes on; skipped
            images count as answered.
        blind: Share of a query's images that are shown without predictions.
        shown_score: Predictions from this score on are shown.
        box_padding_px: Pixels by which the labels of the data are wider than their objects on each
            side; boxes that come back are widened so.
        windows: Copies of each image in these windows of its values, lowest and highest, to be
            looked at beside it, such as [[-175, 275], [-1500, 500]] in CT.
        neighbours: Slices before and after each image in its series, to be looked at beside it.
    """

    def __init__(
        self,
        annotations: Mapping[str, Annotation],
        journal: Journal,
        *,
        min_answered: Annotated[float, Gt(0), Le(1)] = 1.0,
        blind: Share = 0.0,
        shown_score: Share = 0.3,
        box_padding_px: Annotated[float, Ge(0)] = 0.0,
        windows: Sequence[Window] = (),
        neighbours: Annotated[int, Ge(0)] = 0,
    ) -> None:
        super().__init__(annotations)
        self.journal, self.min_answered = journal, min_answered
        self.blind, self.shown_score, self.box_padding_px = blind, shown_score, box_padding_px
        self.beside = Beside([(low, high) for low, high in windows], neighbours)

    def _as_of(self, answers: int) -> dict[str, Annotation]:
        if answers > len(self.journal):
            raise DataError(
                f"the run stands on {answers} imports of answers, and its journal has "
                f"{len(self.journal)}: put back a copy of answers.jsonl that has them"
            )
        return {**self._annotations, **self.journal.labels(answers)}

    def paced(self, costs: CostModel, answers: int) -> CostModel:
        """Costs in seconds at the pace of who has answered, after so many imports.

        Both seconds are multiplied by the median, over images labelled or confirmed empty, of the
        time that was taken over what `costs` says of as many boxes; times over `MAX_SECONDS` are
        left out. Where fewer than `ENOUGH_TIMES` are known, the costs stay.
        """
        factors = [
            answer.seconds / costs.seconds(1, len(answer.labels))
            for answer in self.journal.standing(answers).values()
            if answer.state in ("labelled", "confirmed_empty")
            and answer.seconds
            and answer.seconds <= MAX_SECONDS
        ]
        if costs.unit != "seconds" or len(factors) < ENOUGH_TIMES:
            return costs
        factor = median(factors)
        text = "%d answers took %.2f times as long as seconds_per_image and seconds_per_box say"
        logger.info(text, len(factors), factor)
        seconds = (costs.seconds_per_image * factor, costs.seconds_per_box * factor)
        return CostModel(costs.unit, *seconds)

    def pool_after(self, pool: Pool, query: Iterable[str], train: Iterable[str]) -> Pool:
        """The pool of the cycle after a query, by all answers until now.

        Labelled images keep their place; those of the `query` follow in its order, then those
        whose answers to earlier queries came late. One whose label was withdrawn is unlabelled
        again. A skipped image is in neither half of the pool.
        """
        labels, held = self.journal.labels(), self.journal.standing()
        asked = {answer.image_id for told in self.journal.imports for answer in told.answers}
        kept = [name for name in pool.labelled if name in labels or name not in asked]
        new = [name for name in (*query, *labels) if name in labels]
        labelled = tuple(dict.fromkeys((*kept, *new)))
        out = {*labelled, *(name for name, answer in held.items() if answer.state == "skipped")}
        rest = tuple(name for name in train if name not in out)
        return Pool(labelled, rest, len(self.journal))
