"""`med-sslal predict`: the detections of a trained run on a folder of images."""

import hashlib
import heapq
import logging
import shutil
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial

import numpy as np
from PIL import Image

from med_sslal.base.base_data_loader import collate_readable
from med_sslal.base.base_dataset import Images
from med_sslal.base.checkpoint import weights_hash
from med_sslal.base.types import Prediction
from med_sslal.cli.trained import Trained, load_trained
from med_sslal.data.bad_samples import BadSamples
from med_sslal.data.dataset import UnlabelledView
from med_sslal.data.image_folder import open_pictures
from med_sslal.data.pictures import PictureImages
from med_sslal.data.sampler import whole_batches
from med_sslal.eval.drawing import draw_boxes
from med_sslal.logger.logger import setup_logging
from med_sslal.logger.progress import track
from med_sslal.trainer.inference import detect_readable
from med_sslal.trainer.prediction_folder import Journal, PredictionFolder, write_results
from med_sslal.utils.arithmetic import arithmetic
from med_sslal.utils.distributed import World
from med_sslal.utils.errors import DataError
from med_sslal.utils.interrupt import Interrupted, StopRequest
from med_sslal.utils.util import atomic_write

logger = logging.getLogger(__name__)

# Narrower pictures are drawn as wide: the texts have a size of their own.
_LEAST_WIDTH = 400


def run(args: Namespace) -> int:
    """Detect on the images of a folder and write `args.out`; returns the exit code."""
    world = World.from_environment()
    with world.joined(gpus=args.device != "cpu"), StopRequest() as stop:
        trained = load_trained(args.resume, args.device, world)
        setup_logging(trained.config.get("trainer.verbosity"), leads=world.is_main)
        for complaint in trained.complaints:
            logger.warning("%s", complaint)
        least = _least_scores(args, trained)
        images, problems = world.from_main(lambda: _open(args, trained))
        with arithmetic(deterministic=trained.config["deterministic"]):
            if not world.is_main:
                for _ in _detect(trained, images, world, stop, *world.broadcast(None)):
                    raise AssertionError("only rank 0 gets what is found")
                return 0
            return _lead(args, trained, images, problems, least, world, stop)


def _lead(
    args: Namespace,
    trained: Trained,
    images: PictureImages,
    problems: list[str],
    least: Mapping[str, float],
    world: World,
    stop: StopRequest,
) -> int:
    """Rank 0's part: it writes every file."""
    folder = PredictionFolder(args.out)
    request = {
        "weights": weights_hash(trained.model.state_dict()),
        "images": _fingerprint(images),
        "window": None if images.window is None else list(images.window),
        "scores": dict(least),
    }
    # As many images at a time as before: other batch mates change the last digits.
    batch = -(-trained.compute.batch_size // world.size)
    begun = folder.open(request, {"batch": batch})
    journal, names = Journal(folder.journal), trained.class_names
    if journal.done:
        logger.info("going on after %d images", journal.done * begun["batch"])
    try:
        start = world.broadcast((journal.done, begun["batch"]))
        for found in _detect(trained, images, world, stop, *start):
            journal.add({key: _above(each, names, least) for key, each in found.items()})
        n_images, n_found, n_skipped = write_results(folder, journal, images.infos, names, problems)
        _draw(folder, journal, images, names, args.overlays)
    except Interrupted as request_to_stop:
        sys.stdout.write("stopped; the same command goes on from here\n")
        return request_to_stop.exit_code
    finally:
        journal.close()
    if n_skipped:
        logger.warning("%d skipped: %s says why", n_skipped, folder.skipped)
    if not n_images:
        raise DataError(f"no image of {args.images} could be read: {folder.skipped} says why")
    sys.stdout.write(f"{n_found} detections on {n_images} images: {folder}\n")
    return 0


def _open(args: Namespace, trained: Trained) -> tuple[PictureImages, list[str]]:
    """The images of the folder, and a sentence on each file that is none."""
    bad, window = BadSamples("skip", str(args.images)), trained.window
    window = args.window or window
    key = trained.config["dataset"]["args"].get("dicom_key")
    key = key if args.dicom_key is None else str(args.dicom_key)
    images = open_pictures(args.images, "--images", bad, window=window, dicom_key=key, endings=True)
    if not images.infos:
        bad.finish()
        raise DataError(f"no file of {args.images} can be read")
    return images, bad.problems


def _least_scores(args: Namespace, trained: Trained) -> dict[str, float]:
    """The least score of each class that is kept."""
    if args.threshold is not None:
        return dict.fromkeys(trained.class_names, args.threshold)
    fps = args.fps or "1"
    least = trained.least_scores(fps)
    told = ", ".join(f"{name} {score:.3f}" for name, score in least.items())
    logger.info("least score for %s false positives per image on validation: %s", fps, told)
    return least


def _fingerprint(images: PictureImages) -> str:
    """Hex digest of the images and of when their files were written."""
    digest = hashlib.sha256(images.fingerprint().encode())
    for image_id in images.infos:
        # What has gone meanwhile is told when it is read.
        with suppress(OSError):
            state = images.path(image_id).stat()
            digest.update(repr((state.st_size, state.st_mtime_ns)).encode())
    return digest.hexdigest()


def _detect(
    trained: Trained, images: Images, world: World, stop: StopRequest, done: int, batch: int
) -> Iterator[dict[str, Prediction | str]]:
    """What is found on each batch from number `done` on, in rank 0; all processes call it."""
    left, compute = list(images.infos)[done * batch :], trained.compute
    view = UnlabelledView(images, left, trained.resize)
    batches = whole_batches(len(left), batch, world)
    loader = compute.loader(view, batches, collate_readable)
    shown = track(world.watch(loader, stop), "predicting", len(loader), show=world.is_main)
    model = compute.parallel(trained.model)
    found = detect_readable(model, shown, compute.devices.main, compute.dtype)
    return world.merged(found, stop)


def _above(
    found: Prediction | str, names: tuple[str, ...], least: Mapping[str, float]
) -> Prediction | str:
    """The detections of an image whose score their class admits."""
    if isinstance(found, str):
        return found
    limits = np.array([least[name] for name in names], dtype=np.float32)
    keep = found.scores >= limits[found.labels - 1]
    return Prediction(found.boxes[keep], found.labels[keep], found.scores[keep])


def _draw(
    folder: PredictionFolder,
    journal: Journal,
    images: Images,
    class_names: tuple[str, ...],
    n: int,
) -> None:
    """Pictures of the `n` images with the surest detections, by their number in the COCO file."""
    shutil.rmtree(folder.overlays, ignore_errors=True)
    ranked = (
        (float(found.scores.max()), -number, image_id, found)
        for number, (image_id, found) in enumerate(journal.found(), start=1)
        if len(found.scores)
    )
    best = heapq.nlargest(n, ranked, key=lambda row: row[:2])
    if best:
        folder.overlays.mkdir()
    for _, number, image_id, found in best:
        picture = images.picture(image_id)
        width = max(picture.shape[1], _LEAST_WIDTH)
        drawn = draw_boxes(picture, None, found, class_names, width=width)
        save = partial(Image.fromarray(drawn).save, format="PNG")
        atomic_write(folder.overlays / f"{-number:06d}.png", save)
