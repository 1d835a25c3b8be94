"""A pool of 200,000 images, scored, queried and pseudo-labelled: seconds and memory of each stage.

    python -m benchmarks.pool [--images 200000] [--detections 20] [--limit-gb 4] [--budget 1000]
        [--classes 3] [--workers 2] [--roi-features] [--folder FOLDER]

A detector that plays recorded detections back stands for the model; all else is what a run uses,
built from config.json: loader, scoring pass, record, queries, selection files, pseudo-labels. The
queries are that of config.json, localization_tightness with k_means_diversity, every criterion of
one pass, every second stage, both arms over the whole pool, and the rules around a query.

Memory is the process's peak of each stage (Linux): with mapped files (libraries, the record), whose
pages the system drops when it needs room, and without. Loader processes are added to the stages
that have them, although they share most of theirs. The exit code is 1 where the highest sum is
above the limit.

Not here: criteria that need further passes (each view is as large a record again), and three second
stages over the whole pool (`candidate_factor: null`): `k_means_diversity` and `typicality`, whose
time grows with images x budget, and `class_conditional_similarity`, whose memory grows with images
x images. The latter needs `--roi-features` in any case, which add 4 GB to the record.
"""

import argparse
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks.common import EMBEDDING, PROPOSALS, ROI_FEATURES, measured
from med_sslal.al.al_criteria import CRITERIA, SELECTORS
from med_sslal.al.al_helpers import ActiveLearningHelper
from med_sslal.al.pool import Pool
from med_sslal.al.record import OPTIONAL_COLUMNS, PLAIN, PoolRecord, RecordHeader
from med_sslal.al.selection_io import read_selection, write_detections, write_selection
from med_sslal.cli.build import build_dataset, devices_of
from med_sslal.cli.registries import registries
from med_sslal.cli.train import build_setup
from med_sslal.config import jsonc
from med_sslal.config.parse_config import ConfigParser
from med_sslal.ssl.pseudo_labels import PseudoLabels
from med_sslal.ssl.quality import hidden_truth_quality
from med_sslal.trainer.inference import predict_split, score
from med_sslal.trainer.setup import RunSetup
from med_sslal.utils.interrupt import StopRequest
from med_sslal.utils.util import write_json

CONFIG = Path(__file__).parents[1] / "config.json"
LABELLED = 500
T = TypeVar("T")


class Stages:
    """Runs stage after stage and keeps the highest peaks, in MiB.

    Attributes:
        own: Of this process, without mapped files.
        peak: Of this process, with them.
        total: With its loader processes.
    """

    def __init__(self, workers: int) -> None:
        """Nothing has run.

        Args:
            workers: Loader processes of a stage that loads.
        """
        self._workers = workers
        self.own = self.peak = self.total = 0.0

    def __call__(self, name: str, run: Callable[[], T], *, loads: bool = False) -> T:
        """Run a stage; `loads` where it has loader processes."""
        used, loaders = measured(name, run), 0.0
        if loads and self._workers:
            each = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
            loaders = self._workers * each
            sys.stdout.write(f"  {self._workers} loader processes of {each:.0f} MiB at most\n")
        self.own, self.peak = max(self.own, used.own), max(self.peak, used.peak)
        self.total = max(self.total, used.peak + loaders)
        return used.value


def config_of(args: argparse.Namespace) -> ConfigParser:
    """config.json with the replayed pool in place of data set and detector."""
    config = jsonc.parse(CONFIG.read_text(), str(CONFIG)).value
    replay = {"detections": args.detections}
    config["arch"] = {
        "type": "benchmarks.replay.ReplayDetector",
        "args": {"num_classes": args.classes + 1, **replay},
    }
    config["dataset"] = {
        "type": "benchmarks.replay.ReplayImages",
        "args": {"images": args.images, "classes": args.classes, **replay},
    }
    config["al_settings"]["args"] |= {"init_num": LABELLED, "budget_num": args.budget}
    config["ssl_settings"]["include_pseudolabels"] = True
    changes = {"n_gpu": 0, "n_workers": args.workers, "batch_size": 32, "image_size": 32}
    return ConfigParser({**config, **changes}, registries(), source=str(CONFIG))


