"""Between the caller's images and the network's batch, and back to ORIGINAL pixels.

Three frames: ORIGINAL pixels of the file, pixels of the image that the model is given, and the
network's frame (that image resized, where `min_size` is set, and padded at the right and bottom).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

from med_sslal.base.types import Frame, Target
from med_sslal.utils.errors import DataError

# Interpolation in fp32 may overshoot by rounding.
_RANGE_SLACK = 1e-3


@dataclass(frozen=True)
class NetworkBatch:
    """A batch in the network's frame.

    Attributes:
        images: The padded batch, with the valid (height, width) of each image. What letterboxing
            added at the right and bottom is not valid.
        given_sizes: (height, width) of each image as it was given.
        resized_sizes: (height, width) of each image after resizing.
    """

    images: ImageList
    given_sizes: list[tuple[int, int]]
    resized_sizes: list[tuple[int, int]]


class DetectionTransform(GeneralizedRCNNTransform):
    """torchvision's transform that resizes only on request and checks what it is given."""

    def __init__(
        self,
        min_size: int | None,
        max_size: int | None,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        size_divisible: int,
    ) -> None:
        """Make the transform.

        Args:
            min_size: Shorter side after resizing; None keeps every image as it is.
            max_size: Bound of the longer side after resizing; used with `min_size`.
            image_mean: Mean of the three channels, subtracted.
            image_std: Standard deviation of the three channels, divided by.
            size_divisible: The batch is padded to multiples of it.
        """
        super().__init__(min_size, max_size, list(image_mean), list(image_std), size_divisible)
        self.resizes = min_size is not None
        for name, values in (("mean", image_mean), ("std", image_std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(
        self, images: Tensor | Sequence[Tensor], frames: Sequence[Frame] | None = None
    ) -> NetworkBatch:
        """Normalise, resize on request, pad and stack.

        Args:
            images: float32 [B, 3, H, W] or B tensors [3, H, W], in [0, 1].
            frames: B frames; what lies outside of the file's picture is then not valid.

        Raises:
            DataError: Images are not float32, not of three channels or not in [0, 1] (the range
                is checked on the CPU only: elsewhere it would make the host wait).
        """
        for image in [images] if isinstance(images, Tensor) else images:
            _check_image(image, 4 if isinstance(images, Tensor) else 3)
        given = [(image.shape[-2], image.shape[-1]) for image in images]
        if isinstance(images, Tensor) and not self.resizes:
            sizes, batch = given, self._pad(self.normalize(images))
        else:
            resized = [self._resized(self.normalize(image)) for image in images]
            sizes = [(image.shape[-2], image.shape[-1]) for image in resized]
            batch = self.batch_images(resized, self.size_divisible)
        valid: Sequence[tuple[float, float]] = sizes
        if frames is not None:
            valid = [valid_size(*part) for part in zip(frames, given, sizes, strict=True)]
        return NetworkBatch(ImageList(batch, valid), given, sizes)

    def normalize(self, image: Tensor) -> Tensor:
        """Subtract the mean and divide by the standard deviation: [..., 3, H, W]."""
        return (image - self.mean) / self.std

    def _pad(self, batch: Tensor) -> Tensor:
        """Pad [B, 3, H, W] with zeros to multiples of `size_divisible`."""
        height, width = batch.shape[-2:]
        bottom, right = -height % self.size_divisible, -width % self.size_divisible
        return F.pad(batch, (0, right, 0, bottom)) if bottom or right else batch

    def _resized(self, image: Tensor) -> Tensor:
        """Resize [3, H, W] as torchvision does, unless the size is right already."""
        if not self.resizes:
            return image
        sides = image.shape[-2:]
        scale = min(self.min_size[-1] / min(sides), self.max_size / max(sides))
        if scale == 1:
            return image
        return F.interpolate(
            image[None],
            scale_factor=scale,
            mode="bilinear",
            recompute_scale_factor=True,
            align_corners=False,
        )[0]


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


def valid_size(
    frame: Frame, given: tuple[int, int], resized: tuple[int, int]
) -> tuple[float, float]:
    """The part of an image that its file's picture covers, from the upper left corner.

    Args:
        frame: Of the image as it was given.
        given: (height, width) of the image as it was given.
        resized: (height, width) of the image in the network's frame.

    Returns:
        (height, width) in the network's frame.
    """
    covered = frame.valid_size
    if covered is None:
        (xx, xy, x0), (yx, yy, y0) = frame.to_original.tolist()
        if xy or yx or xx <= 0 or yy <= 0:
            # Mirrored or turned: the picture need not start in the upper left corner.
            return resized
        height, width = frame.info.orig_size
        covered = ((height - y0) / yy, (width - x0) / xx)
    valid_height, valid_width = (
        # A thousandth of a pixel is rounding of the affine, and no reason to cut.
        float(new) if extent > old - 1e-3 else extent * new / old
        for extent, old, new in zip(covered, given, resized, strict=True)
    )
    return valid_height, valid_width


def resize_targets(
    targets: Sequence[Target],
    given_sizes: Sequence[tuple[int, int]],
    resized_sizes: Sequence[tuple[int, int]],
) -> list[Target]:
    """Bring labels from the given images to the network's frame."""
    return [
        target
        if given == resized
        else replace(target, boxes=resize_boxes(target.boxes, given, resized))
        for target, given, resized in zip(targets, given_sizes, resized_sizes, strict=True)
    ]


def to_original(
    boxes: Tensor,
    resized: tuple[int, int],
    given: tuple[int, int],
    frame: Frame | None,
) -> Tensor:
    """Map boxes from the network's frame to ORIGINAL pixels and clip them to the picture.

    In a slightly turned frame centres are turned back, and width and height are kept (up to
    scale). The detector's box already encloses the turned object; the enclosing box of that box,
    turned back, would inflate it a second time (a square by 8 % a side at 5 degrees).

    Args:
        boxes: float32 [N, 4].
        resized: (height, width) of the image in the network's frame.
        given: (height, width) of the image as it was given.
        frame: The way from the given image to the file; None means they are the same.

    Returns:
        float32 [N, 4], corners sorted (a mirrored frame swaps them).
    """
    if resized != given:
        boxes = resize_boxes(boxes, resized, given)
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


def valid_mean(features: Tensor, batch: NetworkBatch) -> Tensor:
    """Average a feature map over the valid area of each image.

    Args:
        features: [B, D, h, w].
        batch: The images it was computed from.

    Returns:
        float32 [B, D].
    """
    height, width = batch.images.tensors.shape[-2:]
    rows, columns = features.shape[-2:]
    means = []
    for feature, (valid_height, valid_width) in zip(
        features, batch.images.image_sizes, strict=True
    ):
        n_rows = _cells(valid_height * rows / height, rows)
        n_columns = _cells(valid_width * columns / width, columns)
        means.append(feature[:, :n_rows, :n_columns].float().mean((1, 2)))
    return torch.stack(means)


def _cells(extent: float, limit: int) -> int:
    """Cells that a valid extent touches, at least one."""
    return min(limit, max(1, -int(-extent // 1)))
