"""What suits a data set: image size, batch and window, each with the rule that gave it."""

import numpy as np

# torchvision's detectors halve an image five times.
STEP = 32
LEAST_SIDE, MOST_SIDE, DEFAULT_SIDE = 128, 1024, 512
# Three cells of the finest level of a pyramid.
ENOUGH_PIXELS = 12
BATCH, LEAST_BATCH = 8, 2


def suggest_image_size(shapes: np.ndarray, shorter: np.ndarray) -> tuple[object, str]:
    """One side, or [height, width], for images of `shapes`, int [M, 2] (height, width).

    `shorter`, float [N], is the shorter side of each object as a share of its image's longer one.
    """
    height, width = np.median(shapes, axis=0)
    longest = max(height, width)
    if len(shorter):
        wanted = ENOUGH_PIXELS / max(float(np.quantile(shorter, 0.05)), 1e-9)
        rule = f"95 % of the objects have a shorter side of {ENOUGH_PIXELS} px or more"
    else:
        wanted, rule = DEFAULT_SIDE, f"{DEFAULT_SIDE} px, as there are no objects to go by"
    rule += f", no larger than the images, {LEAST_SIDE} to {MOST_SIDE}, a multiple of {STEP}"
    longer = float(np.clip(_up(min(wanted, longest)), LEAST_SIDE, MOST_SIDE))
    sides = [_up(longer * side / longest) for side in (height, width)]
    return sides[0] if sides[0] == sides[1] else sides, rule


def suggest_batch(size: tuple[int, int], n_labelled: int) -> tuple[object, str]:
    """Labelled images of a step at an image size of (height, width)."""
    room = BATCH * DEFAULT_SIDE**2 // (size[0] * size[1])
    batch = max(LEAST_BATCH, min(BATCH, room))
    if n_labelled:
        batch = max(1, min(batch, n_labelled))
    rule = f"{BATCH}, which batch norm wants; above {DEFAULT_SIDE} x {DEFAULT_SIDE} px fewer in "
    return batch, rule + "proportion, and no more than there are labelled images"


def suggest_window(histogram: np.ndarray) -> tuple[object, str]:
    """Lowest and highest stored value of 16-bit pixels, of which [V] says how often each comes."""
    total = np.cumsum(histogram)
    low, high = np.searchsorted(total, [0.005 * total[-1], 0.995 * total[-1]]).tolist()
    return [low, max(high, low + 1)], "the middle 99 % of all pixels"


def _up(side: float) -> int:
    """The next multiple of STEP."""
    return int(np.ceil(round(side, 6) / STEP)) * STEP