def columns_of(args: argparse.Namespace) -> tuple[str, ...]:
    """The optional columns of the record."""
    return ("roi_features", "refined_boxes") if args.roi_features else ("refined_boxes",)


def bytes_on_disk(args: argparse.Namespace) -> int:
    """Space that the record needs while its shards are merged, and the files beside it, about."""
    box = 4 * (4 + 2 + 1 + args.classes + 1 + 4 + 4 + args.roi_features * ROI_FEATURES)
    image = 4 * (EMBEDDING + 5 * PROPOSALS) + 200
    return args.images * (2 * (image + args.detections * box) + 2000)


def score_pool(
    setup: RunSetup, pool: Pool, folder: Path, stages: Stages, args: argparse.Namespace
) -> PoolRecord:
    """The scoring pass of a run."""
    names = setup.class_names
    header = RecordHeader(
        "data",
        "model",
        setup.config.digest(),
        names,
        class_counts=dict.fromkeys(names, LABELLED),
        class_difficulty=dict.fromkeys(names, 0.5),
    )
    record = stages(
        "scoring pass",
        lambda: score(
            setup,
            stop=StopRequest(),
            weights={},
            pool=pool,
            path=folder / "record",
            header=header,
            views=setup.strategy.helper.views,
            columns=columns_of(args),
        ),
        loads=True,
    )
    assert record is not None
    section = record.section(PLAIN)
    size = sum(path.stat().st_size for path in record.path.rglob("*.npy"))
    sys.stdout.write(
        f"  {len(section):,} images, {len(section.boxes):,} detections, {size / 1e9:.2f} GB\n"
    )
    return record


def strategies(args: argparse.Namespace) -> dict[str, tuple[list[Any], dict[str, Any]]]:
    """Title to stages and other arguments of the helper."""
    found: dict[str, tuple[list[Any], dict[str, Any]]] = {}
    one_pass = [name for name, cls in CRITERIA.items() if set(cls().views) <= {PLAIN}]
    for name in one_pass:
        found[name] = ([name], {})
    combined = ["entropy", "localization_tightness", "unexplained_objectness"]
    found["combined by percentile ranks"] = ([combined], {})
    for name, cls in SELECTORS.items():
        if set(cls.needs) & OPTIONAL_COLUMNS.keys() <= set(columns_of(args)):
            found[f"entropy, then {name}"] = (["entropy", name], {})
    tightness = ["localization_tightness", "k_means_diversity"]
    found[", then ".join(tightness)] = (tightness, {})
    for name in ("k_center", "k_means_plus_plus"):
        found[f"{name}, whole pool"] = (["random", name], {"candidate_factor": None})
    rules = {"max_per_group": 3, "suppress_adjacent": 2}
    found["entropy, 3 of a patient, none adjacent"] = (["entropy"], rules)
    found["entropy, then greedy_box_cost, in boxes"] = (
        ["entropy", "greedy_box_cost"],
        {"budget_unit": "boxes"},
    )
    return found


def query_all(
    setup: RunSetup, pool: Pool, record: PoolRecord, stages: Stages, args: argparse.Namespace
) -> None:
    """Every query that reads the plain section alone; the choices are dropped."""
    for title, (criterion, more) in strategies(args).items():
        helper = ActiveLearningHelper(LABELLED, args.budget, criterion, seed=setup.seed, **more)
        query = partial(helper.query, record, pool, args.budget, 0, setup.images.infos)
        stages(f"query: {title}", query)


def select(setup: RunSetup, pool: Pool, record: PoolRecord, folder: Path, stages: Stages) -> Pool:
    """The query of config.json, and the files that a run writes about it; the pool after it."""
    infos, helper, path = setup.images.infos, setup.strategy.helper, folder / "selection.json"

    def write() -> None:
        write_detections(folder / "detections.json", selection, record, infos, 0)
        write_selection(path, selection, 0, record.header)

    def label() -> Pool:
        after = pool.label(read_selection(path).image_ids)
        write_json(folder / "pool.json", after.state_dict())
        return after

    selection = stages(
        "query of config.json",
        lambda: helper.query(record, pool, helper.budget_num, 0, infos),
    )
    stages("selection.json written, with detections", write)
    return stages("selection.json read, pool.json written", label)


