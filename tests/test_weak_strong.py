"""Weak and strong views of an image: boxes on the way between them, and what a modality allows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import make_voc, quick_config, run_train, write_config
from torch import Tensor

from med_sslal.base.types import Annotation, Frame, ImageInfo
from med_sslal.base.views import draw_holes, into_view, uncovered_area
from med_sslal.cli.build import build_transforms
from med_sslal.cli.registries import registries
from med_sslal.config.parse_config import ConfigParser
from med_sslal.data.transforms import StrongTransform, TrainTransform
from med_sslal.model.transform import to_original

SIDE, CELL = 144, 48
# Which channels are bright: six colours that no change of brightness mixes up.
COLOURS = np.array([(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1)])


def squares(seed: int) -> tuple[np.ndarray, Annotation]:
    """Six squares of 12 to 30 pixels on black, each of its own colour in its own cell."""
    draw = np.random.default_rng(seed)
    image, sides = np.zeros((SIDE, SIDE, 3), dtype=np.float32), draw.integers(12, 31, 6)
    cells = [(CELL * (number % 3), CELL * (number // 3) + CELL // 2) for number in range(6)]
    low = np.array(cells) + draw.integers(5, CELL - 5 - sides[:, None], (6, 2))
    for (left, top), side, colour in zip(low, sides, COLOURS, strict=True):
        image[top : top + side, left : left + side] = 0.7 * colour
    boxes = np.hstack([low, low + sides[:, None]]).astype(np.float32)
    return image, Annotation(boxes, np.arange(1, 7), np.zeros(6, dtype=bool))


def seen_box(image: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """The box around the pixels of a colour, each told by its own brightest channel."""
    peak = image.max(0)
    there = ((image > 0.5 * peak) == (colour == 1)[:, None, None]).all(0) & (
        peak > 0.45 * peak.max()
    )
    rows, columns = (np.flatnonzero(there.any(axis)) for axis in (1, 0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def inside(boxes: Tensor) -> Tensor:
    return ((boxes > 1) & (boxes < SIDE - 1)).all(1)


def test_boxes_of_the_weak_view_are_where_the_squares_are_in_the_strong_one() -> None:
    """To a pixel, in 200 random views, of all squares that neither border nor hole cuts."""
    weak = TrainTransform(SIDE, seed=1, rotation=0, scale=0.2)
    strong = StrongTransform(SIDE, seed=2, translate=0.1)
    compared = turned = mirrored = 0
    for number in range(200):
        info = ImageInfo(f"i{number}", "g", "f", (SIDE, SIDE))
        image, annotation = squares(number)
        _, target, before = weak(image, annotation, info, 0)
        pixels, _, after = strong(image, None, info, 0)
        assert target is not None
        mapped, shown = into_view(to_original(target.boxes, before), after, (SIDE, SIDE))
        whole = uncovered_area(mapped, after.holes) == uncovered_area(mapped, ())
        clear = inside(target.boxes) & inside(mapped) & whole
        assert shown[clear].all()
        for label, box in zip(target.labels[clear], mapped[clear].numpy(), strict=True):
            found = seen_box(pixels.numpy(), COLOURS[label - 1])
            assert np.abs(found - box).max() <= 1, (number, found, box)
        compared += int(clear.sum())
        turned += bool(after.to_original[0, 1].abs() > 0.05)
        mirrored += bool(after.to_original[0, 0] * before.to_original[0, 0] < 0)
    assert compared > 700 and min(turned, mirrored) > 50, (compared, turned, mirrored)


def test_rounded_boxes_of_a_turned_view_are_those_that_its_labels_have() -> None:
    """So that what a teacher finds is as tight as what a person has drawn."""
    strong, turned = StrongTransform(SIDE, seed=2, translate=0.1), 0
    for number in range(60):
        info = ImageInfo(f"i{number}", "g", "f", (SIDE, SIDE))
        image, annotation = squares(number)
        _, target, frame = strong(image, annotation, info, 0)
        assert target is not None
        boxes = torch.from_numpy(annotation.boxes)
        mapped, _ = into_view(boxes, frame, (SIDE, SIDE), rounded=True)
        there = torch.isin(torch.from_numpy(annotation.labels), target.labels)
        torch.testing.assert_close(mapped[there], target.boxes, atol=1e-3, rtol=0)
        turned += bool(frame.to_original[0, 1].abs() > 0.05)
    assert turned > 15


def test_what_is_hidden_is_what_is_not_seen() -> None:
    """Counted pixel by pixel, over random holes that overlap and random boxes."""
    draw, hidden = np.random.default_rng(0), 0
    for _ in range(20):
        holes = draw_holes(draw, 6, (40, 60), (0.1, 0.5))
        shown = torch.ones(40, 60)
        for left, top, right, bottom in holes:
            shown[top:bottom, left:right] = 0
        low = draw.integers(0, 30, (50, 2))
        boxes = torch.from_numpy(np.hstack([low, low + draw.integers(2, 11, (50, 2))])).float()
        counted = torch.tensor([shown[y1:y2, x1:x2].sum() for x1, y1, x2, y2 in boxes.int()])
        assert torch.equal(uncovered_area(boxes, holes), counted)
        frame = Frame(ImageInfo("a", "a", "a", (40, 60)), torch.eye(3)[:2], holes=tuple(holes))
        mapped, seen = into_view(boxes, frame, (40, 60))
        assert torch.equal(mapped, boxes)
        # No area is 30 % of a whole number of pixels that rounding could turn.
        share = counted.double() / (boxes[:, 2:] - boxes[:, :2]).prod(1).double()
        clear = (share - 0.3).abs() > 1e-6
        assert torch.equal(seen[clear], (share > 0.3)[clear])
        hidden += int((~seen).sum())
    assert 100 < hidden < 900


def test_the_cut_outs_of_a_view_stand_in_its_frame() -> None:
    transform = StrongTransform(64, seed=0, blur=0, noise=0, brightness=0, contrast=0, gamma=0,
                                translate=0, rotation=0, scale=0)  # fmt: skip
    image, fired = np.ones((64, 64, 3), dtype=np.float32), 0
    for number in range(40):
        pixels, _, frame = transform(image, None, ImageInfo(f"{number}", "g", "f", (64, 64)), 0)
        whole = torch.tensor([[0.0, 0, 64, 64]])
        assert uncovered_area(whole, frame.holes) == pixels[0].sum()
        fired += bool(frame.holes)
    assert 10 < fired < 30 and image.all(), "the picture itself stays as it is"


def config_of(folder: Path, **sections: Any) -> dict[str, Any]:
    return quick_config(folder / "voc", folder / "runs") | sections


def test_weak_and_strong_view_draw_by_themselves(tmp_path: Path) -> None:
    """Of the same class, and each the same again."""
    sections = {"pseudo_augmentation": {"type": "TrainTransform", "args": {"rotation": 0}}}
    made = [
        build_transforms(ConfigParser(config_of(tmp_path, **sections), registries())) for _ in "12"
    ]
    image = np.random.default_rng(0).random((64, 64, 3), dtype=np.float32)
    same = 0
    for number in range(60):
        info = ImageInfo(f"{number}", "g", "f", (64, 64))
        first, second = ([each(image, None, info, 3) for each in (t.train, t.pseudo)] for t in made)
        for one, again in zip(first, second, strict=True):
            assert torch.equal(one[0], again[0])
        mirrors = [bool(view[2].to_original[0, 0] < 0) for view in first]
        same += mirrors[0] == mirrors[1]
    assert 15 < same < 45


def hues(transform: TrainTransform) -> float:
    """How far the order of an orange picture's channels goes: 1 where its colour stays."""
    image = np.empty((32, 32, 3), dtype=np.float32)
    image[:] = (0.8, 0.4, 0.2)
    ratios = []
    for number in range(30):
        pixels, _, _ = transform(image, None, ImageInfo(f"{number}", "g", "f", (32, 32)), 0)
        red, green, blue = pixels.mean((1, 2)).tolist()
        ratios.append((green - blue) / (red - blue))
    return float(np.std(ratios))


