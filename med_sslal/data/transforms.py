"""From a decoded image to the fixed shape of a run, and random changes on the way (augmentation).

Coordinates are continuous (edge-based): a picture of width W spans 0 to W, so a letterbox maps
x_model = x_original * scale. Albumentations moves keypoints as pixel CENTRES (a mirror maps x to
W - 1 - x); `_edge_matrix` turns that into edges. S is the run's shape (H, W).
"""

import os
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import cv2
import numpy as np
import torch
from annotated_types import Interval
from torch import Tensor

from med_sslal.base.types import Annotation, ImageInfo, Target
from med_sslal.utils.errors import ConfigError
from med_sslal.utils.util import numpy_generator, python_generator

# Boxes with a shorter side (pixels of the model's frame) teach nothing: ignore regions.
MIN_SIDE = 2.0
Transformed = tuple[Tensor, Target | None, Tensor]
# Brings an image and its label to the model's frame in an epoch; see EvalTransform.
Transform = Callable[[np.ndarray, Annotation | None, ImageInfo, int], Transformed]
Share = Annotated[float, Interval(ge=0, le=1)]
# Changes of a factor by more would come close to 0.
NearOne = Annotated[float, Interval(ge=0, le=0.9)]
Sigma = Annotated[float, Interval(ge=0, le=10)]
Holes = Annotated[int, Interval(ge=0, le=100)]


class EvalTransform:
    """Letterbox: the whole image at the largest size that fits, zeros to the right and below."""

    def __init__(self, image_size: int | Sequence[int]) -> None:
        """Set the side of a square, or (height, width), in pixels; ConfigError otherwise."""
        self.size = _height_width(image_size)

    def __call__(
        self, image: np.ndarray, annotation: Annotation | None, info: ImageInfo, epoch: int
    ) -> Transformed:
        """Bring an image and its label to the model's frame; info and epoch change nothing.

        Boxes that are under MIN_SIDE there become ignore regions (evaluation reads the
        annotations, in ORIGINAL pixels, and keeps them). From float32 [h, w, 3] in [0, 1] and its
        label in ORIGINAL pixels, None for an unlabelled image, to float32 [3, H, W] in [0, 1], the
        label in the same frame, and `to_original`, float32 [2, 3].
        """
        canvas, matrix = letterbox(image, self.size)
        return _transformed(canvas, annotation, matrix)


