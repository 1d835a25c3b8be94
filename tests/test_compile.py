"""torch.compile of a detector's parts: names stay, results stay, and a missing compiler is told."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_detectors import SmallRCNN
from tiny import make_voc, quick_config, write_config

from med_sslal.base.base_model import BaseModel
from med_sslal.model.compiling import compile_parts
from med_sslal.utils.errors import UserError

ROOT = Path(__file__).parents[1]


def detector() -> SmallRCNN:
    torch.manual_seed(0)
    return SmallRCNN(
        num_classes=2, backbone_name="small", norm="group", fpn_channels=64, box_head_size=32
    )


@pytest.mark.slow
def test_a_compiled_detector_is_the_same_one():
    plain, compiled = detector().eval(), detector().eval()
    compile_parts(compiled)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(compiled.state_dict())
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        expected, found = (model(images).detections[0] for model in (plain, compiled))
    assert len(expected.boxes) > 5
    torch.testing.assert_close(found.embedding, expected.embedding, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.scores[:5], expected.scores[:5], atol=1e-4, rtol=1e-4)


def test_what_is_compiled():
    model = detector()
    assert model.compilable() == (model.backbone, model.rpn.head)


class Bare(BaseModel):
    """A detector of a user that names nothing."""

    def forward(self, images, targets=None, frames=None):
        raise NotImplementedError


def test_a_detector_without_compilable_parts_is_refused():
    with pytest.raises(UserError, match=r"Bare names no part.*set trainer\.compile to false"):
        compile_parts(Bare())


@pytest.mark.slow
def test_no_compiler_is_one_sentence(tmp_path: Path):
    config = quick_config(make_voc(tmp_path / "voc"), tmp_path / "runs")
    config["trainer"]["compile"] = True
    path = write_config(tmp_path / "config.json", config)
    done = subprocess.run(
        [sys.executable, "train.py", "-c", path],
        cwd=ROOT,
        env={**os.environ, "CXX": str(tmp_path / "no-compiler")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "trainer.compile is true, but torch.compile fails on this machine" in last
    assert "install a C++ compiler or set trainer.compile to false" in last
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()
