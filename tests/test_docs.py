"""The worked example of each page in docs/, run as the page says."""

import csv
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from commands import blocks, run_command
from tiny import make_voc, small_config, tiny_config, write_config

from med_sslal.base.types import Annotation, ImageInfo, Prediction
from med_sslal.cli.registries import registries
from med_sslal.config.jsonc import parse
from med_sslal.config.parse_config import ConfigParser
from med_sslal.eval.metric import evaluate, metric_keys
from med_sslal.utils.errors import ConfigError
from med_sslal.utils.util import read_json

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = ("add_dataset", "add_criterion", "add_metric", "add_backbone", "add_training_step")


def merged(config: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """The config with the keys of a page's block; `dataset` is replaced, as its page says."""
    result = dict(config)
    for key, value in change.items():
        old = {} if key == "dataset" else config.get(key)
        result[key] = (
            merged(old, value) if isinstance(value, dict) and isinstance(old, dict) else value
        )
    return result


@dataclass(frozen=True)
class Workplace:
    """A folder as a user of a page has it: train.py, a module and my_config.json side by side."""

    folder: Path

    def run_page(self, page: str) -> Path:
        """Run all commands of a page; returns the run folder."""
        (commands,) = blocks(DOCS / f"{page}.md", "sh")
        for command in commands.splitlines():
            assert run_command(command, self.folder) == 0
        return (self.folder / "exp_results" / "latest").resolve()


def module(page: str) -> str:
    """The file that a page says its example is saved as."""
    (name,) = re.findall(r"^Save this as `(my_\w+\.py)`", (DOCS / f"{page}.md").read_text(), re.M)
    return str(name)


@pytest.fixture
def make_workplace(tmp_path: Path) -> Iterator[Callable[[str], Workplace]]:
    """Makes the workplace of a page; a small config takes the part of config.json."""

    def make(page: str) -> Workplace:
        shutil.copy(ROOT / "train.py", tmp_path)
        (tmp_path / module(page)).write_text("".join(blocks(DOCS / f"{page}.md", "python")))
        config = small_config(make_voc(tmp_path / "voc"), tmp_path / "exp_results")
        config["trainer"]["save_period"] = 10
        for block in blocks(DOCS / f"{page}.md", "json"):
            config = merged(config, parse(block, page).value)
        write_config(tmp_path / "my_config.json", config)
        return Workplace(tmp_path)

    yield make
    for page in PAGES:
        sys.modules.pop(module(page).removesuffix(".py"), None)


def write_csv(folder: Path) -> Path:
    """The pictures of the tiny VOC set with their boxes in boxes.csv, two images a patient."""
    root = folder / "data" / "my_lab"
    root.mkdir(parents=True)
    shutil.copytree(folder / "voc" / "JPEGImages", root / "images")
    with (root / "boxes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "patient", "class", "x1", "y1", "x2", "y2"])
        for number, path in enumerate(sorted((folder / "voc" / "Annotations").glob("*.xml"))):
            patient, name = f"patient{number // 2}", f"{path.stem}.jpg"
            if number == 0:
                writer.writerow([name, patient, "", "", "", "", ""])
                continue
            box = ElementTree.parse(path).getroot().findtext
            corners = [
                int(box(f"object/bndbox/{key}") or 0) for key in ["xmin", "ymin", "xmax", "ymax"]
            ]
            x1, y1, x2, y2 = corners
            writer.writerow([name, patient, "lesion", x1 - 1, y1 - 1, x2, y2])
    return root


@pytest.mark.parametrize("page", PAGES)
def test_page_has_one_module_one_config_and_its_commands(page: str) -> None:
    assert (
        len(blocks(DOCS / f"{page}.md", "python"))
        == len(blocks(DOCS / f"{page}.md", "json"))
        == len(blocks(DOCS / f"{page}.md", "sh"))
        == 1
    )
    fences = re.findall(r"^```(\w*)$", (DOCS / f"{page}.md").read_text(), re.M)
    assert sorted(fences) == ["", "", "", "json", "python", "sh"]


def test_who_follows_two_pages_keeps_both_modules() -> None:
    assert len({module(page) for page in PAGES}) == len(PAGES)


@pytest.mark.slow
def test_dataset_page(
    make_workplace: Callable[[str], Workplace], capsys: pytest.CaptureFixture[str]
) -> None:
    workplace = make_workplace("add_dataset")
    root = write_csv(workplace.folder)
    made = workplace.run_page("add_dataset")
    splits = read_json(made / "split.json")
    number = {name: int(name.removeprefix("image")) // 2 for ids in splits.values() for name in ids}
    assert len(number) == 24
    patients = [{number[name] for name in ids} for ids in splits.values()]
    assert sum(map(len, patients)) == 12 == len(set.union(*patients))
    assert read_json(made / "summary.json")
    lines = (root / "boxes.csv").read_text().replace("patient3,lesion", "patient3,lesoin")
    (root / "boxes.csv").write_text(lines)
    assert run_command("python train.py -c my_config.json --dry-run", workplace.folder) == 2
    assert "image image006.jpg: unknown class 'lesoin'" in capsys.readouterr().err


@pytest.mark.slow
def test_criterion_page(make_workplace: Callable[[str], Workplace]) -> None:
    made = make_workplace("add_criterion").run_page("add_criterion")
    chosen = read_json(made / "cycle_00" / "selection.json")
    assert chosen["criteria"] == ["undecided", "k_means_diversity"]
    values = chosen["scores"]["undecided"]
    pool = read_json(made / "cycle_00" / "pool.json")
    assert len(values) == len(pool["unlabelled"])
    assert all(0 <= value <= 1 for value in values.values())
    assert chosen["images"][0]["reason"].startswith("undecided 0.")


@pytest.mark.slow
def test_metric_page(make_workplace: Callable[[str], Workplace]) -> None:
    made = make_workplace("add_metric").run_page("add_metric")
    rows = list(csv.DictReader((made / "results.csv").open()))
    assert len(rows) == 2
    for row in rows:
        assert float(row["val_count_error"]) >= 0
        assert float(row["test_count_error"]) >= 0
    training = read_json(made / "cycle_01" / "training.json")
    assert training["best"] == min(values["val_count_error"] for values in training["history"])


@pytest.mark.slow
def test_backbone_page(make_workplace: Callable[[str], Workplace]) -> None:
    made = make_workplace("add_backbone").run_page("add_backbone")
    content = torch.load(made / "cycle_01" / "model_best.pth", weights_only=True)
    names = [name for name in content["model"] if name.startswith("backbone.body.")]
    assert names[-1].startswith("backbone.body.12.")
    assert content["config"]["arch"]["type"] == "my_backbone.LabRCNN"


def test_backbone_page_reads_imagenet_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file named and shaped as torchvision's weights for the example's backbone are."""
    from torchvision.models import mobilenet_v3_small

    (tmp_path / "lab_backbone.py").write_text(blocks(DOCS / "add_backbone.md", "python")[0])
    monkeypatch.syspath_prepend(tmp_path)
    from lab_backbone import LabRCNN  # type: ignore[import-not-found]

    stock = mobilenet_v3_small().state_dict()
    torch.save(stock, tmp_path / "small.pth")
    model = LabRCNN(
        num_classes=2, backbone_name="mobilenet_v3_small", pretrained=str(tmp_path / "small.pth")
    )
    assert model.backbone.strides == (4, 8, 16, 32)
    loaded = model.state_dict()
    for name in ("0.0.weight", "5.block.0.0.weight", "12.0.weight"):
        assert torch.equal(loaded[f"backbone.body.{name}"], stock[f"features.{name}"])


METRIC_MODULE = '''
from typing import NamedTuple

from med_sslal.eval.eval_utils import MetricResult

NUMBER = 3


class Pair(NamedTuple):
    a: float
    b: int


def good(predictions, annotations, infos, class_names, *, draws, seed):
    """Number of images."""
    return MetricResult({"n_images": len(predictions)})


def no_draws(predictions, annotations, infos, class_names):
    return MetricResult({})


def nan(predictions, annotations, infos, class_names, **kwargs):
    nowhere = float("nan")
    return MetricResult({"score": nowhere}, {"score": (nowhere, 1.0)}, {"all": Pair(nowhere, 3)})


def returns_a_dict(predictions, annotations, infos, class_names, **kwargs):
    return {"n": 1}
'''


@pytest.fixture
def own_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_metrics.py").write_text(METRIC_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_metrics", raising=False)


def test_metric_by_dotted_path(own_metrics: None) -> None:
    names = ["own_metrics.good", "coco_ap"]
    assert metric_keys(names, ["lesion"]) == {"n_images"} | metric_keys(["coco_ap"], ["lesion"])
    ids = ("a", "b")
    result = evaluate(
        names,
        dict.fromkeys(ids, Prediction.empty()),
        dict.fromkeys(ids, Annotation.empty()),
        {name: ImageInfo(name, name, "", (8, 8)) for name in ids},
        ["lesion"],
    )
    assert result["values"]["n_images"] == 2


def test_a_value_that_is_no_number_is_undefined(
    own_metrics: None, caplog: pytest.LogCaptureFixture
) -> None:
    """It would be the best for good, and JSON cannot hold it."""
    image = {"a": ImageInfo("a", "a", "", (8, 8))}
    none, label = {"a": Prediction.empty()}, {"a": Annotation.empty()}
    result = evaluate(["own_metrics.nan"], none, label, image, ["lesion"])
    assert result["values"] == {"score": None} and result["intervals"] == {"score": [None, 1.0]}
    assert result["details"] == {"own_metrics.nan": {"all": [None, 3]}}
    assert json.loads(json.dumps(result, allow_nan=False))
    assert "metric 'own_metrics.nan': score is nan, which is taken as undefined" in caplog.text


def test_config_takes_a_metric_by_dotted_path(own_metrics: None, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tmp_path)
    config["metrics"] = ["own_metrics.good"]
    assert ConfigParser(config, registries())["metrics"] == ["own_metrics.good"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("count_error", r"unknown metric 'count_error'.*, or your own module.function"),
        ("no_such_module.metric", "cannot import 'no_such_module' for 'no_such_module.metric'"),
        ("own_metrics.missing", "module 'own_metrics' has no function 'missing'"),
        ("own_metrics.NUMBER", "module 'own_metrics' has no function 'NUMBER'"),
        ("own_metrics.no_draws", "'own_metrics.no_draws' is no metric: .* 'draws'"),
    ],
    ids=["name", "module", "function", "number", "signature"],
)
def test_wrong_metric_is_one_sentence(
    own_metrics: None, tmp_path: Path, name: str, words: str
) -> None:
    config = tiny_config(tmp_path, tmp_path)
    config["metrics"] = ["coco_ap", name]
    with pytest.raises(ConfigError, match=words) as caught:
        ConfigParser(config, registries())
    assert len(str(caught.value).splitlines()) == 1
    assert "metrics[1]" in str(caught.value)


def test_metric_that_returns_something_else_is_named(own_metrics: None) -> None:
    with pytest.raises(ConfigError, match="must return a MetricResult, found dict"):
        metric_keys(["own_metrics.returns_a_dict"], ["lesion"])


def test_json_blocks_are_plain_json() -> None:
    """So that they can be pasted anywhere."""
    for page in PAGES:
        for block in blocks(DOCS / f"{page}.md", "json"):
            assert isinstance(json.loads(block), dict)
