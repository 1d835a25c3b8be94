"""Between the caller's images and the network's batch, and back to ORIGINAL pixels.

Two frames: ORIGINAL pixels of the file, and pixels of the image that the model is given, which is
the network's frame too: a batch is padded at the right and bottom, and nothing is resized.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList

from med_sslal.base.types import Frame
from med_sslal.utils.errors import DataError

# Interpolation in fp32 may overshoot by rounding.
_RANGE_SLACK = 1e-3
# Of an affine, in pixels.
_ROUNDING = 1e-3


class DetectionTransform(nn.Module):
    """Normalises, pads and stacks images as torchvision's transform does, and checks them.

    The sides of a batch become divisible by `size_divisible`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, image_mean: Sequence[float], image_std: Sequence[float], size_divisible: int
    ) -> None:
        super().__init__()
        self.size_divisible = size_divisible
        for name, values in (("mean", image_mean), ("std", image_std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(
        self, images: Tensor | Sequence[Tensor], frames: Sequence[Frame] | None = None
    ) -> ImageList:
        """Normalise, pad and stack float32 [B, 3, H, W] or B tensors [3, H, W], in [0, 1].

        Returns:
            The padded batch, with the valid (height, width) of each image. By the `frames`, what
            lies outside of the file's picture, as letterboxing adds it, is not valid.

        Raises:
            DataError: Images are not float32, not of three channels or not in [0, 1] (the range
                is checked on the CPU only: elsewhere it would make the host wait).
        """
        stacked = isinstance(images, Tensor)
        parts = [images] if isinstance(images, Tensor) else images
        for part in parts:
            _check_image(part, 4 if stacked else 3)
        given = [(image.shape[-2], image.shape[-1]) for image in images]
        height, width = (
            -(-max(sides) // self.size_divisible) * self.size_divisible
            for sides in zip(*given, strict=True)
        )
        padded = [_pad((part - self.mean) / self.std, height, width) for part in parts]
        batch = padded[0] if stacked else torch.stack(padded)
        valid: Sequence[tuple[float, float]] = given
        if frames is not None:
            valid = [valid_size(*part) for part in zip(frames, given, strict=True)]
        return ImageList(batch, valid)


def _pad(images: Tensor, height: int, width: int) -> Tensor:
    """Pad [..., H, W] with zeros at the right and bottom."""
    right, bottom = width - images.shape[-1], height - images.shape[-2]
    return F.pad(images, (0, right, 0, bottom)) if bottom or right else images


def _check_image(image: Tensor, n_dims: int) -> None:
    """Raise DataError unless `image` is float32 with three channels, in [0, 1] on the CPU."""
    if image.dtype != torch.float32 or image.dim() != n_dims or image.shape[-3] != 3:
        shape = "[B, 3, H, W]" if n_dims == 4 else "[3, H, W]"
        raise DataError(
            f"images must be float32 {shape} in [0, 1], found {image.dtype} {list(image.shape)}"
        )
    if image.device.type == "cpu":
        low, high = (float(value) for value in image.aminmax())
        # Written so that NaN fails.
        if not (low >= -_RANGE_SLACK and high <= 1 + _RANGE_SLACK):
            raise DataError(f"image values must lie in [0, 1], found {low:.4g} to {high:.4g}")


def valid_size(frame: Frame, given: tuple[int, int]) -> tuple[float, float]:
    """(height, width), from the upper left corner, that the file's picture covers of an image.

    `given` is the image's own (height, width); both are in its pixels.
    """
    covered = frame.valid_size
    if covered is None:
        (xx, xy, x0), (yx, yy, y0) = frame.to_original.tolist()
        if xy or yx or xx <= 0 or yy <= 0:
            # Mirrored or turned: the picture need not start in the upper left corner.
            return given
        height, width = frame.info.orig_size
        covered = ((height - y0) / yy, (width - x0) / xx)
    valid_height, valid_width = (
        # What rounding takes is no reason to cut.
        float(side) if extent > side - _ROUNDING else extent
        for extent, side in zip(covered, given, strict=True)
    )
    return valid_height, valid_width


def to_original(boxes: Tensor, frame: Frame | None) -> Tensor:
    """Map boxes [N, 4] from the given image to ORIGINAL pixels and clip them to the picture.

    The `frame` is the way from the image to the file; None means they are the same. Corners come
    out sorted (a mirrored frame swaps them).

    In a slightly turned frame centres are turned back, and width and height are kept (up to
    scale). The detector's box already encloses the turned object; the enclosing box of that box,
    turned back, would inflate it a second time (a square by 8 % a side at 5 degrees).
    """
    if frame is None:
        return boxes
    (xx, xy, x0), (yx, yy, y0) = frame.to_original.tolist()
    height, width = frame.info.orig_size
    x, y = boxes[:, 0::2], boxes[:, 1::2]
    new_x, new_y = xx * x + xy * y + x0, yx * x + yy * y + y0
    if (xy or yx) and (xx or yy):
        sides = x.new_tensor([-0.5, 0.5])
        new_x = new_x.mean(1, keepdim=True) + math.hypot(xx, yx) * x.diff() * sides
        new_y = new_y.mean(1, keepdim=True) + math.hypot(xy, yy) * y.diff() * sides
    new_x, new_y = new_x.clamp(0, width), new_y.clamp(0, height)
    low = torch.stack([new_x.amin(1), new_y.amin(1)], 1)
    high = torch.stack([new_x.amax(1), new_y.amax(1)], 1)
    return torch.cat([low, high], 1)


def valid_mean(features: Tensor, images: ImageList) -> Tensor:
    """Average a feature map [B, D, h, w] over the valid area of each image: float32 [B, D]."""
    height, width = images.tensors.shape[-2:]
    rows, columns = features.shape[-2:]
    means = []
    for feature, (valid_height, valid_width) in zip(features, images.image_sizes, strict=True):
        # Cells that the valid extent touches, at least one; by rounding alone it touches none.
        n_rows = max(1, math.ceil((valid_height - _ROUNDING) * rows / height))
        n_columns = max(1, math.ceil((valid_width - _ROUNDING) * columns / width))
        means.append(feature[:, :n_rows, :n_columns].float().mean((1, 2)))
    return torch.stack(means)
