"""From a decoded image to the fixed shape of a run, and random changes on the way (augmentation).

Coordinates are continuous (edge-based): a picture of width W spans 0 to W, so a letterbox maps
x_model = x_original * scale. Albumentations moves keypoints as pixel CENTRES (a mirror maps x to
W - 1 - x); `_edge_matrix` turns that into edges. S is the run's shape (H, W).
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Any, ClassVar, Literal

import cv2
import numpy as np
import torch
from annotated_types import Interval
from torch import Tensor

from med_sslal.base.types import Annotation, Frame, Hole, ImageInfo, Target
from med_sslal.base.views import MIN_SIDE, draw_holes, moved_ellipses, uncovered_area
from med_sslal.config.schema import Share
from med_sslal.utils.errors import ConfigError
from med_sslal.utils.util import numpy_generator, python_generator

Transformed = tuple[Tensor, Target | None, Frame]
# Brings an image and its label to the model's frame in an epoch; see EvalTransform.
Transform = Callable[[np.ndarray, Annotation | None, ImageInfo, int], Transformed]
Modality = Literal["ct", "mri", "xray", "photo"]
# Changes of a factor by more would come close to 0.
NearOne = Annotated[float, Interval(ge=0, le=0.9)]
Sigma = Annotated[float, Interval(ge=0, le=10)]
Holes = Annotated[int, Interval(ge=0, le=100)]
Turn = Annotated[float, Interval(ge=0, le=0.5)]
# Sides of a hole, as shares of the picture's.
HOLE_SIDES = (0.05, 0.15)


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
        label in the same frame, and that frame.
        """
        canvas, matrix = letterbox(image, self.size)
        return _transformed(canvas, annotation, matrix, info)


