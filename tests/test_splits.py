"""Splits by group, the check of image files and the policy for bad ones."""

import logging
import random
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from med_sslal.base.types import ImageInfo
from med_sslal.data.bad_samples import BadSamples
from med_sslal.data.probe import ImageProbe, probe_image
from med_sslal.data.splits import split_by_group
from med_sslal.utils.errors import ConfigError, DataError


def make_infos(n_groups: int, images_per_group: int = 3) -> dict[str, ImageInfo]:
    names = [(f"p{g}", f"p{g}_{i}") for g in range(n_groups) for i in range(images_per_group)]
    return {image: ImageInfo(image, group, f"{image}.png", (8, 8)) for group, image in names}


@pytest.mark.parametrize(
    ("n_groups", "eval_split", "expected"),
    [
        pytest.param(10, 0.2, (8, 1, 1), id="a fifth"),
        pytest.param(100, 0.3, (70, 15, 15), id="a third"),
        pytest.param(3, 0.01, (1, 1, 1), id="one each at least"),
        pytest.param(50, 0.5, (25, 12, 13), id="odd half"),
    ],
)
def test_share_of_groups(n_groups, eval_split, expected):
    infos = make_infos(n_groups)
    splits = split_by_group(infos, eval_split, 0)
    groups = [{infos[i].group_id for i in splits[name]} for name in ("train", "val", "test")]
    assert tuple(len(g) for g in groups) == expected
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    assert sorted(sum(splits.values(), ())) == sorted(infos)


def test_split_ignores_order_and_follows_seed():
    infos = make_infos(40)
    items = list(infos.items())
    random.Random(1).shuffle(items)
    assert split_by_group(dict(items), 0.2, 5) == split_by_group(infos, 0.2, 5)
    assert split_by_group(infos, 0.2, 6) != split_by_group(infos, 0.2, 5)


def test_split_counts_are_logged(caplog):
    with caplog.at_level(logging.INFO):
        split_by_group(make_infos(10), 0.2, 0)
    assert "train: 24 image(s) of 8 group(s)" in caplog.text


@pytest.mark.parametrize(
    ("n_groups", "eval_split", "error", "words"),
    [
        pytest.param(4, 0.99, ConfigError, "holds out all 4", id="nothing left"),
        pytest.param(2, 0.2, DataError, "2 group", id="two groups"),
        pytest.param(0, 0.2, DataError, "0 group", id="no image"),
    ],
)
def test_impossible_splits(n_groups, eval_split, error, words):
    with pytest.raises(error, match=words):
        split_by_group(make_infos(n_groups), eval_split, 0)


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "expected"),
    [
        pytest.param("a.png", (5, 7), np.uint16, ImageProbe(7, 5, 16, 1), id="png 16 bit grey"),
        pytest.param("a.png", (5, 7, 3), np.uint8, ImageProbe(7, 5, 8, 3), id="png colour"),
        pytest.param("a.png", (5, 7, 4), np.uint8, ImageProbe(7, 5, 8, 4), id="png alpha"),
        pytest.param("a.jpg", (50, 70, 3), np.uint8, ImageProbe(70, 50, 8, 3), id="jpeg colour"),
        pytest.param("a.jpg", (50, 70), np.uint8, ImageProbe(70, 50, 8, 1), id="jpeg grey"),
        pytest.param("a.tif", (5, 7), np.uint16, ImageProbe(7, 5, 16, 1), id="tiff 16 bit grey"),
        pytest.param("a.tiff", (50, 70, 3), np.uint8, ImageProbe(70, 50, 8, 3), id="tiff colour"),
        pytest.param(
            "a.png", (5, 7, 3), np.uint16, ImageProbe(7, 5, 16, 3), id="png 16 bit colour"
        ),
    ],
)
def test_probe_reads_headers(tmp_path: Path, name, shape, dtype, expected):
    pixels = np.random.default_rng(0).integers(0, 255, shape).astype(dtype)
    cv2.imwrite(str(tmp_path / name), pixels)
    assert probe_image(tmp_path / name) == expected
    with (tmp_path / name).open("ab") as stream:
        stream.write(b"\0" * 20)
    assert probe_image(tmp_path / name) == expected


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_probe_finds_every_truncation(tmp_path: Path, suffix):
    whole = tmp_path / f"whole{suffix}"
    cv2.imwrite(str(whole), np.random.default_rng(0).integers(0, 255, (40, 40), np.uint8))
    content = whole.read_bytes()
    part = tmp_path / f"part{suffix}"
    for length in [*range(0, 40), len(content) // 2, len(content) - 4, len(content) - 1]:
        part.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"part.* (empty|truncated)"):
            probe_image(part)


def test_probe_is_not_fooled_by_an_embedded_preview(tmp_path: Path):
    """A truncated photograph whose preview (in an APP1 segment) is whole."""
    whole = tmp_path / "whole.jpg"
    cv2.imwrite(str(whole), np.random.default_rng(0).integers(0, 255, (40, 40), np.uint8))
    content = whole.read_bytes()
    segment = b"\xff\xe1" + (2 + len(content)).to_bytes(2, "big") + content
    part = tmp_path / "part.jpg"
    part.write_bytes(content[:2] + segment + content[2:])
    assert probe_image(part).width == 40
    part.write_bytes(content[:2] + segment + content[2:-20])
    with pytest.raises(DataError, match="truncated"):
        probe_image(part)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(b"<html>not found</html>", "neither PNG, JPEG nor TIFF", id="web page"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + bytes(40), "damaged, or neither", id="png of zeros"),
        pytest.param(b"\xff\xd8" + bytes(40), "damaged, or neither", id="jpeg of zeros"),
    ],
)
def test_probe_refuses_other_files(tmp_path: Path, content, words):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=words):
        probe_image(tmp_path / "a.png")


def test_probe_of_large_pictures(tmp_path: Path):
    """One bit a pixel; the size is what counts."""
    for side, name in ((9500, "large.tif"), (13400, "huge.png"), (13400, "huge.tif")):
        Image.new("1", (side, side)).save(tmp_path / name)
    assert probe_image(tmp_path / "large.tif").width == 9500
    for name in ("huge.png", "huge.tif"):
        with pytest.raises(DataError, match="has more than 178 million pixels"):
            probe_image(tmp_path / name)


def test_probe_names_missing_files_and_folders(tmp_path: Path):
    with pytest.raises(DataError, match=r"none\.png is missing"):
        probe_image(tmp_path / "none.png")
    with pytest.raises(DataError, match="cannot be read"):
        probe_image(tmp_path)


def test_bad_samples_error_lists_all():
    bad = BadSamples("error", "some/data")
    bad.finish()
    for i in range(23):
        bad.add(f"file {i} is bad")
    with pytest.raises(DataError) as caught:
        bad.finish()
    text = str(caught.value)
    assert "some/data: 23 bad sample(s)" in text and "on_bad_sample" in text
    assert "file 19 is bad" in text and "file 20" not in text and "3 more" in text


def test_bad_samples_skip_logs_and_counts(caplog):
    bad = BadSamples("skip", "some/data")
    bad.add("first is bad")
    bad.add("second is bad")
    bad.finish()
    assert "first is bad" in caplog.text and "second is bad" in caplog.text
    assert "2 bad sample(s) skipped" in caplog.text