def pseudo_label(
    setup: RunSetup, pool: Pool, record: PoolRecord, folder: Path, stages: Stages
) -> None:
    """Thresholds from validation, then pseudo-labels made, written, read and graded."""
    labeller, path = setup.strategy.labeller, folder / "pseudo_labels.json"
    assert labeller is not None
    names = setup.class_names

    def thresholds() -> dict[str, float]:
        found, _ = predict_split(setup, stop=StopRequest(), weights={}, split="val", title="val")
        return labeller.thresholds(found, setup.split_labels("val"), names)

    limits = stages("pseudo-labels: thresholds from validation", thresholds, loads=True)
    labels = setup.strategy.oracle.label(pool.labelled)
    pseudo = stages(
        "pseudo-labels made",
        lambda: labeller.make(record, pool, limits, labels, seed=setup.seed),
    )
    n_boxes = sum(label.n_objects for label in pseudo.labels.values())
    n_all = sum(len(label.boxes) for label in pseudo.labels.values())
    stages("pseudo-labels written", lambda: pseudo.write(path))
    sys.stdout.write(
        f"  {len(pseudo.labels):,} images, {n_boxes:,} boxes, {n_all - n_boxes:,} ignore regions, "
        f"{path.stat().st_size / 1e9:.2f} GB\n"
    )
    # A run that is resumed holds only what it reads.
    del pseudo
    pseudo = stages("pseudo-labels read", lambda: PseudoLabels.read(path))
    stages(
        "pseudo-labels graded by the hidden truth",
        lambda: hidden_truth_quality(
            pseudo.labels, setup.strategy.oracle.audit(pseudo.labels), names
        ),
    )


def run_stages(folder: Path, stages: Stages, args: argparse.Namespace) -> None:
    stages("nothing (Python, torch)", lambda: None)
    config = config_of(args)
    dataset = stages("data set: infos and labels", lambda: build_dataset(config))
    setup = build_setup(config, dataset, devices_of(config, None), show_progress=False)
    pool = Pool((), setup.images.splits["train"])
    pool = stages("initial set", lambda: pool.label(setup.strategy.helper.initial(pool)))
    record = score_pool(setup, pool, folder, stages, args)
    query_all(setup, pool, record, stages, args)
    after = select(setup, pool, record, folder, stages)
    pseudo_label(setup, after, record, folder, stages)


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    found.add_argument("--images", type=int, default=200_000, help="images of the pool")
    found.add_argument("--detections", type=int, default=20, help="detections of an image, about")
    found.add_argument("--limit-gb", type=float, default=4.0, help="peak allowed, in 1e9 bytes")
    found.add_argument("--budget", type=int, default=1000, help="images of a query")
    found.add_argument("--classes", type=int, default=3, help="classes without background")
    found.add_argument("--workers", type=int, default=2, help="loader processes")
    found.add_argument("--roi-features", action="store_true", help="record RoI features too")
    found.add_argument("--folder", type=Path, help="where the record lies for the time of the run")
    return found


def main(words: Sequence[str] | None = None) -> int:
    args = parser().parse_args(words)
    if args.images < LABELLED + args.budget:
        parser().error(f"--images: {LABELLED + args.budget} or more, found {args.images}")
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        needed, free = bytes_on_disk(args) / 1e9, shutil.disk_usage(name).free / 1e9
        sys.stdout.write(
            f"{torch.get_num_threads()} thread(s), {args.workers} loader processes; up to "
            f"{needed:.1f} GB go to {name}, which has {free:.1f} GB free\n"
        )
        if needed + 1 > free:
            sys.stderr.write("the disk has too little room: choose another --folder\n")
            return 2
        stages = Stages(args.workers)
        run_stages(Path(name), stages, args)
    own, peak, total = (mib * 2**20 / 1e9 for mib in (stages.own, stages.peak, stages.total))
    kept = total <= args.limit_gb
    sys.stdout.write(
        f"The peak was {own:.2f} GB without mapped files, {peak:.2f} GB with them, and "
        f"{total:.2f} GB with the loader processes: {'under' if kept else 'ABOVE'} the limit of "
        f"{args.limit_gb:g} GB.\n"
    )
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
