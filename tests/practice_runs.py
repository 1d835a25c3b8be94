"""Runs that ask a person, on tiny pictures of which a part is labelled, and the research run."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from med_sslal.__main__ import main
from med_sslal.al.al_helpers import ActiveLearningHelper
from med_sslal.al.pool import Pool
from med_sslal.base.base_dataset import BaseDataset, Labels
from med_sslal.base.types import Annotation
from med_sslal.data.coco import save_coco
from med_sslal.data.image_folder import ImageFolder
from med_sslal.data.voc import PascalVOC
from med_sslal.practice.answers import Answer, Query
from med_sslal.practice.query_folder import read_query
from med_sslal.trainer.run_folder import RunFolder
from tests.annotator import answer_label_studio
from tests.tiny import make_voc, quick_config

N_IMAGES, N_LABELLED = 22, 10


def make_folder(root: Path) -> Path:
    """A folder of pictures; labels.json has some labels and truth.json all, a third is empty."""
    pictures = make_voc(root, N_IMAGES) / "JPEGImages"
    data = PascalVOC(str(root), eval_split=0.5)
    known = {
        name: Annotation.empty() if number % 3 == 2 else label
        for number, (name, label) in enumerate(sorted(data.labels.annotations.items()))
    }
    names = data.labels.class_names
    part = dict(list(known.items())[:N_LABELLED])
    images = ImageFolder(str(pictures), classes=list(names)).images
    for file, labels in (("labels.json", part), ("truth.json", known)):
        save_coco(pictures / file, images, Labels(names, labels))
    return pictures


def truth_of(pictures: Path) -> dict[str, Annotation]:
    """All labels, by image id."""
    return dict(ImageFolder(str(pictures), labels="truth.json").labels.annotations)


class Revealed(ImageFolder):
    """The same pictures and split, with the labels of all of them."""

    def __init__(self, root: str, *, labels: str, eval_split: float = 0.2) -> None:
        super().__init__(root, labels=labels, eval_split=eval_split)
        self.labels = ImageFolder(root, labels="truth.json").labels
        self.images.split_from_labels = False


class NoFiles(BaseDataset):
    """The same, and no data set of picture files."""

    def __init__(self, root: str, *, labels: str, eval_split: float = 0.2) -> None:
        data = ImageFolder(root, labels=labels, eval_split=eval_split)
        super().__init__(data.images, data.labels)


class FirstLabelled(ActiveLearningHelper):
    """Begins with the images that labels.json names, of any folder that make_folder made."""

    def initial(self, pool: Pool) -> tuple[str, ...]:
        """The labelled ones of the pool."""
        return tuple(name for name in pool.unlabelled if name < f"image{N_LABELLED:03d}")


def human_config(pictures: Path, save_dir: Path, **args: Any) -> dict[str, Any]:
    """A run of two queries of three images, that a person answers."""
    config = quick_config(pictures, save_dir)
    data = {"root": str(pictures), "labels": "labels.json", "eval_split": 0.6}
    config["dataset"] = {"type": "ImageFolder", "args": data}
    config["oracle"] = {"type": "human", "args": args}
    config["al_settings"]["num_cycles"] = 2
    config["al_settings"]["args"] |= {"init_num": "labelled", "budget_num": 3}
    config["ssl_settings"] = {"include_pseudolabels": False}
    config["trainer"] |= {"epochs": 1, "keep_checkpoints": "best"}
    return config


def research_config(pictures: Path, save_dir: Path) -> dict[str, Any]:
    """The same with an oracle that knows all labels."""
    config = human_config(pictures, save_dir)
    del config["oracle"]
    config["dataset"]["type"] = "tests.practice_runs.Revealed"
    config["al_settings"]["type"] = "tests.practice_runs.FirstLabelled"
    n_train = len(ImageFolder(**config["dataset"]["args"]).images.splits["train"])
    config["al_settings"]["args"]["init_num"] = n_train - (N_IMAGES - N_LABELLED)
    return config


def newest_query(run: Path) -> tuple[Path, Query]:
    """The folder of a run's newest query, and what is in it."""
    folder = [cycle.query for cycle in RunFolder(run).cycles() if cycle.query][-1]
    return folder, read_query(folder)


def answer(image_id: str, truth: Annotation | str) -> Answer:
    """A person's answer: a label, or a state without one."""
    if isinstance(truth, Annotation):
        state = "labelled" if truth.n_objects else "confirmed_empty"
        return Answer(image_id, state, truth.boxes, truth.labels)  # type: ignore[arg-type]
    none = (np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    return Answer(image_id, truth, *none)  # type: ignore[arg-type]


def export(query: Query, truth: dict[str, Annotation], path: Path, **others: Any) -> Path:
    """What Label Studio exports for a query answered by the truth, and by `others` by image id."""
    answers = [
        answer(image.image_id, others.get(image.image_id, truth[image.image_id]))
        for image in query.images
    ]
    path.write_text(answer_label_studio(query, [a for a in answers if a.state != "pending"]))
    return path


Stop = Callable[[str, tuple[Any, ...]], bool]


def killed(words: Sequence[str | Path], at: Stop) -> bool:
    """Whether a command was killed (SIGKILL) before the first event that `at` is true of.

    It gets the events of `sys.addaudithook` with their arguments. AssertionError where the command
    came to its end with another exit code than 0.
    """

    def child() -> None:
        output = os.open(os.devnull, os.O_WRONLY)
        os.dup2(output, 1)

        def hook(event: str, args: tuple[Any, ...]) -> None:
            if at(event, args):
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        os._exit(main([str(word) for word in words]))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return process.exitcode != 0


def touches(name: str) -> Stop:
    """Whether an event is about a file whose path has `name` in it."""
    return lambda event, args: (
        event in ("open", "os.rename", "os.mkdir", "tempfile.mkstemp")
        and bool(args)
        and name in str(args[event == "os.rename"])
    )


def nth(event: Stop, number: int) -> Stop:
    """The `number`-th of such events."""
    left = iter(range(number - 1))
    return lambda *at: event(*at) and next(left, None) is None
