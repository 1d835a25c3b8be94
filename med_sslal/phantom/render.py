"""Any slice of a patient in Hounsfield units."""

import numpy as np

from med_sslal.phantom.abdomen import paint_abdomen
from med_sslal.phantom.anatomy import Anatomy, Phase, beyond_cavity, outline
from med_sslal.phantom.canvas import Canvas, Tissue, Window
from med_sslal.phantom.chest import paint_bones, paint_chest


def render(
    anatomy: Anatomy, phase: Phase, window: Window, z: float, thickness: float
) -> tuple[np.ndarray, np.ndarray]:
    """Paint a slice at level `z`, mm; its `thickness` in mm thins out the vessels.

    Returns:
        HU float32 [size, size] with hard edges, and the Tissue uint8 [size, size].
    """
    canvas = Canvas(window, z, anatomy.texture)
    depth, wall = outline(canvas, anatomy), beyond_cavity(canvas)
    canvas.paint(depth > 0, 25.0, Tissue.SKIN)
    canvas.paint(depth > 2, -102 + 6 * canvas.drift, Tissue.FAT)
    flesh = ((depth > anatomy.fat * (1 + 0.18 * canvas.drift)) | (wall < 6)) & (depth > 2)
    canvas.paint(flesh, 54 + 5 * canvas.drift, Tissue.MUSCLE)
    # Sheets of fat part the muscles of the wall.
    seam = flesh & (wall > 3) & (np.abs(canvas.drift + 0.3 * canvas.mottle) < 0.08)
    canvas.paint(seam, -55.0, Tissue.MUSCLE)
    cavity = (wall < 0) & (depth > 2)
    paint_abdomen(canvas, anatomy, phase, cavity)
    paint_chest(canvas, anatomy, phase, cavity, thickness)
    paint_bones(canvas, anatomy, wall, depth)
    return canvas.hu, canvas.tissue
