"""What lies below the diaphragm."""

import numpy as np

from med_sslal.phantom.anatomy import Anatomy, Loop, Phase
from med_sslal.phantom.canvas import Canvas, Tissue

_FILLINGS = {"fluid": 18.0, "contrast": 260.0, "gas": -880.0, "stool": -40.0}


def paint_abdomen(canvas: Canvas, anatomy: Anatomy, phase: Phase, cavity: np.ndarray) -> None:
    """Fill the mask `cavity` with fat, bowel and organs; the chest covers what is the lungs'."""
    z = canvas.z
    if z < anatomy.dome - 10:
        return
    canvas.paint(cavity, -104 + 5 * canvas.drift, Tissue.ABDOMEN)
    # Small vessels of the mesentery cross the fat.
    dots = cavity & (canvas.mottle > 1.75)
    canvas.paint(dots, 20 + 0.3 * phase.blood, Tissue.ABDOMEN)
    for loop in anatomy.loops:
        _paint_loop(canvas, loop, cavity)
    _paint_upper_organs(canvas, anatomy, phase, cavity)
    for side in (-1, 1):
        _paint_kidney(canvas, phase, side)
        if z > 290:
            psoas = 10 + 0.09 * (z - 290)
            canvas.paint(
                canvas.ellipse(side * (29 + psoas / 3), anatomy.spine_y - 2, psoas, psoas * 1.15),
                58.0,
                Tissue.MUSCLE,
            )
    canvas.paint(canvas.ellipse(5, anatomy.spine_y - 25, 10, 10), phase.blood, Tissue.BLOOD)
    canvas.paint(canvas.ellipse(-21, anatomy.spine_y - 22, 12, 9), phase.blood - 8, Tissue.BLOOD)


def _paint_loop(canvas: Canvas, loop: Loop, cavity: np.ndarray) -> None:
    """Paint bowel: wall, filling, and gas on top of fluid (the patient lies on the back)."""
    radial = canvas.section(loop.centre, loop.radii)
    if radial is None:
        return
    wall = 1 - 2.2 / loop.radii[1]
    canvas.paint((radial < 1) & cavity, 52.0, Tissue.BOWEL)
    inside = (radial < wall) & cavity
    filling: float | np.ndarray = _FILLINGS[loop.filling]
    if loop.filling == "stool":
        filling = -60 + 130 * canvas.mottle.clip(-2, 2)
    canvas.paint(inside, filling, Tissue.BOWEL)
    if loop.filling in ("fluid", "stool"):
        gas = inside & (canvas.py < loop.centre[1] - 0.35 * loop.radii[1])
        canvas.paint(gas & (loop.radii[0] > 15), -850.0, Tissue.BOWEL)


def _paint_upper_organs(canvas: Canvas, anatomy: Anatomy, phase: Phase, cavity: np.ndarray) -> None:
    """Stomach, spleen, pancreas and liver."""
    dome = anatomy.dome
    inner = cavity & (np.abs(canvas.x) > -1)
    stomach = canvas.section((52, -34, dome + 68), (44, 33, 52))
    if stomach is not None:
        canvas.paint((stomach < 1) & inner, 60.0, Tissue.BOWEL)
        canvas.paint((stomach < 0.87) & inner, 12 + 8 * canvas.mottle, Tissue.BOWEL)
        canvas.paint((stomach < 0.87) & inner & (canvas.py < -44), -900.0, Tissue.BOWEL)
    spleen = canvas.section((92, 28, dome + 72), (31, 46, 60))
    if spleen is not None:
        canvas.paint((spleen < 1) & inner, phase.liver + 8, Tissue.ORGAN)
    if dome + 70 < canvas.z < dome + 112:
        pancreas = canvas.rod((-28, 2), (48, -4), 9)
        canvas.paint(pancreas, 0.8 * phase.liver + 14 * canvas.mottle, Tissue.ORGAN)
    liver = np.zeros_like(cavity)
    for centre, radii in (
        ((-66, -10, dome + 78), (84, 86, 92)),
        ((2, -52, dome + 62), (62, 34, 58)),
    ):
        radial = canvas.section(centre, radii)
        if radial is not None:
            liver |= radial < 1
    liver &= inner
    canvas.paint(liver, phase.liver + 3 * canvas.drift, Tissue.LIVER)
    # Portal and hepatic veins: where a slow field crosses zero, in short pieces.
    vein = np.abs(canvas.drift + 0.35 * canvas.mottle) < 0.07
    canvas.paint(
        liver & vein & (canvas.mottle > -0.3), 0.5 * (phase.liver + phase.blood) + 8, Tissue.LIVER
    )
    if canvas.z > dome + 60:
        canvas.paint(canvas.ellipse(-42, -38, 15, 19, 0.4), 8.0, Tissue.ORGAN)


def _paint_kidney(canvas: Canvas, phase: Phase, side: int) -> None:
    """Kidney with bright rind, pyramids and the fat around its pelvis."""
    centre = (side * 60, 36, 325 + 6 * side)
    radial = canvas.section(centre, (27, 32, 56))
    if radial is None:
        return
    canvas.paint(radial < 1.2, -100.0, Tissue.ABDOMEN)
    canvas.paint(radial < 1, phase.kidney, Tissue.KIDNEY)
    canvas.paint((radial < 0.74) & (canvas.mottle > 0), 30 + 0.5 * phase.kidney, Tissue.KIDNEY)
    hilum = (radial < 0.45) | ((radial < 1) & canvas.rod((side * 54, 32), (side * 28, 26), 6))
    canvas.paint(hilum, -70.0, Tissue.ABDOMEN)
    canvas.paint(hilum & canvas.rod((side * 58, 34), (side * 24, 24), 3), phase.blood, Tissue.BLOOD)
