"""Lungs, mediastinum and bones."""

import numpy as np

from med_sslal.phantom.anatomy import Anatomy, Phase
from med_sslal.phantom.canvas import Canvas, Tissue
from med_sslal.phantom.vessels import draw_vessels

_RIB_STEP = 26.0


def paint_chest(
    canvas: Canvas, anatomy: Anatomy, phase: Phase, cavity: np.ndarray, thickness: float
) -> None:
    """Paint lungs and mediastinum above the diaphragm; `thickness` of the slice in mm."""
    z = canvas.z
    if z > anatomy.dome + 85:
        return
    # The diaphragm is a dome over liver and spleen: the lungs reach lowest along the wall.
    right = ((canvas.x + 66) / 70) ** 2 + ((canvas.y + 12) / 72) ** 2
    left = ((canvas.x - 66) / 68) ** 2 + ((canvas.y + 5) / 72) ** 2
    floor = anatomy.dome + 62 * np.where(canvas.x < 0, right, left + 0.15)
    above = cavity & (z < floor)
    middle = _mediastinum(canvas, anatomy)
    lung = above & ~middle
    posterior = np.clip((canvas.y + 80) / 160, 0, 1)
    tone = anatomy.lung_hu - 20 + 45 * posterior + 9 * canvas.mottle + 10 * canvas.drift
    canvas.paint(lung, tone, Tissue.LUNG)
    for edge in (-1, 1):
        here = lung & (canvas.px * edge > 0)
        if not here.any():
            continue
        share = draw_vessels(anatomy.tree(edge), canvas.window, z, thickness) * here
        bright = min(80.0, 25 + 0.4 * phase.blood)
        canvas.hu += share * (bright - canvas.hu)
        canvas.tissue[share > 0.25] = Tissue.BLOOD
    if z < anatomy.dome + 25:
        _paint_mediastinum(canvas, anatomy, phase, above & middle)


def _mediastinum(canvas: Canvas, anatomy: Anatomy) -> np.ndarray:
    """What parts the lungs: bool [size, size]."""
    z = canvas.z
    swell = float(np.clip((z - 20) / 60, 0.55, 1))
    middle = canvas.ellipse(0, -14, 34 * swell, 58) | canvas.ellipse(0, anatomy.spine_y + 4, 27, 26)
    middle |= np.abs(canvas.x) < 5
    heart = canvas.section((20, -26, 188), anatomy.heart)
    if heart is not None:
        middle |= heart < 1.06
    # The roots of the lungs.
    root = max(0.0, 1 - ((z - 122) / 32) ** 2) ** 0.5
    if root:
        for side in (-1, 1):
            middle |= canvas.ellipse(side * 34, 2, 16 * root, 20 * root)
    return middle


def _paint_mediastinum(canvas: Canvas, anatomy: Anatomy, phase: Phase, region: np.ndarray) -> None:
    """Fat, heart, great vessels, airways and gullet."""
    z, blood = canvas.z, phase.blood

    def fill(shape: np.ndarray, hu: float, tissue: Tissue = Tissue.BLOOD) -> None:
        canvas.paint(shape & region, hu + 4 * canvas.mottle, tissue)

    fill(region, -92.0, Tissue.MEDIASTINUM)
    fill(np.abs(canvas.mottle + canvas.drift) < 0.12, 0.0, Tissue.MEDIASTINUM)
    fill(canvas.ellipse(7, anatomy.spine_y - 24, 8, 6), 42.0, Tissue.ORGAN)
    heart = canvas.section((20, -26, 188), anatomy.heart)
    if heart is not None:
        fill(heart < 1, 70.0)
        fill((heart < 0.95) & canvas.rod((-14, -34), (18, -44), 16), blood)
        fill((heart < 0.72) & canvas.rod((38, -18), (52, -26), 15), blood)
        fill((heart < 0.9) & canvas.rod((-6, 4), (22, 6), 14), blood)
    if z < 70:
        for x, y, r in ((-14, -14, 6), (2, -20, 4.5), (14, -8, 5), (-26, -20, 7), (20, -24, 7)):
            fill(canvas.ellipse(x, y, r, r), blood)
    if 68 < z < 92:
        fill(canvas.rod((-8, -22), (20, 26), 12.5), blood)
    if 88 <= z < 150:
        fill(canvas.ellipse(-10, -26, 16, 15), blood)
    if z >= 88:
        fill(canvas.ellipse(20 - 0.04 * (z - 88), anatomy.spine_y - 16, 12, 12), blood)
    if z < 160:
        fill(canvas.ellipse(-28, -22, 8, 10), 1.1 * blood)
        fill(canvas.ellipse(-30, 8, 4, 4), blood)
    if 98 < z < 140:
        fill(canvas.ellipse(17, -22, 14, 13), blood)
        fill(canvas.rod((12, -6), (-40, 2), 8), blood)
        fill(canvas.rod((16, -10), (44, 6), 8.5), blood)
    if z > 165:
        fill(canvas.ellipse(-23, 4, 13, 11), blood)
    if z < 112:
        fill(canvas.ellipse(-1, 8, 10.5, 10.5), 45.0, Tissue.ORGAN)
        fill(canvas.ellipse(-1, 8, 8.5, 8.5), -985.0, Tissue.ORGAN)
    elif z < 142:
        for side in (-1, 1):
            offset = side * (7 + 0.75 * (z - 112))
            fill(canvas.ellipse(offset, 11, 8, 7), 45.0, Tissue.ORGAN)
            fill(canvas.ellipse(offset, 11, 6, 5.5), -970.0, Tissue.ORGAN)


