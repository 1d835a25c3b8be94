"""Decoding, Hounsfield units, neighbours and the cache of decoded slices."""

import math
import multiprocessing
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from med_sslal.data.slices import SliceCache, Stack, decode_slice, neighbour_positions, read_stack
from med_sslal.utils.errors import DataError

NAN = math.nan


def write_hu(path: Path, hu: np.ndarray | float, shape: tuple[int, int] = (6, 8)) -> Path:
    pixels = np.broadcast_to(np.asarray(hu) + 32768, shape if np.isscalar(hu) else hu.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels.astype(np.uint16))
    return path


@pytest.mark.parametrize(
    ("mode", "spacing", "present", "expected"),
    [
        pytest.param("interpolate", 5.0, range(1, 99), (9.6, 10, 10.4), id="thick slices"),
        pytest.param("interpolate", 1.0, range(1, 99), (8, 10, 12), id="1 mm"),
        pytest.param("interpolate", 1.5, range(1, 99), (8.666667, 10, 11.333333), id="1.5 mm"),
        pytest.param("interpolate", 0.4, range(1, 99), (5, 10, 15), id="thin, no rounding noise"),
        pytest.param("interpolate", NAN, range(1, 99), (9, 10, 11), id="unknown spacing"),
        pytest.param("interpolate", 0.0, range(1, 99), (9, 10, 11), id="zero spacing"),
        pytest.param("raw", 5.0, range(1, 99), (9, 10, 11), id="raw"),
        pytest.param("repeat", 5.0, range(1, 99), (10, 10, 10), id="repeat"),
        pytest.param("interpolate", 1.0, (9, 10, 11, 12), (9, 10, 12), id="step back below"),
        pytest.param("interpolate", 1.5, (8, 9, 10, 11), (8.666667, 10, 11), id="step back above"),
        pytest.param("interpolate", 1.0, (8, 10, 12), (10, 10, 10), id="another run of slices"),
        pytest.param("raw", 1.0, (10,), (10, 10, 10), id="alone"),
    ],
)
def test_neighbour_positions(mode, spacing, present, expected):
    found = neighbour_positions(10, set(present), mode, spacing, 2.0)
    assert found == pytest.approx(expected, abs=1e-6)


def test_neighbours_never_wrap_below_the_first_slice():
    assert neighbour_positions(1, {1, 2, 3, 99}, "interpolate", 1.0, 2.0) == (1, 1, 3)


def test_stack_is_hu_in_the_window(tmp_path: Path):
    files = {
        index: write_hu(tmp_path / f"{index}.png", hu)
        for index, hu in ((1, -1000.0), (2, -2000.0), (3, 4000.0), (4, 0.0))
    }
    image = read_stack(Stack((1.25, 2, 3), files), (-1024, 3071))
    assert image.shape == (6, 8, 3) and image.dtype == np.float32
    # A quarter of the way from -1000 to -2000 HU; then below the window; then above it.
    assert image[0, 0].tolist() == [0.0, 0.0, 1.0]
    image = read_stack(Stack((1.25, 3.5, 4), files), (-3072, 1024))
    expected = [(-1250 + 3072) / 4096, 1.0, 0.75]
    assert image[5, 7] == pytest.approx(expected, abs=1e-6)


def test_values_survive_decoding(tmp_path: Path):
    hu = np.arange(-1024, -1024 + 4096).reshape(64, 64)
    path = write_hu(tmp_path / "a.png", hu)
    assert (decode_slice(path).astype(int) - 32768 == hu).all()
    image = read_stack(Stack((1, 1, 1), {1: path}), (-1024, 3071))
    assert image[..., 1] == pytest.approx((hu + 1024) / 4095, abs=1e-6)


@pytest.mark.parametrize("damage", ["missing", "8 bit", "colour", "truncated", "bit flip"])
def test_decode_refuses(tmp_path: Path, damage):
    path = tmp_path / "slice.png"
    pixels = np.random.default_rng(0).integers(0, 60000, (40, 40)).astype(np.uint16)
    if damage == "8 bit":
        cv2.imwrite(str(path), (pixels >> 8).astype(np.uint8))
    elif damage == "colour":
        cv2.imwrite(str(path), np.dstack([pixels] * 3))
    elif damage != "missing":
        cv2.imwrite(str(path), pixels)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content[:-200] if damage == "truncated" else content)
    with pytest.raises(DataError, match=r"slice\.png"):
        decode_slice(path)


def test_slices_of_different_size_are_named(tmp_path: Path):
    files = {
        1: write_hu(tmp_path / "1.png", 0.0),
        2: write_hu(tmp_path / "2.png", np.zeros((4, 4))),
    }
    with pytest.raises(DataError, match="differ in size"):
        read_stack(Stack((1, 1, 2), files), (-1024, 3071))


def test_cache_gives_the_same_arrays_without_the_png(tmp_path: Path):
    path = write_hu(tmp_path / "a.png", np.arange(64).reshape(8, 8))
    cache = SliceCache(tmp_path / "cache" / "slices")
    first, plain = cache.read(path), decode_slice(path)
    # From here on a decoding would fail: what comes now is from the cache.
    state = path.stat()
    path.write_bytes(b"x" * state.st_size)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    again = SliceCache(tmp_path / "cache" / "slices").read(path)
    assert isinstance(again, np.memmap) and again.dtype == np.uint16
    assert (first == plain).all() and (again == plain).all()


def test_cache_follows_a_changed_source(tmp_path: Path):
    cache = SliceCache(tmp_path / "cache")
    path = write_hu(tmp_path / "a.png", 10.0)
    assert (cache.read(path) == 32778).all()
    os.utime(write_hu(path, 20.0), ns=(1, 1))
    assert (cache.read(path) == 32788).all()


def test_damaged_cache_file_is_made_again(tmp_path: Path, caplog):
    cache = SliceCache(tmp_path / "cache")
    path = write_hu(tmp_path / "a.png", 10.0)
    cache.read(path)
    (stored,) = (tmp_path / "cache").rglob("*.npy")
    for content in (b"", stored.read_bytes()[:-8], b"rubbish"):
        stored.write_bytes(content)
        caplog.clear()
        assert (cache.read(path) == 32778).all()
        assert "made again" in caplog.text
    assert isinstance(cache.read(path), np.memmap)


def _read_all(arguments: tuple[Path, list[Path]]) -> int:
    folder, paths = arguments
    return sum(int(SliceCache(folder).read(path)[0, 0]) for path in paths)


def test_cache_is_shared_by_processes(tmp_path: Path):
    paths = [write_hu(tmp_path / f"{i}.png", float(i)) for i in range(20)]
    cache = tmp_path / "cache"
    with multiprocessing.get_context("fork").Pool(2) as pool:
        sums = pool.map(_read_all, [(cache, paths)] * 4, chunksize=1)
    assert sums == [sum(32768 + i for i in range(20))] * 4
    assert len(list(cache.rglob("*.npy"))) == 20
    assert not [p for p in cache.rglob("*") if p.is_file() and p.suffix != ".npy"]


def test_cache_folder_must_not_be_a_file(tmp_path: Path):
    (tmp_path / "cache").write_text("x")
    with pytest.raises(DataError, match="cache_dir"):
        SliceCache(tmp_path / "cache")
    cache = SliceCache(tmp_path / "other")
    (tmp_path / "other").write_text("x")
    with pytest.raises(DataError, match=r"another dataset\.args\.cache_dir"):
        cache.read(write_hu(tmp_path / "a.png", 0.0))
