"""What each picture shows: the car, its parking place, the street, the camera's position."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from carseg.sample.arrays import Floats
from carseg.sample.car import SHAPES, CarShape
from carseg.sample.light import CarShadow, Daylight, colour
from carseg.sample.noise import Noise
from carseg.sample.scene import Scene, Solid, Tree
from carseg.sample.trim import Finish

# Paint: gamma-encoded colour and metallic share.
_PAINTS: tuple[tuple[tuple[float, float, float], float], ...] = (
    ((0.74, 0.06, 0.07), 0.0),  # red
    ((0.70, 0.72, 0.74), 1.0),  # silver
    ((0.10, 0.22, 0.52), 0.7),  # blue
    ((0.90, 0.90, 0.89), 0.0),  # white
    ((0.07, 0.07, 0.08), 0.3),  # black
    ((0.12, 0.33, 0.22), 0.6),  # green
    ((0.93, 0.70, 0.08), 0.0),  # yellow
    ((0.36, 0.38, 0.40), 1.0),  # grey
    ((0.83, 0.35, 0.09), 0.5),  # orange
    ((0.43, 0.63, 0.74), 0.4),  # light blue
    ((0.42, 0.08, 0.13), 0.6),  # burgundy
    ((0.72, 0.66, 0.54), 0.8),  # champagne
)
# Where the camera stands, in degrees around the car: 0 in front of it, 90 at its left side.
_LANDSCAPE_VIEWS = (35, 90, 215, 325, 62, 145, 270, 235, 300, 48, 128, 312)
_PORTRAIT_VIEWS = (22, 0, 158, 340, 200, 180, 28)
_LIGHTS = ("sunny", "overcast", "sunny", "evening", "sunny")
_GROUNDS = ("asphalt", "setts", "asphalt", "gravel", "paving", "asphalt", "grass")
_WALLS = (
    (0.86, 0.81, 0.70),
    (0.90, 0.89, 0.86),
    (0.78, 0.62, 0.50),
    (0.72, 0.74, 0.75),
    (0.83, 0.74, 0.58),
    (0.66, 0.40, 0.32),
    (0.74, 0.78, 0.72),
    (0.60, 0.36, 0.28),
)
_ROOFS = ((0.52, 0.28, 0.22), (0.32, 0.32, 0.34), (0.44, 0.30, 0.25))
_BLOCK = 20  # pictures
_CYCLES = 840  # a multiple of the number of values of each choice
_GREENS = ((0.24, 0.36, 0.16), (0.30, 0.40, 0.18), (0.20, 0.31, 0.17), (0.37, 0.42, 0.20))


@dataclass(frozen=True)
class Plan:
    """The composition of one picture, before the street is furnished."""

    shape: CarShape
    finish: Finish
    portrait: bool  # format of the upright scene
    quarter_turns: int  # counter-clockwise turns of the finished picture
    light: str
    ground: str
    heading: float  # angle from car to world coordinates, radians
    camera: float  # angle of the camera from the street's normal, radians
    distance: float  # from the camera to the car's middle, metres
    eye_height: float
    steer: float
    fill: float  # share of the tighter picture side that the car takes, at most
    cut: float  # share of the car's width in the picture that lies beyond its edge
    shift: tuple[float, float]  # of the car from the picture's middle, shares of the free room


def draw_plan(rng: np.random.Generator, seed: int, index: int) -> Plan:
    """Choose picture `index` (from 0); neighbouring indices get different choices."""
    body, colouring, side, turning, lighting, standing = index + _shifts(seed, index)
    # Odd pictures lie on their side; a quarter of all are portraits before they are turned.
    turned = turning % 2 == 1
    portrait = turning % 8 in (2, 5)
    shape = SHAPES[(body + seed) % len(SHAPES)]
    paint, metallic = _PAINTS[(5 * colouring + seed // 7) % len(_PAINTS)]
    views = _PORTRAIT_VIEWS if portrait else _LANDSCAPE_VIEWS
    degrees = views[(side // 4 if portrait else side) % len(views)] + rng.uniform(-7, 7)
    view = np.radians(degrees)
    # The car stands along the street or square to it, whichever lets the camera face the houses.
    # The camera's bearing in the world is heading + view = -90 degrees + camera.
    square = np.round((-np.pi / 2 - view) / (np.pi / 2)) * (np.pi / 2)
    heading = square + np.radians(rng.uniform(-3, 3))
    camera = heading + view + np.pi / 2
    camera = (camera + np.pi) % (2 * np.pi) - np.pi
    finish = Finish(
        paint=colour(*paint),
        metallic=metallic,
        spokes=int(rng.choice([5, 5, 6, 7, 10])),
        dark_rims=bool(rng.random() < 0.2),
        chrome=bool(rng.random() < 0.5),
        plate=colour(*((0.93, 0.93, 0.92) if rng.random() < 0.7 else (0.93, 0.80, 0.30))),
        grille=float(rng.uniform(0.7, 1.3)),
        seed=float(rng.random()),
    )
    fill = rng.uniform(0.86, 0.97)
    cut = rng.uniform(0.05, 0.13) if index % 5 == 3 else 0.0
    return Plan(
        shape=shape,
        finish=finish,
        portrait=portrait,
        quarter_turns=(1 if turning % 4 == 1 else 3) if turned else 0,
        light=_LIGHTS[(lighting + lighting // 5) % len(_LIGHTS)],
        ground=_GROUNDS[(standing + standing // 7) % len(_GROUNDS)],
        heading=float(heading),
        camera=float(camera),
        distance=float(rng.uniform(5.6, 7.6)),
        eye_height=float(rng.uniform(1.35, 1.95) + (0.8 if index % 5 == 4 else 0.0)),
        steer=float(rng.uniform(-0.22, 0.22)),
        fill=float(fill),
        cut=float(cut),
        shift=(float(rng.uniform(-0.8, 0.8)), float(rng.uniform(-0.05, 0.6))),
    )


def _shifts(seed: int, index: int) -> NDArray[np.int64]:
    """Draw how far each of six choices has moved on, (6,), the same for a block of pictures.

    Choices take turns, so without that one body, say, would have one paint wherever it is seen
    from the front.
    """
    block = index // _BLOCK
    if not block:
        return np.zeros(6, np.int64)
    return np.random.default_rng([seed, block]).integers(_CYCLES, size=6)


def furnish(
    plan: Plan,
    rng: np.random.Generator,
    light: Daylight,
    shadow: CarShadow,
    extent: Floats,
) -> Scene:
    """Build the street behind a car that reaches from -extent to +extent (2,) in x and y."""
    noise = Noise(rng)
    kerb = float(extent[1] + rng.uniform(0.15, 0.7))
    wall = kerb + float(rng.uniform(2.2, 5.0) if rng.random() < 0.55 else rng.uniform(6, 15))
    square = extent[0] < 1.6
    pitch = float(extent[0] + rng.uniform(0.40, 0.55))
    paved = plan.ground in ("asphalt", "paving", "setts")
    bays = tuple(pitch * k for k in (-7, -5, -3, -1, 1, 3, 5, 7)) if square and paved else ()
    edge = None
    if not square and plan.ground == "asphalt" and rng.random() < 0.6:
        edge = -float(extent[1]) - float(rng.uniform(0.3, 0.6))
    scene = Scene(
        light=light,
        noise=noise,
        shadow=shadow,
        ground=plan.ground,
        beyond=str(rng.choice(["slabs", "paving", "grass", "slabs"])),
        kerb=kerb,
        garden=wall + 0.1,
        bays=bays,
        edge_line=edge,
        patches=float(rng.uniform(0.5, 1.0)) if rng.random() < 0.4 else 0.0,
        skyline=float(rng.uniform(6, 14)),
    )
    _houses(scene, rng, wall)
    _street_furniture(scene, rng, kerb, wall)
    return scene


def _pick(rng: np.random.Generator, palette: tuple[tuple[float, float, float], ...]) -> Floats:
    return colour(*palette[rng.integers(len(palette))])


def _houses(scene: Scene, rng: np.random.Generator, wall: float) -> None:
    """A row of houses, hedges and walls from left to right, with trees in the gaps."""
    x = -46.0 + float(rng.uniform(0, 8))
    while x < 46:
        width = float(rng.uniform(8, 15))
        kind = rng.choice(["house", "house", "garden", "hedge", "fence"])
        green, tone, roof = (_pick(rng, palette) for palette in (_GREENS, _WALLS, _ROOFS))
        seed = float(np.floor(rng.uniform(0, 200)) + rng.random())
        setback = wall + float(rng.choice([0.0, 0.0, 0.6, 1.5]))
        if kind == "house":
            storeys = int(rng.choice([1, 2, 2, 3]))
            scene.solids.append(
                Solid(
                    "house",
                    (x, setback, 0),
                    (x + width, setback + 9, 2.9 * storeys + 0.5),
                    tone,
                    roof,
                    pitch=float(rng.uniform(0.6, 0.95)),
                    seed=seed,
                    spacing=float(rng.uniform(2.1, 3.3)),
                )
            )
        else:
            if kind == "hedge":
                low = Solid(
                    "hedge",
                    (x, wall, 0),
                    (x + width, wall + 1.2, rng.uniform(1.1, 2.1)),
                    green,
                    green,
                )
            elif kind == "fence":
                wood = colour(*((0.52, 0.40, 0.29) if rng.random() < 0.6 else (0.62, 0.62, 0.60)))
                low = Solid(
                    "fence",
                    (x, wall, 0),
                    (x + width, wall + 0.1, rng.uniform(1.2, 1.9)),
                    wood,
                    wood,
                )
            else:
                low = Solid(
                    "brickwork",
                    (x, wall, 0),
                    (x + width, wall + 0.3, 1.1),
                    colour(*_WALLS[5]),
                    tone,
                )
            scene.solids.append(low)
            # Behind a garden's edge stand trees and, further off, another house.
            scene.solids.append(
                Solid(
                    "house",
                    (x + 1, wall + 16, 0),
                    (x + width - 1, wall + 25, 5.9),
                    tone,
                    roof,
                    pitch=0.8,
                    seed=seed,
                    spacing=2.6,
                )
            )
            for _ in range(int(rng.integers(1, 4))):
                radius = float(rng.uniform(1.3, 2.8))
                scene.trees.append(
                    Tree(
                        x + float(rng.uniform(1, width - 1)),
                        wall + float(rng.uniform(3, 9)),
                        2.0 * radius + float(rng.uniform(0.8, 2.2)),
                        radius,
                        green,
                        float(rng.uniform(0, 200)),
                    )
                )
        x += width + float(rng.choice([0.0, 0.0, 1.2]))


def _street_furniture(scene: Scene, rng: np.random.Generator, kerb: float, wall: float) -> None:
    """Poles, signs, bollards, bins and street trees between the kerb and the houses."""
    metal, dark = colour(0.55, 0.56, 0.57), colour(0.22, 0.24, 0.24)
    middle = kerb + 0.45

    def box(
        kind: str,
        x: float,
        y: float,
        half: float,
        low: float,
        high: float,
        tone: int,
        deep: float | None = None,
    ) -> None:
        deep = half if deep is None else deep
        palette = (
            metal,
            dark,
            colour(0.85, 0.85, 0.84),
            colour(0.68, 0.12, 0.12),
            colour(0.12, 0.28, 0.60),
            colour(0.20, 0.34, 0.22),
        )
        scene.solids.append(
            Solid(
                kind,
                (x - half, y - deep, low),
                (x + half, y + deep, high),
                palette[tone],
                palette[2],
            )
        )

    side = float(rng.choice([-1, 1]))
    if rng.random() < 0.6:  # a lamp post
        x = side * float(rng.uniform(1.0, 5.0))
        box("plain", x, middle, 0.055, 0, 6.0, int(rng.integers(2)))
        box("plain", x, middle, 0.10, 0, 0.9, 1)
    if rng.random() < 0.6:  # a traffic sign: a plate on a pole
        x = -side * float(rng.uniform(1.5, 5.0))
        box("plain", x, middle, 0.03, 0, 2.7, 0)
        box("plain", x, middle - 0.04, 0.30, 2.1, 2.7, 2, 0.01)
        box("plain", x, middle - 0.06, 0.27, 2.13, 2.67, int(rng.choice([3, 4])), 0.008)
        box("plain", x, middle - 0.08, 0.17, 2.35, 2.45, 2, 0.006)
    if rng.random() < 0.5:
        start = float(rng.uniform(-6, -3))
        for k in range(6):
            box("striped", start + 2.0 * k, kerb + 0.35, 0.05, 0, 0.95, int(rng.choice([3, 1])))
    if rng.random() < 0.5:
        x = side * float(rng.uniform(2.5, 6.0))
        for k in range(int(rng.integers(1, 4))):
            box("plain", x + 0.66 * k, wall - 0.45, 0.28, 0.11, 1.12, int(rng.choice([1, 4, 5])))
    if rng.random() < 0.55:
        for x in (-9.0, -3.5, 2.5, 8.5):
            green = _pick(rng, _GREENS)
            scene.trees.append(
                Tree(
                    x + float(rng.uniform(-1.2, 1.2)),
                    kerb + 0.9,
                    float(rng.uniform(4.6, 6.0)),
                    float(rng.uniform(1.4, 1.9)),
                    green,
                    float(rng.uniform(0, 200)),
                )
            )
