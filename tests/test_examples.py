"""The programs of examples/, as their first lines say."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from practice_runs import human_config, make_folder, newest_query
from tiny import make_voc, run_train, write_config

from med_sslal.data.coco import save_coco
from med_sslal.data.voc import PascalVOC
from med_sslal.practice.journal import read_journal
from med_sslal.trainer.run_folder import RunFolder
from med_sslal.utils.util import read_json

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


def run(*words: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    """What a program prints that is given an empty line."""
    python = Path(sys.executable).parent
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env={**os.environ, "PATH": f"{python}:{os.environ['PATH']}", **environment},
        input="\n",
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_reader_of_a_set_whose_labels_are_hidden(tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(make_voc(tmp_path / "voc", 36, classes=3) / "JPEGImages", data / "images")
    known = PascalVOC(str(tmp_path / "voc"), eval_split=0.5)
    save_coco(data / "train.json", known.images, known.labels, folder="JPEGImages")
    content = read_json(data / "train.json")
    for number, entry in enumerate(content["images"]):
        entry["series"] = f"series{number // 6}"
    (data / "train.json").write_text(json.dumps(content))
    out = tmp_path / "out"
    module = (sys.executable, "-m", "examples.read_brain_mri")
    told = run(*module, "--data", data, "--out", out, "--small")
    counts = [line.split()[1:3] for line in told.splitlines()[-4:]]
    assert counts == [["6", "18"], ["8", "24"], ["10", "30"], ["12", "36"]]
    folder = RunFolder(out / "runs" / "brain_mri" / "reader")
    journal = read_journal(folder.answers, known.labels.class_names)
    assert len(journal.imports) == 3 and len(journal.standing()) == 6
    for image_id, answer in journal.standing().items():
        truth = known.labels.annotations[image_id.rpartition("/")[2]]
        np.testing.assert_allclose(answer.boxes, truth.boxes, atol=0.01)
        assert (answer.labels == truth.labels).all()


def test_a_query_goes_through_a_label_studio_of_its_own(tmp_path: Path) -> None:
    if "MED_SSLAL_LABEL_STUDIO" not in os.environ:
        pytest.skip("MED_SSLAL_LABEL_STUDIO does not name the program label-studio")
    shutil.copy(ROOT / "train.py", tmp_path)
    config = human_config(make_folder(tmp_path / "voc"), tmp_path / "runs")
    assert run_train("-c", write_config(tmp_path / "c.json", config), "--run-id", "h") == 0
    place = tmp_path / "runs" / "tiny" / "h"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    script = ROOT / "examples" / "label_studio.sh"
    told = run("bash", script, place, cwd=tmp_path, PORT=port, PYTHONPATH=str(ROOT))
    assert f"3 images are in http://localhost:{port}/projects/" in told
    assert "3 more must be answered" in told
    tasks = read_json(tmp_path / "label_studio" / "answers.json")
    images = newest_query(place)[1].images
    assert [task["data"]["sha256"] for task in tasks] == [image.sha256 for image in images]
