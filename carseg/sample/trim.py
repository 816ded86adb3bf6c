"""The car's outfit: lamps, grille, plates and wheels, drawn on its surface points.

All shapes are signed distances, so that they stay sharp at any size: in car coordinates (metres),
on wheels in wheel radii.
"""

from dataclasses import dataclass

import numpy as np

from carseg.sample.arrays import Bools, Floats
from carseg.sample.car import CarShape
from carseg.sample.light import colour
from carseg.sample.surface import Points, Surface

RUBBER, CHROME = colour(0.16, 0.16, 0.17), colour(0.82, 0.83, 0.85)
PLASTIC = colour(0.20, 0.20, 0.21)


@dataclass(frozen=True)
class Finish:
    """The choices that make two cars of one shape look different."""

    paint: Floats  # linear RGB
    metallic: float  # 0: plain lacquer, 1: silver
    spokes: int
    dark_rims: bool
    chrome: bool
    plate: Floats
    grille: float  # height of the grille, as a factor
    seed: float


def rounded_box(x: Floats, y: Floats, half_x: float, half_y: float, radius: float) -> Floats:
    """Signed distance to a rounded rectangle around 0 (Quilez, 2-D distance functions)."""
    dx, dy = np.abs(x) - half_x + radius, np.abs(y) - half_y + radius
    outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
    distance: Floats = outside + np.minimum(np.maximum(dx, dy), 0) - radius
    return distance


def draw_front(
    s: Surface,
    shape: CarShape,
    finish: Finish,
    front: Bools,
    x: Floats,
    y: Floats,
    z: Floats,
) -> None:
    """Grille, headlamps, fog lamps, air intake, badge and plate.

    front: (n,) points that face forwards. x, y, z: (n,), x being the loft's, not the bent one.
    """
    side = np.abs(y)
    nose = front | ((s.normal[:, 0] > 0.02) & (x > shape.front - 0.25))
    nose &= x > shape.front - 0.3
    high = shape.outline[-1][1] - 0.045
    # Distance around the corner, so that lamps wrap into the wing.
    wrap = side + 0.9 * np.maximum(shape.front + 0.06 - x, 0)

    low_box = rounded_box(y, z - (shape.clearance + 0.15), 0.56, 0.075, 0.04)
    slot = nose & (low_box < 0)
    s.lay(slot, colour(0.09, 0.09, 0.09), 0.02, 0.1)
    tall = 0.075 * finish.grille
    centre = high - 0.04 - tall * 0.6
    wide = 0.30 + 0.15 * ((finish.seed * 7) % 1.0)
    box = rounded_box(y * (1 + 0.8 * (z - centre)), z - centre, wide, tall, 0.5 * tall)
    s.lay(nose & (box < 0.016), CHROME if finish.chrome else PLASTIC, 0.5, 0.8)
    grille = nose & (box < 0)
    s.lay(grille, colour(0.06, 0.06, 0.06), 0.03, 0.2)
    slat = ((z - centre) / 0.036) % 1.0 < 0.35
    bar = (y / 0.03) % 1.0 < 0.3
    ribs = grille & (slat if finish.seed < 0.5 else (slat | bar))
    s.lay(ribs, colour(0.36, 0.36, 0.37) if finish.chrome else colour(0.2, 0.2, 0.2), 0.12, 0.6)
    s.cavity[(slot | grille) & ~ribs] = 0.5
    badge = np.hypot(y, z - centre)
    s.lay(nose & (badge < 0.058), CHROME, 0.6, 0.9, 1.0)
    s.lay(nose & (badge < 0.045) & (badge > 0.03), colour(0.15, 0.16, 0.2), 0.2)

    slant = 0.10 + 0.22 * ((finish.seed * 3) % 1.0)
    slim = 0.050 + 0.026 * ((finish.seed * 5) % 1.0)
    lamp_z = high - 0.065 + slant * (wrap - 0.66)
    lamp = rounded_box(wrap - 0.66, z - lamp_z, 0.20, 1.25 * slim, 0.7 * slim)
    s.lay(nose & (lamp < 0.008), colour(0.1, 0.1, 0.1), 0.04, 0.6)
    lens = nose & (lamp < 0)
    first, second = np.hypot(wrap - 0.59, z - lamp_z), np.hypot(wrap - 0.74, z - lamp_z)
    radius = np.minimum(first, second)
    if finish.seed < 0.5:  # two reflectors behind clear glass
        shade = 0.40 + 0.22 * np.cos(radius * 75) + 1.5 * (z - lamp_z)
    else:  # a dark housing with two projectors and a strip of running light
        shade = np.where(radius < 0.036, 0.75 - 9 * radius, 0.13)
        shade = np.where(np.abs(lamp + 0.014) < 0.007, 1.1, shade)
    tone = CHROME * np.clip(shade, 0.05, 1.1)[:, None]
    if finish.seed % 0.3 < 0.12:
        tone = np.where((wrap > 0.82)[:, None], colour(0.80, 0.45, 0.12), tone)
    s.lay(lens, tone.astype(np.float32), 0.10, 1.0)

    fog = np.hypot(side - 0.69, z - (shape.clearance + 0.16))
    s.lay(nose & (fog < 0.062), PLASTIC, 0.05, 0.5)
    s.lay(nose & (fog < 0.045), colour(0.48, 0.49, 0.50), 0.15, 1.0)
    plate = min(shape.clearance + 0.285, centre - tall - 0.045)
    _plate(s, nose & (s.normal[:, 0] > 0.5), finish, y, z - plate, False)