@dataclass(eq=False, repr=False)
class TrainTransform:
    """Letterbox and random changes.

    Every change fires by itself in half of the samples, with a strength drawn evenly up to the
    given one; 0 switches it off. What is drawn depends on (seed, epoch, image id) alone, so
    workers, order and resuming change nothing, and each view of an image has a seed of its own.
    Nothing here leaves what the windowed values of a CT, MRI or X-ray can look like; set `mirror`
    to false where the side matters. ConfigError where albumentations is not installed or
    `image_size` is no size.

    Attributes:
        image_size: Side of a square, or (height, width), in pixels.
        seed: Seed of the view.
        modality: What the images are: only a photo has colours that may change.
        mirror: Swap left and right.
        vertical_mirror: Swap top and bottom.
        rotation: Largest angle in degrees, either way.
        scale: Largest zoom, in or out, as a share of the size (0.1: 0.9 to 1.1).
        translate: Largest shift as a share of the side.
        brightness: Largest change as a share of the image's mean.
        contrast: Largest change of the factor on all values (0.2: 0.8 to 1.2).
        gamma: Largest change of the exponent (0.2: 0.8 to 1.2).
        hue: Largest turn of the colours, as a share of their circle; null = 0, in a strong view of
            a photo 0.05.
        saturation: Largest change of the factor on the colours' strength; null = 0, in a strong
            view of a photo 0.3.
        blur: Largest sigma of a Gaussian blur in pixels.
        noise: Largest standard deviation of Gaussian noise (values are 0 to 1).
        cutout: Largest number of blackened rectangles, 5 to 15 % of a side each.
    """

    # Hue and saturation of a photo where they are null.
    photo_colours: ClassVar[tuple[float, float]] = (0.0, 0.0)
    image_size: int | Sequence[int]
    _: KW_ONLY
    seed: int
    modality: Modality = "ct"
    mirror: bool = True
    vertical_mirror: bool = False
    rotation: Annotated[float, Interval(ge=0, le=180)] = 10.0
    scale: NearOne = 0.1
    translate: Share = 0.05
    brightness: Share = 0.2
    contrast: Share = 0.2
    gamma: NearOne = 0.2
    hue: Turn | None = None
    saturation: NearOne | None = None
    blur: Sigma = 0.0
    noise: Share = 0.0
    cutout: Holes = 0

    @classmethod
    def check_args(cls, args: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Refuse changes of colour where there is none that may change."""
        if args["modality"] == "photo":
            return []
        return [
            (
                name,
                f'found {args[name]}, but modality is "{args["modality"]}" and only a photo has '
                "colours that may change: set it to 0",
            )
            for name in ("hue", "saturation")
            if args[name]
        ]

    def __post_init__(self) -> None:
        self.size = _height_width(self.image_size)
        for name, sentence in self.check_args(vars(self)):
            raise ConfigError(f"{name}: {sentence}")
        A = _albumentations()
        self._pipeline = A.Compose(
            [*self._moves(A), *self._lights(A)],
            keypoint_params=A.KeypointParams("xy", remove_invisible=False),
        )

    def _moves(self, A: Any) -> list[Any]:
        """What moves boxes, each in half of the samples, or in none where it is switched off."""
        scale, shift = self.scale, self.translate
        return [
            A.HorizontalFlip(p=0.5 * self.mirror),
            A.VerticalFlip(p=0.5 * self.vertical_mirror),
            A.Affine(
                rotate=(-self.rotation, self.rotation),
                scale=(1 - scale, 1 + scale),
                translate_percent=(-shift, shift),
                keep_ratio=True,
                p=0.5 * bool(self.rotation or scale or shift),
            ),
        ]

    def _lights(self, A: Any) -> list[Any]:
        """What changes values and leaves boxes where they are, likewise."""
        bright, contrast, gamma, blur = self.brightness, self.contrast, self.gamma, self.blur
        own = (self.hue, self.saturation)
        defaults = self.photo_colours if self.modality == "photo" else (0.0, 0.0)
        hue, saturation = (b if a is None else a for a, b in zip(own, defaults, strict=True))
        colours = A.ColorJitter(
            (1, 1), (1, 1), (1 - saturation, 1 + saturation), (-hue, hue), p=0.5
        )
        return [
            A.RandomBrightnessContrast(
                bright, contrast, brightness_by_max=False, p=0.5 * bool(bright or contrast)
            ),
            A.RandomGamma((100 * (1 - gamma), 100 * (1 + gamma)), p=0.5 * bool(gamma)),
            *([colours] if hue or saturation else []),
            A.GaussianBlur(blur_limit=0, sigma_limit=(0.0, blur), p=0.5 * bool(blur)),
            A.GaussNoise(std_range=(0.0, self.noise), p=0.5 * bool(self.noise)),
        ]

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
        corners = np.array([(0, 0), (width - 1, 0), (0, height - 1)], dtype=np.float32)
        changed = self._pipeline(image=canvas, keypoints=corners)
        matrix = _edge_matrix(changed["keypoints"], self.size) @ matrix
        pixels, holes = changed["image"], self._holes(numpy_generator(*key, "holes"))
        if holes:
            # The change may have been none, and the pixels the file's own.
            pixels = pixels.copy()
        for left, top, right, bottom in holes:
            pixels[top:bottom, left:right] = 0
        return _transformed(pixels, annotation, matrix, info, tuple(holes))

    def _holes(self, draw: np.random.Generator) -> list[tuple[int, int, int, int]]:
        """Those of half of the samples, one or more."""
        if not self.cutout or draw.random() < 0.5:
            return []
        return draw_holes(draw, int(draw.integers(1, self.cutout + 1)), self.size, HOLE_SIDES)


@dataclass(eq=False, repr=False, kw_only=True)
class StrongTransform(TrainTransform):
    """TrainTransform with stronger defaults, for pseudo-labelled images.

    What a model has predicted on an image teaches it little on the same image; on a strongly
    changed one it does.
    """

    photo_colours = (0.05, 0.3)
    scale: NearOne = 0.2
    brightness: Share = 0.3
    contrast: Share = 0.3
    gamma: NearOne = 0.3
    blur: Sigma = 1.0
    noise: Share = 0.02
    cutout: Holes = 3


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
    info: ImageInfo,
    holes: tuple[Hole, ...] = (),
) -> Transformed:
    """What a transform returns of an image [H, W, 3] that a `matrix` has moved."""
    # Contiguous, with memory of its own.
    pixels = torch.from_numpy(image.transpose(2, 0, 1).copy())
    to_original = torch.from_numpy(np.linalg.inv(matrix)[:2].astype(np.float32))
    frame = Frame(info, to_original, holes=holes)
    if annotation is None:
        return pixels, None, frame
    boxes = annotation.boxes.astype(np.float64)
    centre, half = moved_ellipses(boxes, matrix[:2])
    limit = np.array(image.shape[1::-1], dtype=np.float64)
    upper, lower = (np.clip(corner, 0, limit) for corner in (centre - half, centre + half))
    cut = np.concatenate([upper, lower], axis=1)
    clipped = cut.astype(np.float32)
    visible = uncovered_area(torch.from_numpy(cut), holes).numpy() / (4 * half.prod(axis=1))
    keep = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    small = ((lower - upper) < MIN_SIDE).any(axis=1)
    ignore = annotation.ignore | small | (visible < 0.5)
    parts = (clipped, annotation.labels, ignore, annotation.regress)
    return pixels, Target(*(torch.from_numpy(part[keep]) for part in parts)), frame


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
