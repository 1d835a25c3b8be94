"""`med-sslal preview`: a sheet of training images in their views."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import files_of, make_voc, quick_config, write_config

from med_sslal.__main__ import main

GREEN = np.array([0x2C, 0xD5, 0xA5])


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preview")
    settings = quick_config(make_voc(folder / "voc"), folder / "runs")
    # Nothing that hides a box, or moves it out.
    settings["pseudo_augmentation"] = {"args": {"cutout": 0, "translate": 0}}
    return write_config(folder / "config.json", settings)


def preview(config: Path, *words: str | Path) -> int:
    return main(["preview", "-c", str(config), *map(str, words)])


def test_a_row_for_each_image_with_its_box_in_every_view(config: Path, tmp_path: Path) -> None:
    for name, number in (("one", 1), ("three", 3), ("again", 3)):
        assert preview(config, "--images", str(number), "--out", tmp_path / f"{name}.png") == 0
    assert files_of(tmp_path) == {"one.png", "three.png", "again.png"}
    assert not (config.parent / "runs").exists()
    one, three = (np.asarray(Image.open(tmp_path / f"{n}.png")) for n in ("one", "three"))
    row = (len(three) - len(one)) // 2
    assert row > 390
    assert (tmp_path / "three.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    green = (three == GREEN).all(2)
    for top in range(60, 60 + 3 * row, row):
        for left in range(16, 16 + 4 * 406, 406):
            assert green[top : top + 390, left : left + 390].sum() > 100


def test_other_values_make_other_views(config: Path, tmp_path: Path) -> None:
    still = ("mirror=false", "rotation=0", "scale=0", "brightness=0", "contrast=0", "gamma=0")
    words = [f"pseudo_augmentation.args.{each}" for each in (*still, "blur=0", "noise=0")]
    sets = [word for each in words for word in ("--set", each)]
    out = tmp_path / "still.png"
    assert preview(config, "--images", "1", "--out", out, *sets) == 0
    sheet = np.asarray(Image.open(out))[60:450]
    first, _, strong, later = (sheet[:, left : left + 390] for left in range(16, 1640, 406))
    assert (strong == first).all() and (later == first).all()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--out", "sheet.jpg"], "--out sheet.jpg must end in .png"),
        (["--out", "nowhere/sheet.png"], "there is no folder nowhere; make it first"),
        (["--set", "pseudo_augmentation.args.hue=0.1"], "pseudo_augmentation.args.hue: found 0.1"),
        (["--set", "dataset.args.root=nowhere"], "nowhere"),
    ],
)
def test_what_is_refused(
    words: list[str],
    told: str,
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert preview(config, *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line and not files_of(tmp_path)


def test_no_image_is_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        preview(config, "--images", "0")
    assert "--images: found 0; allowed: integer, 1 or more" in capsys.readouterr().err
