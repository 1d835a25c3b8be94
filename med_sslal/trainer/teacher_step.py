"""The step of a student with a mean teacher: labelled images, and strong views of others."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch

from med_sslal.base.learning_rate import tail_start
from med_sslal.base.training_step import StepInput, StepOutcome
from med_sslal.base.types import Annotation, ModelOutput
from med_sslal.base.views import VIEWS
from med_sslal.model.detectors import FasterRCNN
from med_sslal.ssl.mean_teacher import BoxCounts, Lesson, Teacher
from med_sslal.ssl.quality import graded
from med_sslal.trainer.supervised_step import RAMP, SupervisedStep

logger = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False, repr=False)
class TeacherStep(SupervisedStep):
    """The mean loss of the labelled images plus the weighted mean of what the teacher says.

    That is objectness, in images in which it is sure of a box, classification by its own
    probabilities for the student's proposals, and regression by sure boxes that hold still. After
    `teacher_fixed` of the steps, and a half-life of the student's average, that average is the
    teacher. In the tail there is none.
    """

    views: ClassVar = VIEWS
    teacher: Teacher
    # The truth of images, where it is known: what is given is graded by it, for the log alone.
    audit: Callable[[Iterable[str]], Mapping[str, Annotation]]

    def __post_init__(self) -> None:
        self._counts = BoxCounts(self.teacher.class_names)
        self._lesson: Lesson | None = None
        self._n_labelled = 0

    def __call__(self, given: StepInput) -> StepOutcome:
        """Do one optimiser step."""
        if given.first:
            self._counts.begin_epoch()
        fixed = max(self.settings.teacher_fixed * given.total, self.optimisation.half_life)
        if given.number >= fixed and not self.teacher.follows and self.settings.teacher_fixed < 1:
            self.teacher.follow(self._average)
            logger.info("step %d: from here on the student's average teaches", given.number)
        self._lesson = None
        if given.unlabelled and given.number < tail_start(given.total, self.settings.tail):
            given = self._taught(given)
        outcome = super().__call__(given)
        if self._lesson is not None:
            self._count(self._lesson, given)
        return outcome

    @property
    def _average(self) -> FasterRCNN:
        return cast(FasterRCNN, self.optimisation.kept)

    def _taught(self, given: StepInput) -> StepInput:
        """The input with the strong views behind the labelled images."""
        strong = given.unlabelled["strong"]
        lesson = self._lesson = self.teacher.look(given.unlabelled["weak"], strong)
        targets, frames, pseudo = lesson.targets, strong.frames, torch.ones_like(strong.pseudo)
        images, self._n_labelled = strong.images, 0
        # A stand-in is not needed: there are unlabelled images for every process.
        if given.counts:
            own = given.batch
            assert own.targets is not None
            images, self._n_labelled = torch.cat([own.images, images]), len(own)
            targets, frames = (*own.targets, *targets), (*own.frames, *frames)
            pseudo = torch.cat([own.pseudo, pseudo])
        batch = replace(strong, images=images, targets=targets, frames=frames, pseudo=pseudo)
        return replace(given, batch=batch, counts=True, n_pseudo=given.n_unlabelled)

    def judged(self, output: ModelOutput, images: range) -> ModelOutput:
        """The output with the losses by the teacher in place of those by its boxes."""
        first = max(images.start - self._n_labelled, 0)
        n_own = max(images.stop - self._n_labelled, 0) - first
        if self._lesson is None or not n_own:
            return output
        n, losses = len(images) - n_own, dict(output.losses)
        soft = self._lesson.soft_loss(output.rois[n:], first)
        losses["loss_classifier"] = torch.cat([losses["loss_classifier"][:n], soft])
        sure, objectness = self._lesson.sure[first : first + n_own], losses["loss_objectness"]
        losses["loss_objectness"] = torch.cat([objectness[:n], objectness[n:] * sure])
        return replace(output, losses=losses)

    def _count(self, lesson: Lesson, given: StepInput) -> None:
        """Note what the teacher gave, in all processes."""
        n, follows = len(lesson.targets), self.teacher.follows
        # After the ramp: before it a student may change much.
        steady = follows and given.number >= RAMP * given.total
        names = self.teacher.class_names
        truth = self.audit([frame.info.image_id for frame in lesson.strong.frames])
        # In practice there is none, and nothing waits for the device.
        grades = torch.from_numpy(graded(lesson.predictions() if truth else {}, truth, names))
        sums = torch.tensor([n, n * steady, *lesson.count(len(names))], dtype=torch.float64)
        both = self.world.sum(torch.cat([sums, grades.flatten()]))
        self._counts.add(both[: len(sums)], both[len(sums) :].view_as(grades))

    def end_epoch(self) -> dict[str, float | None]:
        """The teacher's boxes per image and how right they are; UserError where they double."""
        return self._counts.values()

    def state_dict(self) -> dict[str, Any]:
        """The teacher, and what is counted."""
        return {"teacher": self.teacher.state_dict(), "counts": self._counts.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.teacher.load_state_dict(state["teacher"], self._average)
        self._counts.load_state_dict(state["counts"])