class TrainTransform:
    """Letterbox and random changes.

    Every change fires by itself in half of the samples, with a strength drawn evenly up to the
    given one; 0 switches it off. What is drawn depends on (seed, epoch, image id) alone, so
    workers, order and resuming change nothing. The defaults suit CT; set `mirror` to false where
    the side matters. ConfigError where albumentations is not installed or `image_size` is no size.
    """

    def __init__(
        self,
        image_size: int | Sequence[int],
        *,
        seed: int,
        mirror: bool = True,
        vertical_mirror: bool = False,
        rotation: Annotated[float, Interval(ge=0, le=180)] = 10.0,
        scale: NearOne = 0.1,
        translate: Share = 0.05,
        brightness: Share = 0.2,
        contrast: Share = 0.2,
        gamma: NearOne = 0.2,
        blur: Sigma = 0.0,
        noise: Share = 0.0,
        cutout: Holes = 0,
    ) -> None:
        """Build the pipeline.

        Args:
            image_size: Side of a square, or (height, width), in pixels.
            seed: Seed of the run.
            mirror: Swap left and right.
            vertical_mirror: Swap top and bottom.
            rotation: Largest angle in degrees, either way.
            scale: Largest zoom, in or out, as a share of the size (0.1: 0.9 to 1.1).
            translate: Largest shift as a share of the side.
            brightness: Largest change as a share of the image's mean.
            contrast: Largest change of the factor on all values (0.2: 0.8 to 1.2).
            gamma: Largest change of the exponent (0.2: 0.8 to 1.2).
            blur: Largest sigma of a Gaussian blur in pixels.
            noise: Largest standard deviation of Gaussian noise (values are 0 to 1).
            cutout: Largest number of blackened rectangles, 5 to 15 % of a side each.
        """
        self.size, self.seed, self._cutout = _height_width(image_size), seed, cutout
        A, hole = _albumentations(), (0.05, 0.15)
        # Half of the samples, or none where a change is switched off.
        moved, lit = bool(rotation or scale or translate), bool(brightness or contrast)
        self._pipeline = A.Compose(
            [
                A.HorizontalFlip(p=0.5 * mirror),
                A.VerticalFlip(p=0.5 * vertical_mirror),
                A.Affine(
                    rotate=(-rotation, rotation),
                    scale=(1 - scale, 1 + scale),
                    translate_percent=(-translate, translate),
                    keep_ratio=True,
                    p=0.5 * moved,
                ),
                A.RandomBrightnessContrast(
                    brightness, contrast, brightness_by_max=False, p=0.5 * lit
                ),
                A.RandomGamma((100 * (1 - gamma), 100 * (1 + gamma)), p=0.5 * bool(gamma)),
                A.GaussianBlur(blur_limit=0, sigma_limit=(0.0, blur), p=0.5 * bool(blur)),
                A.GaussNoise(std_range=(0.0, noise), p=0.5 * bool(noise)),
                A.CoarseDropout((1, max(cutout, 1)), hole, hole, 0.0, 0.0, p=0.5 * bool(cutout)),
            ],
            keypoint_params=A.KeypointParams("xy", remove_invisible=False),
        )

    def __call__(
        self, image: np.ndarray, annotation: Annotation | None, info: ImageInfo, epoch: int
    ) -> Transformed:
        """Bring an image and its label to the model's frame, changed at random.

        A box becomes the box around its inscribed ellipse after the change: lesions and cells are
        round, and the box around the turned CORNERS would grow by 16 % at 10 degrees. A box of
        which less than half stays visible, or with a side under MIN_SIDE, becomes an ignore
        region; one of which nothing stays visible is dropped. Image id and epoch enter the draw;
        otherwise see EvalTransform.
        """
        canvas, matrix = letterbox(image, self.size)
        height, width = self.size
        key = ("augment", self.seed, epoch, info.image_id, "train")
        # One stream for all transforms: each draws after the other, so they are independent.
        self._pipeline.set_random_state(numpy_generator(*key), python_generator(*key))
        inputs: dict[str, Any] = {
            "image": canvas,
            "keypoints": np.array([(0, 0), (width - 1, 0), (0, height - 1)], dtype=np.float32),
        }
        if self._cutout:
            inputs["mask"] = np.ones(self.size, dtype=np.uint8)
        changed = self._pipeline(**inputs)
        matrix = _edge_matrix(changed["keypoints"], self.size) @ matrix
        return _transformed(changed["image"], annotation, matrix, changed.get("mask"))


class StrongTransform(TrainTransform):
    """TrainTransform with stronger defaults, for pseudo-labelled images.

    What a model has predicted on an image teaches it little on the same image; on a strongly
    changed one it does. Nothing here leaves what windowed HU values can look like.
    """

    def __init__(
        self,
        image_size: int | Sequence[int],
        *,
        seed: int,
        brightness: Share = 0.3,
        contrast: Share = 0.3,
        gamma: NearOne = 0.3,
        blur: Sigma = 1.0,
        noise: Share = 0.02,
        cutout: Holes = 3,
        **others: Any,
    ) -> None:
        others |= {"brightness": brightness, "contrast": contrast, "gamma": gamma}
        others |= {"blur": blur, "noise": noise, "cutout": cutout}
        super().__init__(image_size, seed=seed, **others)


