"""What happens to bad files and boxes found while a dataset is opened."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from med_sslal.utils.errors import DataError

logger = logging.getLogger(__name__)

OnBadSample = Literal["error", "skip"]

MAX_LINES = 20


class ListedError(DataError):
    """Several things that are wrong at once: `problems` are all of them, the message the first."""

    def __init__(self, head: str, problems: Sequence[str]) -> None:
        more = [f"... and {len(problems) - MAX_LINES} more"] * (len(problems) > MAX_LINES)
        super().__init__("\n  ".join([*([head] if head else []), *problems[:MAX_LINES], *more]))
        self.problems = tuple(problems)


class BadSamplesError(ListedError):
    """What `on_bad_sample` "skip" would have left out."""


class BadSamples:
    """Collects everything wrong with a `source` (file or folder), then fails with it or goes on.

    Under `error` nothing is raised before `finish`, so that a user sees all problems at once.
    Under `skip` each problem is logged when it is found; the caller leaves the thing out.
    """

    def __init__(self, policy: OnBadSample, source: str) -> None:
        self.policy, self.source = policy, source
        self.problems: list[str] = []

    def add(self, problem: str) -> None:
        """Note one bad file, row or box: a sentence that says where and what."""
        # It may name a file whose name is not UTF-8.
        problem = problem.encode(errors="backslashreplace").decode()
        self.problems.append(problem)
        if self.policy == "skip":
            logger.warning("skipped: %s", problem)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note a DataError of the block, which ends there."""
        try:
            yield
        except DataError as error:
            self.add(str(error))

    def finish(self) -> None:
        """Close the collection; under `error` BadSamplesError lists what was bad, if anything."""
        count = len(self.problems)
        if count and self.policy == "skip":
            logger.warning("%s: %d bad sample(s) skipped", self.source, count)
        elif count:
            raise BadSamplesError(
                f"{self.source}: {count} bad sample(s); mend them, or leave them out with "
                '"on_bad_sample": "skip" in dataset.args:',
                self.problems,
            )
