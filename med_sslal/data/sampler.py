"""The order of an epoch: a pure function of (seed, epoch), whatever the workers do."""

import math
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from med_sslal.utils.distributed import ALONE, World
from med_sslal.utils.errors import ConfigError
from med_sslal.utils.util import numpy_generator

Key = tuple[int, int]


class _EpochSampler(Sampler[list[Key]]):
    """Batches of one epoch after the other, each from any batch on."""

    _epoch = _start = _batches = 0

    def __len__(self) -> int:
        """Number of batches of a WHOLE epoch, whatever the start."""
        return self._batches

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; it begins with its first batch."""
        self._epoch, self._start = epoch, 0

    def set_start(self, batch: int) -> None:
        """Begin the next iteration with batch number `batch` (0-based): exact resume.

        It holds until the next `set_epoch`. The batches are those of an unbroken epoch.
        """
        if not 0 <= batch <= len(self):
            raise ValueError(f"start must lie in 0..{len(self)}, found {batch}")
        self._start = batch


class EpochBatchSampler(_EpochSampler):
    """Shuffled batches of (position, epoch); an epoch is one pass over the labelled images.

    Positions 0 to n_labelled - 1 are labelled images, those behind them pseudo-labelled ones. The
    labelled images of each batch are the same whether or not pseudo-labelled ones come on top:
    `per_step` of these (fewer where there are not so many: no image comes twice in a batch) in a
    shuffled order that starts afresh each epoch and goes round when it is used up. From the step
    `tail` on none come.

    The last batch of an epoch may have fewer labelled images. A single one that would be left for
    it sits out this epoch (another one in the next), because batch norm learns nothing from one
    image; it stays where it is the only batch.

    Of several processes each gets its share of every batch, in order, so that all of them together
    see what one would. Where a batch has fewer images than there are processes, those without one
    get the batch's first image, which `share` counts as no image.
    """

    def __init__(
        self,
        n_labelled: int,
        n_pseudo: int,
        batch_size: int,
        seed: int,
        world: World = ALONE,
        *,
        per_step: int | None = None,
        tail: int | None = None,
    ) -> None:
        """Take `batch_size` labelled images a batch, over all processes, and `per_step` others.

        None takes as many pseudo-labelled ones; `tail` is a step counted from 0, None for none.
        ConfigError where there is no labelled image.
        """
        if n_labelled < 1:
            raise ConfigError("training needs one labelled image at least, found none")
        self.n_labelled, self.n_pseudo, self.seed = n_labelled, n_pseudo, seed
        self._world, self._batch_size = world, batch_size
        self._per_step = min(batch_size if per_step is None else per_step, n_pseudo)
        full, left = divmod(n_labelled, batch_size)
        self._batches = full + (left > (1 if full else 0))
        self._tail = math.inf if tail is None else tail

    def counts(self, batch: int) -> tuple[int, int]:
        """Labelled and pseudo-labelled images of a batch of the epoch, in all processes."""
        labelled = min(self._batch_size, self.n_labelled - batch * self._batch_size)
        step = self._epoch * len(self) + batch
        return labelled, self._per_step if step < self._tail else 0

    def share(self, batch: int) -> range:
        """This process's part of a batch; it may be empty."""
        return _share(sum(self.counts(batch)), self._world)

    def __iter__(self) -> Iterator[list[Key]]:
        """Yield this process's part of the batches of the epoch from the start on."""
        epoch = self._epoch
        generator = numpy_generator("order", self.seed, epoch)
        labelled = generator.permutation(self.n_labelled)
        pseudo = self.n_labelled + generator.permutation(self.n_pseudo)
        for batch in range(self._start, len(self)):
            positions = labelled[batch * self._batch_size :][: self._batch_size]
            if more := self.counts(batch)[1]:
                positions = np.concatenate([positions, _turn(pseudo, batch, more)])
            share = self.share(batch) or range(1)
            yield [(int(positions[place]), epoch) for place in share]


class RoundSampler(_EpochSampler):
    """As many unlabelled images for each batch of an epoch, shuffled, going round."""

    def __init__(
        self, n: int, per_step: int, batches: int, seed: int, world: World = ALONE
    ) -> None:
        """Take `per_step` of `n` images, in all processes together, for each of `batches` batches.

        `per_step` lies between the number of processes and `n`.
        """
        self.per_step = per_step
        self._n, self._batches, self._seed, self._world = n, batches, seed, world

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, share = self._epoch, _share(self.per_step, self._world)
        order = numpy_generator("unlabelled", self._seed, epoch).permutation(self._n)
        for batch in range(self._start, self._batches):
            positions = _turn(order, batch, self.per_step)
            yield [(int(positions[place]), epoch) for place in share]


def _turn(order: np.ndarray, batch: int, per_step: int) -> np.ndarray:
    return order[(batch * per_step + np.arange(per_step)) % len(order)]


def _share(size: int, world: World) -> range:
    """A process's part of `size` images; rounded up: rank 0, which leads, has one in any case."""
    first, last = (-(-size * rank // world.size) for rank in (world.rank, world.rank + 1))
    return range(first, last)


def whole_batches(n: int, batch_size: int, world: World = ALONE) -> list[list[Key]]:
    """Batches of (position, 0) of `n` images in order, of which each process takes every n-th.

    So what lies together in a batch is the same for any number of processes.
    """
    keys = [(place, 0) for place in range(n)]
    starts = (batch * batch_size for batch in world.share(-(-n // batch_size)))
    return [keys[start : start + batch_size] for start in starts]