def letterbox(image: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Scale an image to fit `size` (H, W) and fill up with zeros to the right and below.

    Returns float32 [H, W, 3] (the image itself where it has that shape already) and the float64
    [3, 3] matrix from ORIGINAL pixels to it.
    """
    height, width = image.shape[:2]
    ratio = min(size[0] / height, size[1] / width)
    sides = zip((height, width), size, strict=True)
    inner = tuple(min(max(round(side * ratio), 1), most) for side, most in sides)
    # Not `ratio`: whole pixels make the two axes differ a little.
    matrix = np.diag([inner[1] / width, inner[0] / height, 1.0])
    if inner != (height, width):
        method = cv2.INTER_AREA if ratio < 1 else cv2.INTER_LINEAR
        image = cv2.resize(image, inner[::-1], interpolation=method)
    if inner == size:
        return image, matrix
    canvas = np.zeros((*size, 3), dtype=np.float32)
    canvas[: inner[0], : inner[1]] = image
    return canvas, matrix


def _transformed(
    image: np.ndarray,
    annotation: Annotation | None,
    matrix: np.ndarray,
    uncovered: np.ndarray | None = None,
) -> Transformed:
    """What a transform returns of an image [H, W, 3] moved by a `matrix`; `uncovered` has holes."""
    # Contiguous, with memory of its own.
    pixels = torch.from_numpy(image.transpose(2, 0, 1).copy())
    to_original = torch.from_numpy(np.linalg.inv(matrix)[:2].astype(np.float32))
    if annotation is None:
        return pixels, None, to_original
    boxes = annotation.boxes.astype(np.float64)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 @ matrix[:2, :2].T + matrix[:2, 2]
    # Half extent of an ellipse with half axes a, b along x' = m11 x + m12 y: hypot(m11 a, m12 b).
    half = np.sqrt(((boxes[:, 2:] - boxes[:, :2]) / 2) ** 2 @ (matrix[:2, :2] ** 2).T)
    limit = np.array(image.shape[1::-1], dtype=np.float64)
    upper, lower = (np.clip(corner, 0, limit) for corner in (centre - half, centre + half))
    visible = (lower - upper).prod(axis=1) / (4 * half.prod(axis=1))
    if uncovered is not None:
        visible *= [_mean_inside(uncovered, u, v) for u, v in zip(upper, lower, strict=True)]
    clipped = np.concatenate([upper, lower], axis=1).astype(np.float32)
    keep = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    small = ((lower - upper) < MIN_SIDE).any(axis=1)
    ignore = annotation.ignore | small | (visible < 0.5)
    parts = (clipped, annotation.labels, ignore, annotation.regress)
    return pixels, Target(*(torch.from_numpy(part[keep]) for part in parts)), to_original


def _mean_inside(mask: np.ndarray, upper: np.ndarray, lower: np.ndarray) -> float:
    """Mean of the mask's pixels that a box touches; 0 where there is none."""
    (x1, y1), (x2, y2) = np.floor(upper).astype(int), np.ceil(lower).astype(int)
    part = mask[y1:y2, x1:x2]
    return float(part.mean()) if part.size else 0.0


def _edge_matrix(moved: Any, size: tuple[int, int]) -> np.ndarray:
    """The [3, 3] map of edge coordinates from the new places of three corner pixels' centres."""
    origin, right, below = np.asarray(moved, dtype=np.float64)[:, :2]
    matrix = np.eye(3)
    matrix[:2, 0] = (right - origin) / (size[1] - 1)
    matrix[:2, 1] = (below - origin) / (size[0] - 1)
    # Centre c of a pixel lies at the edge coordinate c + 0.5, before and after the move.
    matrix[:2, 2] = origin + 0.5 - matrix[:2, :2] @ (0.5, 0.5)
    return matrix


def _height_width(image_size: int | Sequence[int]) -> tuple[int, int]:
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(sides) != 2 or not all(isinstance(side, int) and side >= 16 for side in sides):
        raise ConfigError(
            "image_size must be one whole number or [height, width], 16 pixels or more; "
            f"found {image_size}"
        )
    return sides[0], sides[1]


def _albumentations() -> Any:
    """Import albumentations: late, because it is slow, and without its call home."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    try:
        import albumentations
    except ImportError as error:
        raise ConfigError(
            f"augmentation TrainTransform needs albumentations, which cannot be imported "
            f"({error}): pip install albumentations==2.0.8"
        ) from error
    return albumentations


AUGMENTATIONS: dict[str, type] = {
    "TrainTransform": TrainTransform,
    "StrongTransform": StrongTransform,
}
