"""Play the reader of a run: the labels of a COCO set are hidden, and given as a person gives them.

    python -m examples.read_brain_mri --data data/brain_mri --out read_brain_mri

Made for the brain tumours on MRI of configs/brain_mri.json. A part of train.json becomes a folder
of pictures, one folder inside it for each series; labels.json there has the labels of some series.
The run is trained, asked and resumed by the commands that a person would type, and each query is
answered in another format: Label Studio's JSON, CVAT's XML, COCO. At the end a line for each cycle
is printed. `--small` is a trial of two steps on few images, which measures nothing.
"""

import argparse
import csv
import json
import random
import shutil
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from med_sslal.__main__ import main as med_sslal
from med_sslal.base.base_dataset import Labels
from med_sslal.base.types import Annotation
from med_sslal.config.jsonc import parse
from med_sslal.data.coco import COCO, save_coco
from med_sslal.data.image_folder import ImageFolder
from med_sslal.data.pictures import PictureImages
from med_sslal.practice.answers import Answer, Query
from med_sslal.practice.query_folder import read_query
from med_sslal.trainer.run_folder import RunFolder
from med_sslal.utils.text_table import text_table
from tests.annotator import answer_coco, answer_cvat, answer_label_studio

ROOT = Path(__file__).parents[1]
# One for each query in turn, with the name of the file.
FORMATS = (
    ("label_studio.json", answer_label_studio),
    ("cvat.xml", answer_cvat),
    ("coco.json", answer_coco),
)
COUNTS = ("cycle", "labelled_images", "labelled_boxes")
MEASURES = ("test_sens_mean", "test_AP50")


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the COCO set")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--weights", help="file of MobileNetV2's ImageNet weights; else downloaded")
    parser.add_argument("--small", action="store_true", help="a trial of two steps on few images")
    return parser


def main() -> None:
    """Hide the labels, run, answer, and tell."""
    args = options().parse_args()
    out = args.out.resolve()
    truth = hide(args.data, out / "pictures", (4, 2) if args.small else (20, 16))
    config = configure(out, args.weights or True, args.small)
    command("train", "-c", config, "--run-id", "reader")
    run = RunFolder(out / "runs" / "brain_mri" / "reader")
    for number, (name, write) in enumerate(FORMATS):
        folder = run.cycle(number).query
        assert folder is not None
        query = read_query(folder)
        file = out / f"{number}_{name}"
        file.write_text(write(query, answers(query, truth)))
        command("import", folder, file, "--reader", "the truth")
        command("train", "--resume", run.path)
    with (run.path / "results.csv").open(newline="") as stream:
        rows = [
            [*(row[name] for name in COUNTS), *(f"{float(row[name]):.3f}" for name in MEASURES)]
            for row in csv.DictReader(stream)
        ]
    print(text_table([[*COUNTS, *MEASURES], *rows], ">>>>>"))


def hide(data: Path, pictures: Path, sizes: tuple[int, int]) -> dict[str, Annotation]:
    """Make the folder of pictures, of so many series with labels and without, drawn at random.

    Returns all labels by the image ids of the folder.
    """
    known = COCO(str(data), annotations="train.json", group_key="series")
    assert isinstance(known.images, PictureImages)
    series: dict[str, list[str]] = defaultdict(list)
    for image_id, info in sorted(known.images.infos.items()):
        series[info.group_id].append(image_id)
    names = sorted(series)
    random.Random(0).shuffle(names)
    truth: dict[str, Annotation] = {}
    labelled: dict[str, Annotation] = {}
    for number, name in enumerate(names[: sum(sizes)]):
        folder = pictures / name
        folder.mkdir(parents=True)
        own = {}
        for image_id in series[name]:
            source = known.images.path(image_id)
            shutil.copyfile(source, folder / source.name)
            own[f"{name}/{source.stem}"] = known.labels.annotations[image_id]
        if number < sizes[0]:
            labelled |= own
        truth |= own
    images = ImageFolder(str(pictures), group_pattern="^([^/]+)/").images
    save_coco(pictures / "labels.json", images, Labels(known.labels.class_names, labelled))
    return truth


def configure(out: Path, weights: str | bool, small: bool) -> Path:
    """Write the config of a run that asks a person three times."""
    name = "configs/brain_mri.json"
    config: dict[str, Any] = parse((ROOT / name).read_text(), name).value
    config["dataset"] = {
        "type": "ImageFolder",
        "args": {
            "root": str(out / "pictures"),
            "labels": "labels.json",
            "group_pattern": "^([^/]+)/",
            "eval_split": 0.8,
        },
    }
    config["oracle"] = {"type": "human", "args": {"blind": 0.2}}
    config["al_settings"]["args"] |= {"init_num": "labelled", "budget_num": 2 if small else 40}
    config |= {"n_workers": 0, "image_size": 64 if small else 96}
    config["trainer"] |= {"steps_per_cycle": 2 if small else 150, "save_dir": str(out / "runs")}
    config["lr_scheduler"]["args"]["total_steps"] = config["trainer"]["steps_per_cycle"]
    config["arch"]["args"]["pretrained"] = weights
    if small:
        config["arch"]["args"] |= {"pretrained": False, "trainable_layers": None}
    path = out / "config.json"
    path.write_text(json.dumps(config, indent=4))
    return path


def answers(query: Query, truth: dict[str, Annotation]) -> list[Answer]:
    """What a reader says who finds every object, and takes no time."""
    found = []
    for image in query.images:
        label = truth[image.image_id]
        found.append(
            Answer(
                image.image_id,
                "labelled" if label.n_objects else "confirmed_empty",
                label.boxes,
                label.labels,
            )
        )
    return found


def command(*words: str | Path) -> None:
    """Do what `python -m med_sslal WORDS` does; an error ends this program."""
    line = [str(word) for word in words]
    print(f"$ python -m med_sslal {' '.join(line)}", flush=True)
    if code := med_sslal(line):
        sys.exit(code)


if __name__ == "__main__":
    main()
