"""Made-up damage of every file that the program reads: it is taken, or refused with a sentence."""

import copy
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import make_voc, quick_config, run_train, write_config

from med_sslal.al.record import PoolRecord
from med_sslal.al.selection_io import read_selection
from med_sslal.base.base_dataset import BaseDataset
from med_sslal.base.checkpoint import load_checkpoint
from med_sslal.cli.registries import registries
from med_sslal.config.parse_config import ConfigParser
from med_sslal.data.coco import COCO
from med_sslal.data.deeplesion import DeepLesion
from med_sslal.data.voc import PascalVOC
from med_sslal.phantom import generate
from med_sslal.report.run_data import load_run
from med_sslal.ssl.pseudo_labels import PseudoLabels
from med_sslal.trainer.run_folder import RunFolder
from med_sslal.utils.errors import UserError

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow

fuzz = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(10**310), 10**400, 1e308, 0.5, math.nan),
    *(math.inf, -math.inf, "", " ", "\0", "a\0b", "\ud800", "../x", "/etc/passwd", "C:\\x"),
    *("x" * 5000, "<b>&", "1", "null", [], {}, [[]], [None], {"": None}, [1, 2], [0, 0, 0, 0]),
    *([math.nan] * 4, [10**400, 0, 1, 1], {"type": "os.system", "args": {"command": "true"}}),
]


