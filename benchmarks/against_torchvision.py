"""Ours against a bare torchvision loop: a training step and the scoring pass.

    python -m benchmarks.against_torchvision [--pairs 20] [--precision fp32|bf16] [--device cpu]

Both sides have the same weights, knobs, precision, images and loader, and run in turn in one
process: bare, ours, bare. Printed is the median of ours / bare over the pairs, and of bare / bare,
which is what noise alone gives.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision.models.detection import FasterRCNN as StockFasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from med_sslal.al.pool import Pool
from med_sslal.al.record import RecordHeader
from med_sslal.al.scoring import score_pool
from med_sslal.base.base_data_loader import BaseDataLoader
from med_sslal.data.dataset import LabelledView, UnlabelledView
from med_sslal.data.phantom_dataset import DeepLesionPhantom
from med_sslal.data.sampler import EpochBatchSampler, SequentialBatchSampler
from med_sslal.data.transforms import EvalTransform
from med_sslal.logger.visualization import TensorboardWriter
from med_sslal.model.detectors import FasterRCNN
from med_sslal.trainer.trainer import Trainer, TrainerSettings
from med_sslal.utils.interrupt import StopRequest

ANCHORS = ((12,), (20,), (32,), (56,), (96,))
BATCH, STEPS, POOL = 8, 4, 64


def models(size: int) -> tuple[FasterRCNN, nn.Module]:
    """Ours and stock, with the same weights and knobs."""
    torch.manual_seed(0)
    knobs: dict[str, Any] = {
        "rpn_pre_nms_top_n_train": 400,
        "rpn_post_nms_top_n_train": 200,
        "rpn_pre_nms_top_n_test": 200,
        "rpn_post_nms_top_n_test": 100,
        "box_batch_size_per_image": 64,
        "box_score_thresh": 0.01,
    }
    ours = FasterRCNN(
        num_classes=2,
        backbone_name="resnet18",
        norm="batch",
        anchor_sizes=ANCHORS,
        box_head_size=256,
        **knobs,
    )
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
    )
    stock = StockFasterRCNN(
        backbone,
        num_classes=None,
        min_size=size,
        max_size=size,
        rpn_anchor_generator=AnchorGenerator(ANCHORS, ((0.5, 1.0, 2.0),) * 5),
        box_head=ours.roi_heads.box_head.__class__(256 * 7 * 7, 256),
        box_predictor=ours.roi_heads.box_predictor.__class__(256, 2),
        **knobs,
    )
    stock.load_state_dict(ours.state_dict())
    return ours, stock


def compare(name: str, bare: Callable[[], None], ours: Callable[[], None], pairs: int) -> None:
    """Time bare, ours, bare in turn and print the medians of the ratios."""
    for warm_up in (bare, ours):
        warm_up()
    ratios, noise, seconds = [], [], []
    for _ in range(pairs):
        first, own, second = (timed(run) for run in (bare, ours, bare))
        ratios.append(2 * own / (first + second))
        noise.append(second / first)
        seconds.append(own)
    low, high = np.percentile(noise, [5, 95])
    q1, q3 = np.percentile(ratios, [25, 75])
    sys.stdout.write(
        f"{name}: ours / bare = {statistics.median(ratios):.3f} (quartiles {q1:.3f} to {q3:.3f}), "
        f"bare / bare = {statistics.median(noise):.3f} (5 to 95 %: {low:.3f} to {high:.3f}), "
        f"{pairs} pairs, ours {statistics.median(seconds):.2f} s\n"
    )
    sys.stdout.flush()


def timed(run: Callable[[], None]) -> float:
    """Seconds that `run` takes, the device's queue included."""
    started = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--only", choices=("training", "scoring"))
    args = parser.parse_args()
    device = torch.device(args.device)
    dtype = torch.bfloat16 if args.precision == "bf16" else None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = DeepLesionPhantom(root=str(folder), patients=24, size=args.size, seed=0)
        sys.stdout.write(
            f"{args.precision}, {device}, {args.size} px, torch {torch.__version__}, "
            f"{torch.get_num_threads()} threads\n"
        )
        if args.only != "scoring":
            training(dataset, folder, device, dtype, args.size, args.pairs)
        if args.only != "training":
            scoring(dataset, folder, device, dtype, args.size, args.pairs)


def training(
    dataset: DeepLesionPhantom,
    folder: Path,
    device: torch.device,
    dtype: torch.dtype | None,
    size: int,
    pairs: int,
) -> None:
    ids = sorted(dataset.infos)[: BATCH * STEPS]
    ours, stock = models(size)
    ours.to(device).train()
    stock.to(device).train()
    ours.autocast_dtype = dtype
    sampler = EpochBatchSampler(len(ids), 0, BATCH, 0)
    view = LabelledView(
        dataset,
        {image_id: dataset.annotations[image_id] for image_id in ids},
        ids,
        EvalTransform(size),
    )
    loader = BaseDataLoader(view, batch_sampler=sampler)
    trainer = Trainer(
        folder,
        model=ours,
        bare_model=ours,
        optimizer=torch.optim.AdamW(ours.parameters(), lr=1e-5),
        scheduler=None,
        loader=loader,
        sampler=sampler,
        evaluate=lambda epoch: {},
        settings=TrainerSettings(epochs=10**6, show_progress=False),
        device=device,
        scaler=None,
        writer=TensorboardWriter(folder, enabled=False),
        stop=StopRequest(),
        identity={},
        class_names=dataset.class_names,
    )
    optimizer = torch.optim.AdamW(stock.parameters(), lr=1e-5)

    def bare() -> None:
        sampler.set_epoch(trainer.epoch)
        for batch in loader:
            moved = batch.to(device)
            targets = [{"boxes": t.boxes, "labels": t.labels} for t in moved.targets]
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                losses = stock(list(moved.images), targets)
            loss = sum(losses.values())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    def own() -> None:
        trainer.batch = 0
        trainer.train_epoch()

    compare("training step", bare, own, pairs)


def scoring(
    dataset: DeepLesionPhantom,
    folder: Path,
    device: torch.device,
    dtype: torch.dtype | None,
    size: int,
    pairs: int,
) -> None:
    ids = tuple(sorted(dataset.infos)[:POOL])
    ours, stock = models(size)
    ours.to(device).eval()
    stock.to(device).eval()
    view = UnlabelledView(dataset, ids, EvalTransform(size))

    def loader(count: int) -> BaseDataLoader:
        return BaseDataLoader(view, batch_sampler=SequentialBatchSampler(count, BATCH))

    header = RecordHeader("data", "model", "config", dataset.class_names)
    turn = 0

    def bare() -> None:
        with torch.inference_mode():
            for batch in loader(len(ids)):
                images = list(batch.to(device).images)
                with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                    found = stock(images)
                for item in found:
                    {name: value.cpu() for name, value in item.items()}

    def own() -> None:
        nonlocal turn
        turn += 1
        score_pool(
            ours,
            Pool((), ids),
            loader(len(ids)),
            loader(0),
            folder / f"record{turn}",
            header,
            device=device,
            dtype=dtype,
        )

    compare("scoring pass", bare, own, pairs)


if __name__ == "__main__":
    main()
