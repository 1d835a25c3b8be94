"""Decoding and loading: PNG files against the cache of decoded slices."""

import torch
from torch.utils.data import DataLoader

from benchmarks.sides import Repeated, Workload
from benchmarks.timing import Comparison, Side, compare
from med_sslal.base.base_data_loader import collate
from med_sslal.data.dataset import LabelledView
from med_sslal.data.sampler import EpochBatchSampler
from med_sslal.phantom.dataset import DeepLesionPhantom


def loader_comparisons(work: Workload) -> list[Comparison]:
    """Three slices to float, and whole augmented batches, each from PNG and from the cache.

    The bare loader decodes PNG and is torch's own with its defaults; ours is that of a run.
    """
    options, cpu = work.options, torch.device("cpu")
    args = options.config(str(work.folder / "phantom"), "")["dataset"]["args"]
    from_png = DeepLesionPhantom(**{**args, "cache_dir": None})
    from_cache = DeepLesionPhantom(**{**args, "cache_dir": str(work.folder / "loader_cache")})
    ids = sorted(from_png.images.infos)[: 4 * options.steps]

    def decode(dataset: DeepLesionPhantom) -> Side:
        return Side(lambda: [dataset.images.read(image_id) for image_id in ids], len(ids))

    n = len(work.data.images.infos)
    sampler = EpochBatchSampler(n, 0, options.batch_size, 0)
    plain, cached = (
        LabelledView(
            data.images,
            data.labels.annotations,
            data.images.splits["train"],
            work.setup.transforms.train,
        )
        for data in (Repeated(from_png, n), Repeated(from_cache, n))
    )
    bare = DataLoader(
        plain,
        batch_sampler=sampler,
        num_workers=options.workers,
        collate_fn=collate,
        pin_memory=work.device.type == "cuda",
    )
    ours = work.loader(cached, sampler)
    return [
        compare(
            "three slices",
            decode(from_png),
            decode(from_cache),
            options.pairs,
            cpu,
            names=("png", "cache"),
        ),
        compare(
            "loader",
            Side(lambda: [None for _ in bare], n),
            Side(lambda: [None for _ in ours], n),
            options.pairs,
            cpu,
        ),
    ]
