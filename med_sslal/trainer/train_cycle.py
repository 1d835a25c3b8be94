"""Setting up the training of one cycle and running it."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from med_sslal.al.pool import Pool
from med_sslal.base.base_data_loader import BaseDataLoader
from med_sslal.base.base_model import BaseModel
from med_sslal.base.checkpoint import load_checkpoint, sidecar
from med_sslal.base.learning_rate import tail_start
from med_sslal.base.optimisation import Optimisation
from med_sslal.base.training_step import TrainingStep
from med_sslal.base.types import Annotation, Prediction
from med_sslal.base.views import VIEWS
from med_sslal.data.dataset import LabelledView, UnlabelledView
from med_sslal.data.sampler import EpochBatchSampler, RoundSampler
from med_sslal.eval.drawing import above, draw_boxes
from med_sslal.eval.metric import evaluate
from med_sslal.logger.visualization import TensorboardWriter
from med_sslal.model.detectors import FasterRCNN
from med_sslal.model.parallel import distribute
from med_sslal.ssl.mean_teacher import Teacher
from med_sslal.ssl.pseudo_labels import PseudoLabels
from med_sslal.trainer.hooks import ClassDifficulty, ShowProgress, WriteTensorboard
from med_sslal.trainer.inference import loader_of, predict
from med_sslal.trainer.run_folder import CycleFolder
from med_sslal.trainer.setup import RunSetup
from med_sslal.trainer.teacher_step import TeacherStep
from med_sslal.trainer.trainer import Trainer
from med_sslal.utils.interrupt import StopRequest
from med_sslal.utils.train_util import seed_everything
from med_sslal.utils.util import stable_hash

logger = logging.getLogger(__name__)

# Pictures per validation in TensorBoard, and the least score of a box drawn there.
PICTURES, PICTURE_FLOOR = 4, 0.3


def train_cycle(
    setup: RunSetup,
    folder: CycleFolder,
    *,
    labels: Mapping[str, Annotation],
    pseudo: PseudoLabels,
    pool: Pool,
    stop: StopRequest,
    thresholds: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Train the model of one cycle, continuing where an interrupted training stopped.

    All processes of the run call it; only rank 0 reads and writes files. The `folder` exists, the
    `labels` stand in the order of labelling, and none of their images is in `pseudo`. With
    `thresholds` of the classes the cycle's supervised model is the mean teacher. Returns what
    `training.json` says of it; nothing in other ranks than 0.

    Raises:
        Interrupted: A stop was asked for; the position is saved.
        UserError: The loss is not finite.
    """
    both = labels.keys() & pseudo.labels.keys()
    if both:
        raise ValueError(f"{len(both)} images are labelled and pseudo-labelled at once")
    world, cycle = setup.world, folder.number
    seed_everything(setup.seed, "training", cycle)
    model = setup.detector.model()
    goes_on = cycle > 0 and setup.strategy.helper.restart == "continue"

    def weights() -> dict[str, Any]:
        run = folder.run
        return run.cycle(cycle - 1).load_best() if goes_on else load_checkpoint(run.initial)

    model.load_state_dict(world.from_main(lambda: weights()["model"]))
    model.to(setup.compute.devices.main)
    teacher = None if thresholds is None else _teacher(setup, folder, thresholds)
    show = setup.settings.tensorboard and world.is_main
    with TensorboardWriter(folder.tensorboard, enabled=show) as writer:
        trainer = _trainer(setup, folder, model, labels, pseudo, pool, writer, stop, teacher)
        restored = trainer.resume()
        # From the start too: a run that was killed before its first checkpoint may have written.
        writer.hide_from(trainer.step + 1)
        if restored is not None:
            place = (restored.name, trainer.epoch, trainer.batch, cycle)
            logger.info("restored from %s: %d epochs and %d batches of cycle %d", *place)
        trainer.train()
        for name, value in trainer.model_facts()["class_difficulty"].items():
            logger.debug("cycle %d: training difficulty of %s: %.4f", cycle, name, value)
    if not world.is_main:
        return {}
    return {
        "steps": trainer.step,
        "epochs": trainer.epoch,
        "best_epoch": trainer.monitor.best_epoch,
        "best": trainer.monitor.best,
        "seconds": trainer.seconds,
        "history": trainer.history,
        "best_checkpoint": folder.best.name,
        "sha256": sidecar(folder.best).read_text().split()[0],
    }


def _teacher(setup: RunSetup, folder: CycleFolder, thresholds: Mapping[str, float]) -> Teacher:
    """The cycle's supervised model, as it teaches at first."""
    labeller, model = setup.strategy.labeller, setup.detector.model()
    assert labeller is not None
    model.load_state_dict(setup.world.from_main(lambda: folder.supervised.load_best()["model"]))
    model.to(setup.compute.devices.main)
    sure_of = (thresholds, labeller.ignore_floor, labeller.regress_iou)
    return Teacher(cast(FasterRCNN, model), *sure_of)


