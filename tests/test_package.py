"""The package as `pip install .` gives it: a command that works from any folder, and no tests."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from test_readme import SMALL_PHANTOM

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


def run(*words: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command; returns what it prints."""
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources."""
    copy = tmp_path_factory.mktemp("sources")
    for name in ("pyproject.toml", "README.md", "LICENSE", "requirements.txt"):
        shutil.copy(ROOT / name, copy)
    skip = shutil.ignore_patterns("__pycache__")
    for name in ("med_sslal", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, copy / name, ignore=skip)
    out = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation")
    run(*pip, "-w", out, copy, cwd=copy)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that it is installed into."""
    target = tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", target)
    run(*pip, wheel, cwd=target)
    return target


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    inside = {name for name in names if not name.partition("/")[0].endswith(".dist-info")}
    files = (path for path in (ROOT / "med_sslal").rglob("*") if path.is_file())
    assert inside == {
        path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts
    }
    assert "med_sslal/py.typed" in inside
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_command_works_from_another_folder(installed: Path, tmp_path: Path) -> None:
    command = installed / "bin" / "med-sslal"
    found = run(command, "criteria", cwd=tmp_path, PYTHONPATH=str(installed))
    assert "localization_tightness" in found


def test_training_from_another_folder(installed: Path, tmp_path: Path) -> None:
    """With a metric of the user's, which lies in the folder in which the command is given."""
    (tmp_path / "my_lab.py").write_text(
        "from med_sslal.eval.metric import MetricResult\n\n\n"
        "def count(predictions, annotations, infos, class_names, **options):\n"
        "    return MetricResult({'count': float(len(predictions))}, {}, {})\n"
    )
    small = (*SMALL_PHANTOM, "al_settings.num_cycles=0", 'metrics=["my_lab.count"]')
    keys = [word for value in (*small, 'trainer.monitor="off"') for word in ("--set", value)]
    command = installed / "bin" / "med-sslal"
    words = (command, "train", "-c", ROOT / "config.json", *keys)
    assert "report:" in run(*words, cwd=tmp_path, PYTHONPATH=str(installed))
    (summary,) = (tmp_path / "exp_results").glob("phantom_quickstart/*/summary.json")
    assert json.loads(summary.read_text())["cycles"][0]["test_count"] > 0
