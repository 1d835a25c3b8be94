"""The supervised step: labelled images, and pseudo-labelled ones on top of them."""

from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from med_sslal.base.training_step import StepInput, StepOutcome, TrainingStep
from med_sslal.base.types import ModelOutput
from med_sslal.model.parallel import gather_outputs, scatter_parts

# The part of the steps in which the weight of what is not labelled rises from 0: early
# pseudo-labels would drown the labels.
RAMP = 0.2


class SupervisedStep(TrainingStep):
    """The mean loss of the labelled images plus the weighted mean of the pseudo-labelled ones."""

    def __call__(self, given: StepInput) -> StepOutcome:
        """Do one optimiser step; the gradients of the batch's parts add up to that of the batch."""
        self.optimisation.start()
        batch = given.batch
        n_all = given.n_labelled + given.n_pseudo
        # Each process has its part of both.
        least = given.n_labelled // self.world.size + given.n_pseudo // self.world.size
        weights = self.image_weights(given)
        # The processes take as many parts, because they wait for each other in each.
        n_parts = min(self.settings.accumulate, max(least, 1))
        parts = scatter_parts(batch.images, batch.targets, batch.frames, n_parts)
        sizes = [len(images) for images, *_ in parts]
        outputs: list[ModelOutput] = []
        bounds = pairwise(accumulate((0, *sizes)))
        for part, weight, (first, end) in zip(parts, weights.split(sizes), bounds, strict=True):
            with self._exchange(is_last=len(outputs) == len(parts) - 1):
                outputs.append(self.judged(self.model(*part), range(first, end)))
                loss = (torch.stack(list(outputs[-1].losses.values())).sum(0) * weight).sum()
                # The gradients of the processes are averaged, and are to be added up.
                self.optimisation.backward(loss * self.world.size)
        output = gather_outputs(outputs, batch.images.device)
        self.optimisation.step(given.number)
        losses = {name: value.detach() for name, value in output.losses.items()}
        return StepOutcome(
            tuple(frame.info.image_id for frame in batch.frames),
            batch.pseudo,
            losses,
            (torch.stack(list(losses.values())).sum(0) * weights).sum(),
            len(batch) / n_all if given.counts else 0.0,
            output.class_quality,
        )

    def judged(self, output: ModelOutput, images: range) -> ModelOutput:
        """The output for these images of the batch, its losses as they are to be learnt."""
        return output

    def image_weights(self, given: StepInput) -> Tensor:
        """Weights [B] of the images' losses, summed then, in whichever process they are."""
        pseudo = given.batch.pseudo
        if not given.counts:
            return torch.zeros(pseudo.shape, device=pseudo.device)
        if not given.n_pseudo:
            return torch.full(pseudo.shape, 1 / given.n_labelled, device=pseudo.device)
        ramp = min(1.0, given.number / max(RAMP * given.total, 1.0))
        n_labelled, n_pseudo = (
            torch.full((), number, device=pseudo.device)
            for number in (given.n_labelled, given.n_pseudo)
        )
        return torch.where(pseudo, self.settings.pseudo_weight * ramp / n_pseudo, 1 / n_labelled)

    def _exchange(self, *, is_last: bool) -> AbstractContextManager[Any]:
        """Several processes exchange gradients in the last part of a batch only."""
        if is_last or not isinstance(self.model, DistributedDataParallel):
            return nullcontext()
        return self.model.no_sync()
