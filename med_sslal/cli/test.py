"""`python test.py`: evaluate a checkpoint with its run's own config."""

import logging
import sys
from argparse import Namespace
from datetime import datetime
from pathlib import Path
from typing import Any

from med_sslal.base.checkpoint import sidecar
from med_sslal.cli.build import (
    build_dataset,
    data_difference,
    devices_of,
    load_weights,
    moved_config,
)
from med_sslal.cli.train import build_setup
from med_sslal.eval.coco_utils import to_coco_predictions
from med_sslal.logger.logger import setup_logging
from med_sslal.report.overlays import write_evaluation_pictures
from med_sslal.report.table import metric_table
from med_sslal.trainer.inference import predict_split
from med_sslal.trainer.new_folder import new_results
from med_sslal.trainer.results import measured
from med_sslal.trainer.run_folder import CycleFolder, find_run, load_named
from med_sslal.utils.arithmetic import arithmetic
from med_sslal.utils.distributed import World
from med_sslal.utils.errors import CheckpointError
from med_sslal.utils.interrupt import StopRequest
from med_sslal.utils.util import read_json, write_json

logger = logging.getLogger(__name__)


def run(args: Namespace) -> int:
    """Evaluate and write `<run>/<split>_<time>/`; returns the exit code."""
    world = World.from_environment()
    with world.joined(gpus=args.device != "cpu"):
        path, content, complaints = world.from_main(lambda: find_model(args.resume))
        config = moved_config(content["config"], path, args.overrides)
        setup_logging(config.get("trainer.verbosity"), leads=world.is_main)
        for complaint in complaints:
            logger.warning("%s", complaint)
        # Outside of a run there is none to keep.
        cycle = CycleFolder.around(path.resolve())
        kept = cycle.run.split if cycle is not None else Path()
        split = world.from_main(lambda: read_json(kept) if kept.is_file() else None)
        devices = devices_of(config, args.device, world)
        with arithmetic(deterministic=config["deterministic"]), StopRequest() as stop:
            dataset = world.local_first(lambda: build_dataset(config, split))
            shown, run = world.is_main, cycle.run if cycle is not None else None
            setup = build_setup(config, dataset, devices, show_progress=shown, world=world, run=run)
            if (difference := data_difference(content, setup)) is not None:
                logger.warning("the data is not that of the training: %s", difference)
            load_weights(setup.detector.model(), content, path)
            images, labels = setup.images, setup.split_labels(args.split)
            n_images = len(images.splits[args.split])
            logger.info("evaluating %s on %d %s images", path, n_images, args.split)
            found, loss = predict_split(
                setup, stop=stop, weights=content["model"], split=args.split, title=args.split
            )
    if not world.is_main:
        return 0
    result = measured(setup, found, loss, args.split)
    coco = to_coco_predictions(found, images.infos, setup.class_names)
    title = f"{config['name']}: {args.split}, {len(found)} images"
    folder = path.resolve().parent if cycle is None else cycle.run.path
    with new_results(folder / f"{args.split}_{datetime.now():%Y%m%d_%H%M%S}") as out:
        # First: a disk that is full does not take the numbers away.
        sys.stdout.write(metric_table(result) + "\n")
        write_json(out.metrics, {"checkpoint": str(path), "split": args.split, **result})
        write_json(out.predictions, coco)
        write_evaluation_pictures(out, result, found, labels, images, setup.class_names, title)
    logger.info("results: %s", out.path)
    return 0


def find_model(name: str) -> tuple[Path, dict[str, Any], list[str]]:
    """The checkpoint that was named, its content, and what is to be said of it."""
    (run, checkpoint), complaints = find_run(name, Path("exp_results")), []
    if checkpoint is None:
        path, content, damaged = run.finished_best()
        complaints = [f"{sentence}; falling back to {path}" for sentence in damaged]
    else:
        path = checkpoint
        content = load_named(path, require_checksum=False)
    if "config" not in content:
        raise CheckpointError(f"{path} has no config in it: name a checkpoint of a cycle")
    arch = content["config"].get("arch", {}).get("args", {})
    if isinstance(arch.get("pretrained"), str) and not Path(arch["pretrained"]).is_file():
        # Its detector began with a file that need not be here: what it became is.
        arch["pretrained"] = str(path)
    if not sidecar(path).exists():
        complaints.append(f"{path} has no checksum file beside it: it is taken unverified")
    return path, content, complaints
