"""Ours and the bare torchvision loop, with the same weights, data and knobs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torchvision.models.detection import FasterRCNN as StockFasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FrozenBatchNorm2d

from benchmarks.options import ANCHORS, Options
from benchmarks.timing import Side, Tap
from med_sslal.al.pool import Pool
from med_sslal.al.record import PoolRecord, RecordHeader
from med_sslal.al.scoring import record_pool, see
from med_sslal.base.base_data_loader import BaseDataLoader
from med_sslal.base.base_dataset import BaseDataset, Images, Labels
from med_sslal.base.base_model import BaseModel
from med_sslal.base.types import Batch, Prediction
from med_sslal.cli.build import build_dataset, devices_of
from med_sslal.cli.registries import registries
from med_sslal.cli.train import build_setup
from med_sslal.config.overrides import Override
from med_sslal.config.parse_config import ConfigParser
from med_sslal.data.dataset import LabelledView, UnlabelledView
from med_sslal.data.sampler import EpochBatchSampler, whole_batches
from med_sslal.model.norm import norm_layer
from med_sslal.ssl.mean_teacher import Teacher
from med_sslal.trainer.hooks import ClassDifficulty, ShowProgress
from med_sslal.trainer.inference import predict
from med_sslal.trainer.run_folder import CycleFolder
from med_sslal.trainer.setup import RunSetup
from med_sslal.trainer.train_cycle import make_step, unlabelled_loaders
from med_sslal.trainer.trainer import Trainer
from med_sslal.utils.arithmetic import arithmetic, fix_workspace
from med_sslal.utils.interrupt import StopRequest
from med_sslal.utils.train_util import autocast_dtype, seed_everything

# What a residual branch is scaled by where no norm holds random weights in bounds.
_BRANCH = 0.2


class _RepeatedImages(Images):
    """Images under other ids."""

    def __init__(self, images: Images, sources: Mapping[str, str]) -> None:
        """Take the images that `sources` names, from new id to theirs; all are in `train`."""
        infos = {
            name: replace(images.infos[source], image_id=name) for name, source in sources.items()
        }
        super().__init__(infos, {"train": tuple(sources), "val": (), "test": ()}, images.note)
        self._images, self._sources = images, sources

    def read(self, image_id: str) -> np.ndarray:
        """Decode an image: float32 [H, W, 3] in [0, 1], ORIGINAL pixels."""
        return self._images.read(self._sources[image_id])


class Repeated(BaseDataset):
    """The images of a data set over and over, under ids of their own, all in `train`."""

    def __init__(self, dataset: BaseDataset, n: int, ids: Sequence[str] | None = None) -> None:
        """Take `n` images from those of `ids`; None takes from all."""
        ids = sorted(dataset.images.infos) if ids is None else ids
        sources = {f"{number:06d}": ids[number % len(ids)] for number in range(n)}
        known = dataset.labels.annotations
        labels = {name: known[source] for name, source in sources.items()}
        super().__init__(
            _RepeatedImages(dataset.images, sources), Labels(dataset.labels.class_names, labels)
        )


@dataclass
class Workload:
    """What both sides are made from.

    Attributes:
        options: What was asked for.
        folder: For the files of trainers and records.
        dataset: All images and labels.
        setup: Ours, as a run would be built.
        data: As many images as a timing takes.
    """

    options: Options
    folder: Path
    dataset: BaseDataset
    setup: RunSetup
    data: Repeated

    @property
    def device(self) -> torch.device:
        """Where both compute."""
        return self.setup.compute.devices.main

    def switched(self, switch: Override) -> "Workload":
        """The same, with one key of ours changed."""
        config, devices = _config(self.options, self.folder, [switch]), self.setup.compute.devices
        setup = build_setup(config, self.dataset, devices, show_progress=False)
        return replace(self, setup=setup)

    def new_folder(self, name: str) -> Path:
        """A new folder."""
        number = len(list(self.folder.glob(f"{name}_*")))
        path = self.folder / f"{name}_{number}"
        path.mkdir()
        return path

    def model(self, weights: nn.Module | None = None) -> BaseModel:
        """A detector of ours on the device, with seeded weights or those of another."""
        seed_everything(0)
        model = self.setup.detector.model()
        if weights is not None:
            model.load_state_dict(weights.state_dict())
        elif self.options.norm == "frozen":
            _calm(model)
        return model.to(self.device)

    def training_loader(
        self, batch_size: int | None = None, n_pseudo: int = 0
    ) -> tuple[Tap, EpochBatchSampler]:
        """Augmented, shuffled batches, the same ones in every round; and their sampler.

        The last `n_pseudo` images are pseudo-labelled ones, and come on top of `batch_size`.
        """
        ids, transforms = self.data.images.splits["train"], self.setup.transforms
        n_labelled = len(ids) - n_pseudo
        size = batch_size or self.options.batch_size
        sampler = EpochBatchSampler(n_labelled, n_pseudo, size, 0)
        labels, pseudo = self.data.labels.annotations, frozenset(ids[n_labelled:])
        view = LabelledView(
            self.data.images, labels, ids, transforms.train, pseudo, transforms.pseudo
        )
        return self._tap(self.loader(view, sampler)), sampler

    def eval_loader(
        self, *, labels: bool, ids: Sequence[str] | None = None, batch_size: int | None = None
    ) -> Tap:
        """Batches in order, without augmentation."""
        ids = self.data.images.splits["train"] if ids is None else ids
        images, transform = self.data.images, self.setup.transforms.eval
        view: Any = UnlabelledView(images, ids, transform)
        if labels:
            view = LabelledView(images, self.data.labels.annotations, ids, transform)
        size = batch_size or self.options.batch_size
        return self._tap(self.loader(view, whole_batches(len(ids), size)))

    def loader(self, view: Any, sampler: Any) -> BaseDataLoader:
        """A loader as a run has it."""
        return BaseDataLoader(
            view,
            batch_sampler=sampler,
            n_workers=self.options.workers,
            pin_memory=self.device.type == "cuda",
        )

    def _tap(self, loader: BaseDataLoader) -> Tap:
        return Tap(list(loader) if self.options.in_memory else loader, loader.dataset)


@contextmanager
def workload(options: Options) -> Iterator[Workload]:
    """Make the phantom and build ours; everything is removed at the end.

    Raises:
        UserError: An option does not fit the machine or another option.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        config = _config(options, folder)
        switched = [_config(options, folder, [switch]) for switch in options.switches]
        if any(one["deterministic"] for one in (config, *switched)):
            # Both sides get the workspace then: cuBLAS asks once in a process.
            fix_workspace()
        devices = devices_of(config, options.device)
        dataset = build_dataset(config)
        setup = build_setup(config, dataset, devices, show_progress=False)
        data = Repeated(dataset, options.batch_size * options.steps)
        yield Workload(options, folder, dataset, setup, data)