def places(content: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a JSON document; of a long list, of its first items."""
    items = content.items() if isinstance(content, dict) else enumerate(content[:3])
    found = [at] if at else []
    for key, value in items if isinstance(content, dict | list) else ():
        inner = (*at, key)
        found += places(value, inner) if isinstance(value, dict | list) else [inner]
    return found


@st.composite
def odd_json(draw: st.DrawFn, text: str) -> str:
    """A JSON document with one to three values replaced, removed, or given twice."""
    content = json.loads(text)
    for _ in range(draw(st.integers(1, 3))):
        spots = places(content)
        if not spots:
            break
        *path, last = draw(st.sampled_from(spots))
        holder = content
        for key in path:
            holder = holder[key]
        what = draw(st.sampled_from(["replace", "replace", "remove", "twin"]))
        if what == "replace":
            holder[last] = copy.deepcopy(draw(st.sampled_from(ODD)))
        elif what == "remove":
            del holder[last]
        elif isinstance(holder, list):
            holder.append(copy.deepcopy(holder[last]))
        else:
            holder[f"{last} "] = copy.deepcopy(holder[last])
    return json.dumps(content)


@st.composite
def odd_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """A file cut short, with a stretch changed, left out or put in."""
    end = len(content)
    at, length = draw(st.integers(0, end)), draw(st.integers(0, 40))
    what = draw(st.sampled_from(["cut", "change", "leave out", "put in"]))
    if what == "cut":
        return content[:at]
    new = b"" if what == "leave out" else draw(st.binary(min_size=1, max_size=40))
    return content[:at] + new + content[at if what == "put in" else min(at + length, end) :]


def refused_or_taken(read: Callable[[], Any]) -> None:
    """Anything but what a user can be told of is a defect."""
    try:
        read()
    except UserError as error:
        assert str(error)


def open_and_look(make: Callable[[], BaseDataset]) -> None:
    """Open a data set, look at all that is known of it, and decode an image."""
    dataset = make()
    dataset.images.fingerprint()
    dataset.labels.fingerprint()
    dataset.images.read(next(iter(dataset.images.infos)))


def put(path: Path, content: str | bytes) -> None:
    path.write_bytes(
        content.encode(errors="surrogatepass") if isinstance(content, str) else content
    )


class Damaged:
    """Puts damage into a file and the good content back after it."""

    def __init__(self, path: Path, content: str | bytes) -> None:
        self.path, self.content, self.good = path, content, path.read_bytes()

    def __enter__(self) -> None:
        put(self.path, self.content)

    def __exit__(self, *error: object) -> None:
        self.path.write_bytes(self.good)


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_voc(tmp_path_factory.mktemp("voc"), 6)


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures, 16-bit grey among them, two classes, a crowd, and a patient each."""
    root = tmp_path_factory.mktemp("coco")
    images = []
    for number in range(6):
        name = f"p{number}.png"
        cv2.imwrite(str(root / name), np.full((20, 24), 99, np.uint8))
        images.append(
            {"id": number, "file_name": name, "width": 24, "height": 20, "patient": f"p{number}"}
        )
    boxes = [
        {
            "id": number,
            "image_id": number % 5,
            "category_id": 1 + number % 2,
            "bbox": [1, 2, 8.5, 9],
            "iscrowd": int(number == 3),
            "area": 76.5,
        }
        for number in range(8)
    ]
    kinds = [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}]
    content = {"images": images, "annotations": boxes, "categories": kinds}
    (root / "annotations.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def deeplesion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("deeplesion") / "set"
    generate(out, patients=4, size=64, seed=5)
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run of two trainings, with record and pseudo-labels."""
    folder = tmp_path_factory.mktemp("run")
    config = quick_config(make_voc(folder / "data"), folder / "runs")
    config["al_settings"]["num_cycles"] = 1
    config["trainer"]["keep_records"] = True
    assert run_train("-c", write_config(folder / "config.json", config), "--run-id", "r") == 0
    return RunFolder(folder / "runs" / config["name"] / "r")


@pytest.fixture(scope="module")
def shipped() -> dict[str, tuple[str, str]]:
    """The text of each shipped config of a run, and what all of its keys are."""
    paths = [ROOT / "config.json", *sorted((ROOT / "configs").glob("*.json"))]
    return {
        path.name: (
            path.read_text(),
            json.dumps(ConfigParser.from_file(path, registries()).resolved),
        )
        for path in paths
        if "study" not in path.name
    }


@pytest.mark.parametrize("kind", ["values", "bytes"])
@fuzz
@given(data=st.data())
def test_config(
    kind: str, data: st.DataObject, shipped: dict[str, tuple[str, str]], tmp_path: Path
) -> None:
    text, resolved = shipped[data.draw(st.sampled_from(sorted(shipped)))]
    make = odd_json(resolved) if kind == "values" else odd_bytes(text.encode())
    put(tmp_path / "c.json", data.draw(make))
    refused_or_taken(lambda: ConfigParser.from_file(tmp_path / "c.json", registries()))


def open_coco(root: Path, **more: Any) -> COCO:
    return COCO(
        str(root), annotations="annotations.json", eval_split=0.5, group_key="patient", **more
    )


POLICY = st.sampled_from(["error", "skip"])


@pytest.mark.parametrize("kind", ["values", "bytes"])
@fuzz
@given(data=st.data())
def test_coco(kind: str, data: st.DataObject, coco: Path) -> None:
    file = coco / "annotations.json"
    make = odd_json(file.read_text()) if kind == "values" else odd_bytes(file.read_bytes())
    policy = data.draw(POLICY)
    with Damaged(file, data.draw(make)):
        refused_or_taken(lambda: open_and_look(lambda: open_coco(coco, on_bad_sample=policy)))


@pytest.mark.parametrize("folder", ["Annotations", "JPEGImages"])
@fuzz
@given(data=st.data())
def test_voc(folder: str, data: st.DataObject, voc: Path) -> None:
    file = sorted((voc / folder).iterdir())[0]
    policy = data.draw(POLICY)
    with Damaged(file, data.draw(odd_bytes(file.read_bytes()))):
        refused_or_taken(
            lambda: open_and_look(lambda: PascalVOC(str(voc), eval_split=0.5, on_bad_sample=policy))
        )


@pytest.mark.parametrize("what", ["DL_info.csv", "png"])
@fuzz
@given(data=st.data())
def test_deeplesion(what: str, data: st.DataObject, deeplesion: Path) -> None:
    file = deeplesion / what
    if what == "png":
        file = sorted(deeplesion.rglob("*.png"))[0]
    policy = data.draw(POLICY)
    with Damaged(file, data.draw(odd_bytes(file.read_bytes()))):
        refused_or_taken(
            lambda: open_and_look(
                lambda: DeepLesion(str(deeplesion), eval_split=0.5, on_bad_sample=policy)
            )
        )


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
@fuzz
@given(data=st.data())
def test_pictures(suffix: str, data: st.DataObject, coco: Path) -> None:
    """The same data set with a damaged picture of another kind."""
    good = np.random.default_rng(0).integers(0, 60000, (20, 24), dtype=np.uint16)
    pixels = good if suffix != ".jpg" else (good // 256).astype(np.uint8)
    content = cv2.imencode(suffix, pixels)[1].tobytes()
    (coco / "p0.png").unlink()
    file = coco / "p0.png"
    put(file, data.draw(odd_bytes(content)))
    try:
        refused_or_taken(lambda: open_and_look(lambda: open_coco(coco, window=(0.0, 60000.0))))
    finally:
        cv2.imwrite(str(file), np.full((20, 24), 99, np.uint8))


@pytest.mark.parametrize("kind", ["values", "bytes"])
@fuzz
@given(data=st.data())
def test_selection(kind: str, data: st.DataObject, run: RunFolder, tmp_path: Path) -> None:
    content = run.cycle(0).selection.read_text()
    make = odd_json(content) if kind == "values" else odd_bytes(content.encode())
    put(tmp_path / "s.json", data.draw(make))
    refused_or_taken(lambda: read_selection(tmp_path / "s.json"))


@pytest.mark.parametrize("kind", ["values", "bytes"])
@fuzz
@given(data=st.data())
def test_pseudo_labels(kind: str, data: st.DataObject, run: RunFolder, tmp_path: Path) -> None:
    content = run.cycle(0).pseudo_labels.read_text()
    make = odd_json(content) if kind == "values" else odd_bytes(content.encode())
    put(tmp_path / "p.json", data.draw(make))
    refused_or_taken(lambda: PseudoLabels.read(tmp_path / "p.json"))


@pytest.mark.parametrize("kind", ["values", "bytes"])
@fuzz
@given(data=st.data())
def test_pool_record(kind: str, data: st.DataObject, run: RunFolder) -> None:
    record = run.cycle(0).record
    files = sorted(path for path in record.rglob("*") if path.is_file())
    if kind == "values":
        files = [path for path in files if path.suffix == ".json"]
    file = data.draw(st.sampled_from(files))
    good = file.read_bytes()
    make = odd_json(good.decode()) if kind == "values" else odd_bytes(good)

    def look() -> None:
        opened = PoolRecord.open(record)
        assert opened.image_ids is not None

    content = data.draw(make)
    # Another file in its place: the good one may be mapped by an earlier example.
    file.unlink()
    put(file, content)
    try:
        refused_or_taken(look)
    finally:
        file.unlink()
        file.write_bytes(good)


@pytest.mark.parametrize("checksum", [True, False])
@fuzz
@given(data=st.data())
def test_checkpoint(checksum: bool, data: st.DataObject, run: RunFolder, tmp_path: Path) -> None:
    best = run.cycle(0).best
    file = tmp_path / best.name
    put(file, data.draw(odd_bytes(best.read_bytes())))
    if checksum:
        for side in best.parent.glob(f"{best.name}.*"):
            shutil.copy(side, tmp_path)
    refused_or_taken(lambda: load_checkpoint(file, require_checksum=checksum))


@pytest.mark.parametrize("kind", ["values", "bytes"])
@fuzz
@given(data=st.data())
def test_run_folder(kind: str, data: st.DataObject, run: RunFolder) -> None:
    files = sorted(path for path in run.path.rglob("*.json") if path.stat().st_size < 200_000)
    file = data.draw(st.sampled_from(files))
    make = odd_json(file.read_text()) if kind == "values" else odd_bytes(file.read_bytes())
    with Damaged(file, data.draw(make)):
        refused_or_taken(lambda: load_run(run, None, None))
        refused_or_taken(run.finished_best)