def draw_rear(
    s: Surface,
    shape: CarShape,
    finish: Finish,
    rear: Bools,
    x: Floats,
    y: Floats,
    z: Floats,
    top: Floats,
) -> None:
    """Tail lamps, bumper, exhaust, badge and plate.

    rear: (n,) points that face backwards. top: (n,) height of the outline above each point.
    """
    side = np.abs(y)
    tail = rear | ((s.normal[:, 0] < -0.02) & (x < shape.rear + 0.2))
    tail &= x < shape.rear + 0.28
    wrap = side + 0.9 * np.maximum(x - (shape.rear - 0.06), 0)
    high = float(shape.belt[0])
    upright = shape.name in ("van", "suv", "estate")
    lamp_z = high - (0.02 if upright else 0.135)
    if upright:
        lamp = rounded_box(wrap - 0.84, z - lamp_z, 0.10, 0.19, 0.04)
    else:
        lamp = rounded_box(wrap - 0.74, z - lamp_z, 0.20, 0.080, 0.05)
    s.lay(tail & (lamp < 0.008), colour(0.1, 0.1, 0.1), 0.04, 0.6)
    red = np.where(
        (((z - lamp_z) / 0.03) % 1.0 < 0.5)[:, None],
        colour(0.72, 0.05, 0.05),
        colour(0.55, 0.02, 0.03),
    )
    white = np.abs(z - lamp_z + (0.07 if upright else 0.03)) < 0.022
    red = np.where(white[:, None], colour(0.80, 0.76, 0.74), red).astype(np.float32)
    s.lay(tail & (lamp < 0), red, 0.05, 1.0)

    lip = rounded_box(y, z - (shape.clearance + 0.10), 0.62, 0.07, 0.03)
    s.lay(rear & (lip < 0), PLASTIC, 0.04, 0.3)
    pipe = np.hypot(y + 0.52, (z - (shape.clearance + 0.055)) * 1.3)
    s.lay(rear & (pipe < 0.05), CHROME, 0.5, 0.7, 1.0)
    s.lay(rear & (pipe < 0.038), colour(0.03, 0.03, 0.03), 0.0, 0.0)
    height = high - 0.20 if not upright else high - 0.24
    niche = rounded_box(y, z - height, 0.33, 0.085, 0.02)
    s.albedo[rear & (niche < 0)] *= 0.6
    strip = rear & (np.abs(z - height - 0.10) < 0.013) & (side < 0.36)
    s.lay(strip, CHROME if finish.chrome else PLASTIC, 0.4, 0.8)
    _plate(s, rear, finish, y, z - height, True)
    if upright:  # a boot lid's edge would distort it
        badge = np.hypot(y, z - height - 0.165)
        s.lay(rear & (badge < 0.040), CHROME, 0.5, 0.6, 1.0)
        s.lay(rear & (badge < 0.029), colour(0.15, 0.16, 0.2), 0.2)
    third = rear & (np.abs(z - top + 0.05) < 0.012) & (side < 0.16) & (z > high + 0.25)
    s.lay(third, colour(0.6, 0.04, 0.04), 0.08, 1.0)


