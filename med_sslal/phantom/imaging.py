"""What the scanner does to the tissue: point spread, noise, and the scans that went wrong."""

import cv2
import numpy as np

POINT_SPREAD_PX = 0.8
"""Standard deviation of the point spread, in pixels."""

_GRAIN_PX = 0.6
"""Blur of the noise: neighbouring pixels then correlate by about 0.48."""

_LOW, _HIGH = -1024, 3071
_OFFSET = 32768


def expose(
    hu: np.ndarray, noise_sd: float, rng: np.random.Generator, streaks: float = 0.0
) -> np.ndarray:
    """Turn float32 [H, W] tissue into uint16 [H, W], HU + 32768 as DeepLesion stores it.

    `noise_sd` is the standard deviation of the noise and `streaks` the strength of metal streaks,
    both in HU.
    """
    scan = cv2.GaussianBlur(hu, (7, 7), POINT_SPREAD_PX)
    if streaks:
        scan = scan + streaks * streak_pattern(hu.shape, rng)
    scan = scan + noise_sd * correlated_noise(hu.shape, rng)
    return (np.rint(scan).clip(_LOW, _HIGH) + _OFFSET).astype(np.uint16)


def correlated_noise(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Grainy noise: float32 of `shape`, unit variance, lag-1 correlation of about 0.48."""
    kernel = cv2.getGaussianKernel(5, _GRAIN_PX)
    white = rng.standard_normal(shape, dtype=np.float32)
    return cv2.GaussianBlur(white, (5, 5), _GRAIN_PX) / np.float32((kernel**2).sum())


def streak_pattern(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Rays from a piece of metal near the border: float32 of `shape`, mostly within -1..1."""
    height, width = shape
    angle = rng.uniform(0, 2 * np.pi)
    cx, cy = width * (0.5 + 0.42 * np.cos(angle)), height * (0.5 + 0.42 * np.sin(angle))
    dx = np.arange(width, dtype=np.float32)[None, :] - np.float32(cx)
    dy = np.arange(height, dtype=np.float32)[:, None] - np.float32(cy)
    direction, distance = np.arctan2(dy, dx), np.hypot(dx, dy)
    rays = np.zeros(shape, dtype=np.float32)
    for _ in range(5):
        count, phase = int(rng.integers(3, 17)), rng.uniform(0, 2 * np.pi)
        rays += np.cos(count * direction + np.float32(phase))
    return (rays / 2.5) * np.exp(-distance / np.float32(0.55 * width)) + 4 * (distance < 2.5)