def _config(options: Options, folder: Path, more: Sequence[Override] = ()) -> ConfigParser:
    values = options.config(str(folder / "phantom"), str(folder / "cache"))
    return ConfigParser(values, registries(), [*options.overrides, *more])


def stock_model(options: Options, ours: BaseModel, device: torch.device) -> nn.Module:
    """Torchvision's detector with the knobs and weights of ours."""
    norms: dict[str, Callable[..., nn.Module]] = {
        "frozen": FrozenBatchNorm2d,
        "batch": nn.BatchNorm2d,
        "group": norm_layer("group", 0.0),
    }
    backbone = resnet_fpn_backbone(
        backbone_name=options.backbone,
        weights=None,
        norm_layer=norms[options.norm],
        trainable_layers=3 if options.norm == "frozen" else 5,
    )
    side = 7 * 7 * backbone.out_channels
    stock = StockFasterRCNN(
        backbone,
        num_classes=None,
        min_size=options.image_size,
        max_size=options.image_size,
        rpn_anchor_generator=AnchorGenerator(ANCHORS, ((0.5, 1.0, 2.0),) * len(ANCHORS)),
        box_head=TwoMLPHead(side, options.box_head_size),
        box_predictor=FastRCNNPredictor(options.box_head_size, 2),
        box_score_thresh=0.01,
        **options.knobs,
    )
    stock.load_state_dict(ours.state_dict())
    return stock.to(device)


def training_sides(work: Workload) -> tuple[Side, Side]:
    """Bare and ours: `steps` optimiser steps."""
    model = work.model()
    stock = stock_model(work.options, model, work.device).train()
    own = own_training(work, model)
    learns = [p for p in stock.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learns, lr=1e-6)
    tap, sampler = work.training_loader()
    low = _bare_precision(work)
    scaler = torch.amp.GradScaler(work.device.type, enabled=low is torch.float16)

    def bare() -> None:
        sampler.set_epoch(0)
        for batch in tap:
            moved = batch.to(work.device)
            targets = [{"boxes": t.boxes, "labels": t.labels} for t in moved.targets]
            with torch.autocast(work.device.type, dtype=low, enabled=low is not None):
                losses = stock(list(moved.images), targets)
                loss = torch.stack(list(losses.values())).sum()
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()

    return Side(bare, own.images, stock, optimizer, tap), own