def _plate(s: Surface, mask: Bools, finish: Finish, y: Floats, z: Floats, back: bool) -> None:
    box = rounded_box(y, z, 0.26, 0.056, 0.012)
    s.lay(mask & (box < 0.008), colour(0.08, 0.08, 0.08), 0.03, 0.3)
    inside = mask & (box < 0)
    s.lay(inside, finish.plate, 0.04, 0.4)
    across = y if not back else -y
    s.lay(inside & (across < -0.225), colour(0.10, 0.20, 0.55), 0.04, 0.4)
    # Blocks on a grid of two by three instead of letters: at this size they read as a number.
    place = (across + 0.20) / 0.052
    glyph, column = np.floor(place), (place % 1.0 - 0.18) / 0.36
    row = (z + 0.036) / 0.024
    code = np.sin(glyph * 12.9 + np.floor(column) * 4.7 + np.floor(row) * 2.3 + finish.seed * 40)
    letter = (column > 0) & (column < 2) & (row > 0) & (row < 3) & (glyph >= 0) & (glyph < 8)
    letter &= (glyph != 2) & (code > -0.35)
    s.lay(inside & letter, colour(0.1, 0.1, 0.12), 0.03, 0.3)


def draw_wheels(s: Surface, finish: Finish, wheel: Bools, points: Points) -> None:
    """Tyres and rims with spokes, brake discs and bolts.

    wheel: (n,) those of the points that are on wheels, where `Points.surface` is the radius, 1 at
    the tread, and the angle in radians.
    """
    radius, angle = points.surface[:, 0], points.surface[:, 1]
    angle = angle + np.where(points.position[:, 0] > 0, 0.4, 1.1) + finish.seed
    s.lay(wheel, colour(0.17, 0.17, 0.18), 0.02, 0.15)
    wall = wheel & (radius > 0.70) & (radius < 0.97)
    groove = wall & ((np.abs(radius - 0.90) < 0.006) | (np.abs(radius - 0.80) < 0.005))
    s.albedo[groove] *= 0.55
    tread = wheel & (radius >= 0.965)
    s.albedo[tread] *= np.where(np.sin(angle[tread] * 90) > 0, 1.0, 0.6)[:, None]
    rim_colour = colour(0.24, 0.24, 0.25) if finish.dark_rims else colour(0.74, 0.75, 0.77)
    rim = wheel & (radius < 0.705)
    s.lay(rim, rim_colour, 0.25, 0.7, 0.5)
    step = 2 * np.pi / finish.spokes
    offset = np.abs((angle % step) - step / 2) * radius  # distance from the spoke's axis
    broad = 0.055 + 0.075 * radius if finish.spokes < 8 else 0.035 + 0.045 * radius
    gap = rim & (radius < 0.625) & (radius > 0.17) & (offset > broad)
    edge = rim & (radius < 0.625) & (radius > 0.17) & ~gap & (offset > broad - 0.022)
    s.albedo[edge] *= 0.55
    s.lay(gap, colour(0.10, 0.10, 0.11), 0.02, 0.2)
    disc = gap & (radius > 0.20) & (radius < 0.50)
    s.lay(disc, colour(0.32, 0.32, 0.33), 0.10, 0.3)
    s.cavity[gap] = 0.45
    s.albedo[rim & (np.abs(radius - 0.66) < 0.012)] *= 0.5
    hub = rim & (radius < 0.10)
    s.lay(hub, colour(0.16, 0.16, 0.17), 0.1, 0.7)
    bolt = rim & (
        np.hypot(
            radius * np.cos(angle % (0.4 * np.pi) - 0.2 * np.pi) - 0.14,
            radius * np.sin(angle % (0.4 * np.pi) - 0.2 * np.pi),
        )
        < 0.018
    )
    s.lay(bolt, colour(0.2, 0.2, 0.2), 0.1, 0.5)
