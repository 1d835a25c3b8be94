"""A larger pool takes time and disk, but hardly any memory: benchmarks/pool.py in small."""

import sys
import tracemalloc
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import run_command
from records import header, info

from benchmarks import pool as benchmark
from benchmarks.common import detections
from med_sslal.al.criteria.base import BLOCK_IMAGES
from med_sslal.al.pool import Pool
from med_sslal.al.record import PLAIN, PoolRecord
from med_sslal.al.record_writer import RecordWriter
from med_sslal.cli.build import build_dataset, devices_of
from med_sslal.cli.train import build_setup
from med_sslal.ssl.pseudo_labels import PseudoLabels
from med_sslal.trainer.setup import RunSetup

ROOT = Path(__file__).parents[1]
BUDGET = 100
STATUS = Path("/proc/self/status")
needs_linux = pytest.mark.skipif(not STATUS.exists(), reason="Linux alone tells a process's pages")


class Made:
    """A replayed pool of `n` unlabelled images in the setup of a run."""

    def __init__(self, folder: Path, n: int) -> None:
        words = ["--images", f"{n + benchmark.LABELLED}", "--budget", f"{BUDGET}", "--workers", "0"]
        self.args: Namespace = benchmark.parser().parse_args(words)
        self.folder = folder
        folder.mkdir()
        config = benchmark.config_of(self.args)
        dataset, device = build_dataset(config), devices_of(config, None)
        self.setup: RunSetup = build_setup(config, dataset, device, show_progress=False)
        self.infos = dataset.images.infos
        everything = Pool((), dataset.images.splits["train"])
        self.pool = everything.label(self.setup.strategy.helper.initial(everything))

    def score(self) -> PoolRecord:
        def run(name, stage, loads=False):
            return stage()

        return benchmark.score_pool(self.setup, self.pool, self.folder, run, self.args)


def growth(runs: dict[int, Callable[[], object]]) -> float:
    """Bytes of Python and NumPy that each further image adds to the peak; keys count images."""
    peaks = []
    for run in runs.values():
        tracemalloc.start()
        run()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    few, many = runs
    return (peaks[1] - peaks[0]) / (many - few)


def mebibytes(entry: str) -> float:
    return int(STATUS.read_text().split(f"{entry}:")[1].split()[0]) / 1024


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> dict[int, tuple[Made, PoolRecord]]:
    """A pool of one block of images, and one of half as many again."""
    folder, found = tmp_path_factory.mktemp("pools"), {}
    for n in (BLOCK_IMAGES, BLOCK_IMAGES * 3 // 2):
        made = Made(folder / str(n), n)
        found[n] = (made, made.score())
    return found


def test_scoring_keeps_no_image(tmp_path):
    """An image is 4 kB of record; its id and its place remain."""
    made = {n: Made(tmp_path / str(n), n) for n in (1100, 1600)}
    assert growth({n: one.score for n, one in made.items()}) < 500


# Bytes per image: its id, its value and its place in selection.json.
FEW = 350
# Embeddings as recorded (2 kB) and as float64 (4 kB), where these are what is compared.
EMBEDDINGS = 7000
# Two draws of each image, and whose turn it is.
DRAWS = 700
# The embeddings beside those of the labelled images once more before they are float64, and what
# k-means keeps: 2.1 GB for 200,000 images.
CLUSTERED = 13_000
QUERIES = {
    "of config.json": (["entropy"], {}, FEW),
    "tight, diverse": (["localization_tightness", "k_means_diversity"], {}, FEW),
    "balanced": (["random", "class_balance"], {}, FEW),
    "representative": (["random", "representativeness"], {}, FEW),
    "rules": (["random"], {"max_per_group": 3, "suppress_adjacent": 2, "spread_groups": True}, FEW),
    "boxes": (["random", "greedy_box_cost"], {"budget_unit": "boxes"}, FEW),
    "every other with a detection": (["foreground_random"], {}, DRAWS),
    "covering the whole pool": (["random", "k_center"], {}, EMBEDDINGS),
    "typical of the whole pool": (["random", "typicality"], {}, CLUSTERED),
}


@pytest.mark.parametrize(("stages", "more", "limit"), QUERIES.values(), ids=QUERIES)
def test_a_query_copies_no_pool(scored, stages, more, limit):
    helper = benchmark.ActiveLearningHelper(1, BUDGET, stages, seed=1, **more)

    def query(n: int) -> None:
        made, record = scored[n]
        helper.query(record, made.pool, BUDGET, 0, made.infos)

    assert growth({n: lambda n=n: query(n) for n in scored}) < limit


def test_pseudo_labels_take_what_they_hold(scored, tmp_path):
    labels: dict[int, PseudoLabels] = {}

    def make(n: int) -> None:
        made, record = scored[n]
        setup, names = made.setup, made.setup.class_names
        labelled = setup.strategy.oracle.label(made.pool.labelled)
        labels[n] = setup.strategy.labeller.make(
            record, made.pool, dict.fromkeys(names, 0.8), labelled
        )

    def write(n: int) -> None:
        labels[n].write(tmp_path / f"{n}")

    def read(n: int) -> None:
        PseudoLabels.read(tmp_path / f"{n}")

    made, written, read_back = (
        growth({n: lambda n=n, run=run: run(n) for n in scored}) for run in (make, write, read)
    )
    # Some 16 boxes of an image in the arrays of its label; the text of a file that is read.
    assert made < 2200 and written < 50 and read_back < 3500


@needs_linux
def test_pages_of_a_record_are_let_go_of(tmp_path):
    images, found = 8 * BLOCK_IMAGES, detections(np.random.default_rng(0), 0, 1)
    with RecordWriter(tmp_path / "record", header()) as writer:
        for number in range(images):
            writer.add(info(f"image{number:05d}"), found)
        Path("/proc/self/clear_refs").write_text("5")  # Resets the peak.
        before = mebibytes("VmRSS")
        record = writer.close()
        merged = mebibytes("VmHWM") - before
    size = record.section(PLAIN).embeddings.nbytes / 2**20
    assert merged < size / 2
    before, read = mebibytes("RssFile"), []
    for block in record.blocks(BLOCK_IMAGES):
        block.section(PLAIN).embeddings.sum()
        read.append(mebibytes("RssFile") - before)
    assert size / 16 < max(read) < size / 2


def test_help(capsys, monkeypatch):
    # As in a new process.
    monkeypatch.delitem(sys.modules, "benchmarks.pool", raising=False)
    assert run_command("python -m benchmarks.pool --help", ROOT) == 0
    assert "--images" in capsys.readouterr().out


@needs_linux
@pytest.mark.parametrize(("limit", "code", "word"), [(40, 0, "under"), (0.01, 1, "ABOVE")])
def test_the_benchmark_holds_the_limit(tmp_path, capsys, limit, code, word):
    words = f"--images 700 --budget 50 --workers {1 - code} --limit-gb {limit} --folder {tmp_path}"
    assert benchmark.main(words.split()) == code
    printed = capsys.readouterr().out
    assert f"{word} the limit of {limit} GB" in printed
    titles = benchmark.strategies(Namespace(roi_features=False))
    assert all(f"query: {title} " in printed for title in titles)
    assert list(tmp_path.iterdir()) == []