STILL: dict[str, Any] = {
    "rotation": 0, "scale": 0, "translate": 0, "gamma": 0, "noise": 0, "brightness": 0,
    "contrast": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("cls", "args", "turns"),
    [
        (StrongTransform, {"modality": "photo"}, True),
        (StrongTransform, {"modality": "photo", "hue": 0.0}, False),
        (StrongTransform, {"modality": "mri"}, False),
        (TrainTransform, {"modality": "photo"}, False),
        (TrainTransform, {"modality": "photo", "hue": 0.1}, True),
    ],
)
def test_only_photos_change_their_hue(
    cls: type[TrainTransform], args: dict[str, Any], turns: bool
) -> None:
    spread = hues(cls(32, seed=0, **STILL, **args))
    assert spread > 0.02 if turns else spread < 1e-3


@pytest.mark.parametrize("modality", ["ct", "mri", "xray"])
def test_a_colour_that_the_modality_has_not_is_refused(
    modality: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_voc(tmp_path / "voc", 1)
    for section in ("augmentation", "pseudo_augmentation"):
        own = {section: {"args": {"modality": modality, "saturation": 0.2}}}
        path = write_config(tmp_path / "config.json", config_of(tmp_path, **own))
        assert run_train("-c", path) == 2
        (line,) = capsys.readouterr().err.splitlines()
        wanted = f'{section}.args.saturation: found 0.2, but modality is "{modality}" and only'
        assert f" {wanted}" in line
        assert not (tmp_path / "runs").exists()
