"""Show what training makes of a config's images: a sheet of their weak and strong views."""

from argparse import Namespace

from med_sslal.base.base_dataset import BaseDataset
from med_sslal.base.types import Annotation
from med_sslal.cli.build import build_dataset, build_transforms
from med_sslal.cli.registries import registries
from med_sslal.config.parse_config import ConfigParser
from med_sslal.data.transforms import Transform
from med_sslal.logger.logger import setup_logging
from med_sslal.report.overlays import View, short_name, view_sheet
from med_sslal.utils.errors import UserError
from med_sslal.utils.util import stable_hash


def run(args: Namespace) -> int:
    """Write the sheet that `args` describes; returns the exit code."""
    if args.out.suffix.lower() != ".png":
        raise UserError(f"--out {args.out} must end in .png: the sheet is a PNG file")
    if not args.out.parent.is_dir():
        raise UserError(f"--out {args.out}: there is no folder {args.out.parent}; make it first")
    config = ConfigParser.from_file(args.config, registries(), args.overrides)
    setup_logging(config.get("trainer.verbosity"))
    transforms, dataset = build_transforms(config), build_dataset(config)
    ids = _chosen(dataset, args.images, config["seed"])
    views = {
        "weak": (transforms.train, 0),
        "strong": (transforms.pseudo, 0),
        "strong, in the next epoch": (transforms.pseudo, 1),
    }
    rows = [
        [_original(dataset, image_id)]
        + [_view(dataset, image_id, name, *how) for name, how in views.items()]
        for image_id in ids
    ]
    title = f"{config['name']}: training images, and what the detector is given of them"
    view_sheet(rows, args.out, title=title, note=dataset.images.note)
    print(f"{args.out}: {len(ids)} of {len(dataset.images.splits['train'])} training images")
    return 0


def _chosen(dataset: BaseDataset, number: int, seed: int) -> list[str]:
    """Training images, drawn at random; those with a box first."""

    def order(image_id: str) -> tuple[bool, int]:
        label = dataset.labels.annotations.get(image_id)
        return label is None or not label.n_objects, stable_hash("preview", seed, image_id)

    return sorted(dataset.images.splits["train"], key=order)[:number]


def _original(dataset: BaseDataset, image_id: str) -> View:
    """The image as a person is shown it."""
    height, width = dataset.images.infos[image_id].orig_size
    name = f"{short_name(image_id)}, {width} x {height}"
    return View(name, dataset.images.picture(image_id), dataset.labels.annotations.get(image_id))


def _view(dataset: BaseDataset, image_id: str, name: str, transform: Transform, epoch: int) -> View:
    """The image as the detector is shown it in an epoch."""
    images, label = dataset.images, dataset.labels.annotations.get(image_id)
    pixels, target, _ = transform(images.read(image_id), label, images.infos[image_id], epoch)
    moved = None
    if target is not None:
        moved = Annotation(target.boxes.numpy(), target.labels.numpy(), target.ignore.numpy())
    return View(name, pixels.permute(1, 2, 0).numpy(), moved)