def own_training(
    work: Workload,
    model: BaseModel,
    batch_size: int | None = None,
    n_pseudo: int = 0,
    teacher: Teacher | None = None,
) -> Side:
    """Ours: `steps` optimiser steps of the Trainer; for the numbers see `training_loader`.

    With a mean `teacher` as many unlabelled images as labelled ones come into each step.
    """
    setup, (tap, sampler) = work.setup, work.training_loader(batch_size, n_pseudo)
    step, _ = make_step(setup, model, len(sampler), teacher)
    n_images = len(work.data.images.infos)
    trainer = Trainer(
        CycleFolder(work.new_folder("training")),
        training_step=step,
        loader=cast(BaseDataLoader, tap),
        sampler=sampler,
        unlabelled=unlabelled_loaders(setup, step, work.dataset.images.splits["train"], sampler),
        evaluate=lambda epoch: {},
        stop=StopRequest(),
        identity={},
        hooks=[ClassDifficulty(work.data.labels.class_names), ShowProgress("", show=False)],
    )

    def run() -> None:
        trainer.batch = trainer.step = 0
        with arithmetic(deterministic=setup.config["deterministic"]):
            trainer.train_epoch()

    n_seen = n_images * (1 if teacher is None else 2)
    return Side(run, n_seen, step.model, step.optimisation.optimizer, tap)


def evaluation_sides(work: Workload) -> tuple[Side, Side]:
    """Bare and ours: detections of `steps` batches; ours with the validation loss besides."""
    model = work.model()
    bare = _bare_inference(work, stock_model(work.options, model, work.device))
    return bare, own_evaluation(work, model)


def own_evaluation(work: Workload, model: BaseModel) -> Side:
    """Ours: predictions and validation loss of `steps` batches."""
    parallel, tap = work.setup.compute.parallel(model), work.eval_loader(labels=True)
    run = partial(predictions, work.setup, parallel, tap)
    return Side(run, len(work.data.images.infos), parallel, None, tap)


def predictions(setup: RunSetup, model: nn.Module, batches: Tap) -> dict[str, Prediction]:
    """The evaluation pass of ours, by image id."""
    loader = cast(BaseDataLoader, batches)
    with arithmetic(deterministic=setup.config["deterministic"]):
        return predict(model, loader, setup, stop=StopRequest(), title="")[0]


def scoring_sides(work: Workload) -> tuple[Side, Side]:
    """Bare and ours: unlabelled batches, twice `steps`; ours writes the record."""
    work = replace(work, data=Repeated(work.dataset, 2 * len(work.data.images.infos)))
    model = work.model()
    bare = _bare_inference(work, stock_model(work.options, model, work.device))
    return bare, own_scoring(work, model)


def own_scoring(work: Workload, model: BaseModel, columns: Sequence[str] = ()) -> Side:
    """Ours: a record, with these optional columns, of all images of the workload."""
    parallel, tap = work.setup.compute.parallel(model), work.eval_loader(labels=False)
    run = partial(score, work, parallel, tap, columns)
    return Side(run, len(work.data.images.infos), parallel, None, tap)


def score(
    work: Workload,
    model: nn.Module,
    batches: Tap | Sequence[Batch],
    columns: Sequence[str] = (),
) -> PoolRecord:
    """The scoring pass of ours over all images of the workload."""
    header = RecordHeader("data", "model", "config", work.data.labels.class_names)
    with arithmetic(deterministic=work.setup.config["deterministic"]):
        return record_pool(
            Pool((), work.data.images.splits["train"]),
            see(model, batches, work.device, work.setup.compute.dtype, columns=columns),
            (),
            work.new_folder("scoring") / "seen",
            header,
            columns=columns,
        )


def _bare_inference(work: Workload, stock: nn.Module) -> Side:
    """Torchvision's loop: detections brought to the host."""
    stock.eval()
    tap, low = work.eval_loader(labels=False), _bare_precision(work)

    def run() -> None:
        for batch in tap:
            images = list(batch.to(work.device).images)
            with ExitStack() as stack:
                stack.enter_context(torch.inference_mode())
                if low is not None:
                    stack.enter_context(torch.autocast(work.device.type, dtype=low))
                found = stock(images)
            for item in found:
                for value in item.values():
                    value.cpu()

    return Side(run, len(work.data.images.infos), stock, None, tap)


def _bare_precision(work: Workload) -> torch.dtype | None:
    return autocast_dtype(work.options.bare_precision, work.device)


@torch.no_grad()
def _calm(model: nn.Module) -> None:
    """Scale the residual branches of a network with frozen norms and random weights.

    Every block would double the variance: the losses of a ResNet-50 would not stay finite in low
    precision.
    """
    for name, buffer in model.named_buffers():
        if name.endswith(("bn2.weight", "bn3.weight")):
            buffer.mul_(_BRANCH)