def paint_bones(canvas: Canvas, anatomy: Anatomy, wall: np.ndarray, depth: np.ndarray) -> None:
    """Spine, ribs, breastbone and shoulder blades; see `beyond_cavity` and `outline`, in mm."""
    z = canvas.z
    if z < 345:
        _paint_ribs(canvas, anatomy, wall, depth)
    if 50 < z < 205:
        plate = canvas.ellipse(0, -103, 19, 6.5)
        canvas.paint(plate, 420.0, Tissue.BONE)
        canvas.paint(canvas.ellipse(0, -103, 16.5, 4), 160 + 25 * canvas.mottle, Tissue.BONE)
    if z < 135:
        for side in (-1, 1):
            reach = 40 - 0.12 * z
            inner, outer = (side * (92 - reach / 2), 76), (side * (92 + reach / 2), 44)
            blade = canvas.rod(inner, outer, 4)
            blade &= (wall > 12) & (depth > 8)
            canvas.paint(blade, 480 + 60 * canvas.mottle, Tissue.BONE)
    y = anatomy.spine_y
    bone = 330 + 40 * canvas.mottle
    for side in (-1, 1):
        canvas.paint(canvas.rod((side * 12, y + 24), (side * 30, y + 31), 4.5), bone, Tissue.BONE)
        # The joints of the ribs, or the lumbar joints.
        canvas.paint(canvas.ellipse(side * 16, y + 25, 8, 7), bone + 60, Tissue.BONE)
    canvas.paint(canvas.rod((0, y + 34), (0, y + 50), 4), bone + 40, Tissue.BONE)
    canvas.paint(canvas.ellipse(0, y + 22, 15, 13), bone + 90, Tissue.BONE)
    body = canvas.radius(0, y, 20, 16)
    if np.mod(z - anatomy.rib_z, 30) < 5:
        canvas.paint(body < 1, 85.0, Tissue.ORGAN)  # the disc between two vertebrae
    else:
        canvas.paint(body < 1, 560.0, Tissue.BONE)
        canvas.paint(body < 0.88, 205 + 35 * canvas.mottle, Tissue.BONE)
    canvas.paint(canvas.ellipse(0, y + 21, 10, 8), 25.0, Tissue.ORGAN)


def _paint_ribs(canvas: Canvas, anatomy: Anatomy, wall: np.ndarray, depth: np.ndarray) -> None:
    """Ribs slope down to the front, so a slice cuts each into an oblique piece of arc."""
    around = np.abs(np.arctan2(canvas.calm_x, canvas.calm_y + 10)) / np.float32(np.pi)
    level = canvas.z - anatomy.rib_z - 95 * around
    off = np.mod(level + _RIB_STEP / 2, _RIB_STEP) - _RIB_STEP / 2
    radial = np.hypot((wall - 6.5) / 4.2, off / 6.5)
    # Floating ribs end early, and the spine has its own bones.
    arc = (around > 0.09) & (around < min(0.88, (350 - canvas.z) / 110)) & (depth > 5)
    where = arc & (radial < 1)
    gristle = around > 0.74
    canvas.paint(where, np.where(gristle, 115, 610).astype(np.float32), Tissue.BONE)
    marrow = np.where(gristle, 95, 230 + 30 * canvas.mottle).astype(np.float32)
    canvas.paint(arc & (radial < 0.62), marrow, Tissue.BONE)
