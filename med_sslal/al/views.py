"""Views: what the scoring pass shows the detector beside each image as it is.

A view of the image is a full pass over a changed picture, whose detections come back in ORIGINAL
pixels of the unchanged file: `flip`, `noise_1`, `noise_2`, ..., `cutout`, `downsize` and `rotate`.
A view of the heads, `dropout_1`, `dropout_2`, ..., is a pass of the second stage alone, with
dropout, over the backbone pass and the proposals of the plain detections.

Each view is a fixed function of the picture, the image's id and its own number; batch mates, order
and random states do not enter. The picture is the valid part of the model's image (H x W), which
starts in the upper left corner; a view leaves it there, so the padding stays right and below.

They are those of Kao et al. (ACCV 2018: noise) and of CALD (Yu et al. 2021: flip, cutout, downsize,
rotate).
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from med_sslal.al.record import HEAD_VIEW_PREFIX, PLAIN
from med_sslal.base.types import Frame
from med_sslal.base.views import draw_holes
from med_sslal.model.transform import valid_size
from med_sslal.utils.errors import ConfigError
from med_sslal.utils.names import unknown
from med_sslal.utils.util import numpy_generator

NOISE_SIGMA = 0.05
"""Standard deviation of `noise` in units of the windowed input [0, 1]: 20 HU of a 400 HU window."""
DOWNSIZE_FACTOR = 0.8
ROTATE_DEGREES = 5.0
CUTOUT_HOLES = 2
CUTOUT_SIDE = (0.1, 0.2)
"""Shortest and longest side of a hole, as a share of the picture's side."""


class Changed(NamedTuple):
    """A changed picture."""

    picture: Tensor  # float32 [3, h, w] in [0, 1], not larger than the given one.
    to_given: Tensor  # [2, 3], maps (x, y, 1) of the changed picture to pixels of the given one.


def flip(picture: Tensor, image_id: str, number: int) -> Changed:
    """Left and right swapped."""
    return Changed(picture.flip(-1), torch.tensor([[-1.0, 0, picture.shape[-1]], [0, 1, 0]]))


def noise(picture: Tensor, image_id: str, number: int) -> Changed:
    """Gaussian noise, a draw of its own for each number, channel and pixel."""
    draw = numpy_generator("noise", image_id, number).standard_normal(
        tuple(picture.shape), dtype="float32"
    )
    added = torch.from_numpy(draw).to(picture.device) * NOISE_SIGMA
    return Changed((picture + added).clamp(0, 1), torch.eye(2, 3))


def cutout(picture: Tensor, image_id: str, number: int) -> Changed:
    """Black rectangles at random places; they may overlap."""
    draw, size = numpy_generator("cutout", image_id), (picture.shape[-2], picture.shape[-1])
    picture = picture.clone()
    for left, top, right, bottom in draw_holes(draw, CUTOUT_HOLES, size, CUTOUT_SIDE):
        picture[:, top:bottom, left:right] = 0
    return Changed(picture, torch.eye(2, 3))


def downsize(picture: Tensor, image_id: str, number: int) -> Changed:
    """Resized to DOWNSIZE_FACTOR of its sides (rounded, so the two axes may differ a little)."""
    height, width = picture.shape[-2:]
    rows, columns = (max(1, round(DOWNSIZE_FACTOR * side)) for side in (height, width))
    small = F.interpolate(picture[None], (rows, columns), mode="bilinear", antialias=True)[0]
    to_given = torch.tensor([[width / columns, 0, 0], [0, height / rows, 0]])
    return Changed(small.clamp(0, 1), to_given)


def rotate(picture: Tensor, image_id: str, number: int) -> Changed:
    """Turned by ROTATE_DEGREES about its centre; blank (black) where nothing turns in.

    Boxes come back with their centres turned and their width and height as they are: the
    detector's box encloses the turned object already, and the enclosing box of the box turned back
    would inflate it a second time (`model.transform.to_original`).
    """
    height, width = picture.shape[-2:]
    angle = math.radians(ROTATE_DEGREES)
    cos, sin = math.cos(angle), math.sin(angle)
    # grid_sample's coordinates run from -1 to 1 along each axis, whatever its length.
    theta = torch.tensor([[cos, -sin * height / width, 0], [sin * width / height, cos, 0]])
    # Made on the CPU: a GPU may multiply in TF32, which shifts the grid by parts of a pixel.
    grid = F.affine_grid(theta[None], [1, *picture.shape], align_corners=False)
    turned = F.grid_sample(picture[None], grid.to(picture.device), align_corners=False)[0]
    x, y = width / 2, height / 2
    to_given = torch.tensor([[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y]])
    return Changed(turned.clamp(0, 1), to_given)


Change = Callable[[Tensor, str, int], Changed]
FULL_VIEWS: Mapping[str, Change] = {
    change.__name__: change for change in (flip, noise, cutout, downsize, rotate)
}
_HEAD = HEAD_VIEW_PREFIX.removesuffix("_")
_NUMBERED = ("noise", _HEAD)
_NUMBERED_NAME = re.compile(rf"({'|'.join(_NUMBERED)})_([1-9]\d{{0,5}})")


class View(NamedTuple):
    """A view's name (`flip`, `noise_2`, `dropout_1`), its kind, and its number or 0."""

    name: str
    kind: str
    number: int

    @property
    def is_full(self) -> bool:
        """Whether it is a view of the image, and no view of the heads."""
        return self.kind in FULL_VIEWS


def parse_views(names: Iterable[str]) -> tuple[View, ...]:
    """Take names of views apart, without `plain` and repetitions; ConfigError for others."""
    views = []
    for name in dict.fromkeys(names):
        numbered = _NUMBERED_NAME.fullmatch(name)
        if numbered:
            views.append(View(name, numbered[1], int(numbered[2])))
        elif name in FULL_VIEWS and name not in _NUMBERED:
            views.append(View(name, name, 0))
        elif name != PLAIN:
            allowed = [f"{kind}_1" if kind in _NUMBERED else kind for kind in (*FULL_VIEWS, _HEAD)]
            raise ConfigError(f"{unknown('view', name, allowed)} (numbers go on from 1)")
    return tuple(views)


def change(view: View, images: Tensor, frames: Sequence[Frame]) -> tuple[Tensor, tuple[Frame, ...]]:
    """Show a batch, float32 [B, 3, H, W] in [0, 1] on any device, in a view of the image.

    Returns:
        The changed images, [B, 3, H, W] with zeros right of and below the pictures, and the frames
        that map what is found there to ORIGINAL pixels of the unchanged files.
    """
    shape = (images.shape[-2], images.shape[-1])
    canvas, moved = torch.zeros_like(images), []
    for row, frame in enumerate(frames):
        # A letterboxed picture covers whole pixels.
        height, width = (max(1, round(side)) for side in valid_size(frame, shape))
        picture = images[row, :, :height, :width]
        changed = FULL_VIEWS[view.kind](picture, frame.info.image_id, view.number)
        rows, columns = changed.picture.shape[-2:]
        canvas[row, :, :rows, :columns] = changed.picture
        moved.append(
            replace(
                frame,
                to_original=_compose(frame.to_original, changed.to_given),
                valid_size=(float(rows), float(columns)),
            )
        )
    return canvas, tuple(moved)


def _compose(outer: Tensor, inner: Tensor) -> Tensor:
    """The affine [2, 3] that applies `inner` first, computed in double precision."""
    outer, inner = outer.double(), inner.double()
    turn, shift = outer[:, :2] @ inner[:, :2], outer[:, :2] @ inner[:, 2:] + outer[:, 2:]
    return torch.cat([turn, shift], 1).float()