def _trainer(
    setup: RunSetup,
    folder: CycleFolder,
    model: BaseModel,
    labels: Mapping[str, Annotation],
    pseudo: PseudoLabels,
    pool: Pool,
    writer: TensorboardWriter,
    stop: StopRequest,
    teacher: Teacher | None,
) -> Trainer:
    settings, parts, per_step = setup.settings, setup.settings.accumulate, setup.settings.per_step
    cycle, last = folder.number, setup.strategy.num_cycles
    is_student = bool(pseudo.labels) or teacher is not None
    title = f"cycle {cycle}/{last}{' student' if is_student else ''}"
    # Where students are trained, each cycle has two trainings.
    two = setup.strategy.labeller is not None
    left = (int(two and not is_student), (last - cycle) * (1 + two))
    order = partial(
        EpochBatchSampler,
        len(labels),
        len(pseudo.labels),
        setup.compute.batch_size * parts,
        stable_hash(setup.seed, "order", cycle),
        setup.world,
        per_step=per_step and per_step * parts,
    )
    sampler = order(tail=tail_start(settings.steps(len(order())), settings.tail))
    view = LabelledView(
        setup.images,
        {**pseudo.beside(labels), **pseudo.labels},
        (*labels, *pseudo.labels),
        setup.transforms.train,
        frozenset(pseudo.labels),
        setup.transforms.pseudo,
    )
    step, validated = make_step(setup, model, len(sampler), teacher)
    return Trainer(
        folder,
        training_step=step,
        loader=setup.compute.loader(view, sampler),
        sampler=sampler,
        unlabelled=unlabelled_loaders(setup, step, pool.unlabelled, sampler),
        evaluate=_validation(setup, validated, writer, stop, f"cycle {cycle} validation"),
        stop=stop,
        identity={
            "config": setup.config.resolved,
            **setup.fingerprints(labels),
            "class_names": setup.class_names,
            "cycle": cycle,
            "pool": pool.state_dict(),
        },
        hooks=(
            ClassDifficulty(setup.class_names, setup.world),
            WriteTensorboard(writer),
            ShowProgress(title, *left, show=settings.show_progress),
        ),
        world=setup.world,
    )


def make_step(
    setup: RunSetup, model: BaseModel, batches: int, teacher: Teacher | None = None
) -> tuple[TrainingStep, nn.Module]:
    """The step of a training with such epochs, and what is validated, both on all devices."""
    optimizer, settings = setup.detector.optimizer(model), setup.settings
    optimisation = Optimisation(
        model,
        optimizer,
        setup.detector.scheduler and setup.detector.scheduler(optimizer),
        torch.amp.GradScaler(
            setup.compute.devices.main.type, enabled=setup.compute.dtype is torch.float16
        ),
        settings,
        settings.half_life(batches),
    )
    parallel, world = setup.compute.parallel(model), setup.world
    kind: Callable[..., TrainingStep] = setup.detector.step
    if teacher is not None:
        kind = partial(TeacherStep, teacher=teacher, audit=setup.strategy.oracle.audit)
    step = kind(
        model=parallel if world.size == 1 else distribute(model, world),
        optimisation=optimisation,
        settings=settings,
        world=world,
    )
    kept = optimisation.kept
    return step, parallel if kept is model else setup.compute.parallel(kept)


def unlabelled_loaders(
    setup: RunSetup, step: TrainingStep, ids: Sequence[str], sampler: EpochBatchSampler
) -> dict[str, BaseDataLoader]:
    """Loaders of the views that a step asks for; none where there is no image for each process."""
    settings = setup.settings
    per_step = min((settings.per_step or setup.compute.batch_size) * settings.accumulate, len(ids))
    if per_step < setup.world.size:
        return {}
    transforms = dict(zip(VIEWS, (setup.transforms.train, setup.transforms.pseudo), strict=True))
    return {
        name: setup.compute.loader(
            UnlabelledView(setup.images, ids, transforms[name]),
            RoundSampler(len(ids), per_step, len(sampler), sampler.seed, setup.world),
        )
        for name in step.views
    }


def _validation(
    setup: RunSetup, model: nn.Module, writer: TensorboardWriter, stop: StopRequest, title: str
) -> Callable[[int], dict[str, float | None]]:
    """Gives the `val_` values of a model as it is after an epoch; one loader serves all."""
    ids, labels, names = setup.images.splits["val"], setup.split_labels("val"), setup.class_names
    loader = loader_of(setup, ids, labels)

    def validate(epoch: int) -> dict[str, float | None]:
        found, loss = predict(model, loader, setup, stop=stop, title=title)
        return setup.world.from_main(lambda: measure(found, loss, epoch))

    def measure(
        found: Mapping[str, Prediction], loss: float | None, epoch: int
    ) -> dict[str, float | None]:
        result = evaluate(setup.metrics, found, labels, setup.images.infos, names, draws=0)
        # The same few images each time, with true and predicted boxes.
        for image_id in ids[: PICTURES if setup.settings.tensorboard else 0]:
            image = setup.images.picture(image_id)
            seen = above(found[image_id], PICTURE_FLOOR)
            # Enlarged, so that thin boxes stay legible on small slices.
            drawn = draw_boxes(image, labels[image_id], seen, names, width=2 * image.shape[1])
            writer.image(f"val/{image_id}", drawn, epoch)
        return {"val_loss": loss, **{f"val_{k}": v for k, v in result["values"].items()}}

    return validate
