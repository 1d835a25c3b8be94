"""A CT in DICOM goes out to a person with what lies beside it, and diameters come back as boxes."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from practice_runs import answer, human_config, newest_query
from test_dicom import PLANTED, write_dicom
from tiny import files_of, run_train, write_config

from med_sslal.__main__ import main
from med_sslal.base.types import Annotation
from med_sslal.practice.journal import read_journal
from med_sslal.practice.query_folder import QueryFolder
from med_sslal.trainer.run_folder import RunFolder
from tests.annotator import answer_deeplesion

pytestmark = pytest.mark.slow

N_PATIENTS, N_SLICES, N_LABELLED = 7, 3, 4
BOX = (20, 16, 40, 36)


def make_ct(root: Path) -> None:
    """Series of three slices of 64 pixels with a bright square; labels of the first patients."""
    entries: list[dict[str, Any]] = []
    for patient in range(1, N_PATIENTS + 1):
        for number in range(1, N_SLICES + 1):
            values = np.random.default_rng(100 * patient + number).integers(-100, 0, (64, 64))
            values[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 150
            name = f"Mustermann_{patient}/{number}"
            hu = {"RescaleSlope": "1", "RescaleIntercept": "-1024"}
            stored = (values + 1024).astype(np.int16)
            write_dicom(root / name, stored, series=patient, number=number, **hu)
            if patient <= N_LABELLED:
                image = {"id": len(entries) + 1, "file_name": name, "width": 64, "height": 64}
                entries.append(image)
    sides = [BOX[0], BOX[1], BOX[2] - BOX[0], BOX[3] - BOX[1]]
    boxes = [{"id": e["id"], "image_id": e["id"], "category_id": 1, "bbox": sides} for e in entries]
    document = {"images": entries, "annotations": boxes, "categories": [{"id": 1, "name": "node"}]}
    (root / "labels.json").write_text(json.dumps(document))


def test_a_ct_goes_out_and_diameters_come_back(tmp_path: Path) -> None:
    make_ct(tmp_path / "ct")
    beside = {"windows": [[-175, 275], [-1500, 500]], "neighbours": 1, "box_padding_px": 5}
    config = human_config(tmp_path / "ct", tmp_path / "runs", **beside)
    more = {"window": [-1024, 1024], "dicom_key": str(tmp_path / "key"), "eval_split": 0.5}
    config["dataset"]["args"] |= more
    config["arch"]["args"]["num_classes"] = 2
    config["al_settings"]["num_cycles"] = 1
    assert run_train("-c", write_config(tmp_path / "c.json", config), "--run-id", "x") == 0
    folder, query = newest_query(tmp_path / "runs" / "tiny" / "x")
    assert query.box_padding_px == 5
    for image in query.images:
        copy, *others = QueryFolder(folder).pictures(image)
        grey = {path.stem: int(cv2.imread(str(path))[20, 30, 0]) for path in (copy, *others)}
        # 150 HU in the copy's window, in soft tissue and in lung.
        assert grey.pop(copy.stem) == round((150 + 1024) / 2048 * 255)
        assert grey["window_-175_275"] == round((150 + 175) / 450 * 255)
        assert grey["window_-1500_500"] == round(1650 / 2000 * 255)
        number = int(image.image_id.split("/")[1].split("_")[0])
        sides = {side for side, n in (("before", number - 1), ("after", number + 1)) if 1 <= n <= 3}
        assert {f"slice_{side}_1" for side in sides} == grey.keys() - {
            "window_-175_275",
            "window_-1500_500",
        }
    for name in files_of(folder):
        content = (folder / name).read_bytes()
        assert not [text for text in PLANTED if text.encode() in content or text in name], name

    found = Annotation(np.array([BOX], np.float32), np.array([1]), np.array([False]))
    table = answer_deeplesion(query, [answer(i.image_id, found) for i in query.images])
    (tmp_path / "back.csv").write_text(table)
    assert main(["import", str(folder), str(tmp_path / "back.csv")]) == 0
    run = RunFolder(tmp_path / "runs" / "tiny" / "x")
    for given in read_journal(run.answers, query.class_names).standing().values():
        assert given.boxes.tolist() == [[BOX[0] - 5, BOX[1] - 5, BOX[2] + 5, BOX[3] + 5]]
    assert run_train("--resume", run.path) == 0
    assert run.finished
    labelled = json.loads(run.cycle(1).pool.read_text())["labelled"]
    assert labelled[-len(query.images) :] == [image.image_id for image in query.images]
