"""Points of the car that the camera sees, and what they are made of."""

from dataclasses import dataclass

import numpy as np

from carseg.sample.arrays import Bools, Floats, Ints


@dataclass(frozen=True)
class Points:
    """Where n points of the car are, and how they are seen; all but `part` are float32."""

    part: Ints  # (n,) part numbers
    position: Floats  # (n, 3) in car coordinates
    normal: Floats  # (n, 3) in car coordinates, unit length
    surface: Floats  # (n, 2), see `Mesh`
    view: Floats  # (n, 3) unit vectors from the camera to the points, in car coordinates
    self_shadow: Floats  # (n,) share of the sun that the car itself lets pass


@dataclass
class Surface:
    """Material of n points of the car."""

    albedo: Floats  # (n, 3)
    mirror: Floats  # (n,) reflectance seen head-on
    gloss: Floats  # (n,) 0: rough, 1: polished
    metal: Floats  # (n,) 1: the reflection takes the colour of the surface
    glow: Floats  # (n, 3) light coming through, for windows and lamps
    normal: Floats  # (n, 3) in car coordinates
    cavity: Floats  # (n,) share of the light around that reaches into hollows

    def lay(
        self,
        mask: Bools,
        tone: Floats,
        mirror: float = 0.04,
        gloss: float = 0.3,
        metal: float = 0.0,
    ) -> None:
        """Cover the points of `mask`, (n,), with a material of colour `tone`, (3,) or (n, 3)."""
        self.albedo[mask] = tone[mask] if tone.ndim == 2 else tone
        self.mirror[mask] = mirror
        self.gloss[mask] = gloss
        self.metal[mask] = metal
        self.glow[mask] = 0

    @classmethod
    def painted(cls, paint: Floats, normal: Floats) -> "Surface":
        """Make all points of lacquer of one colour, (3,), linear RGB."""
        count = len(normal)
        return cls(
            np.broadcast_to(paint, (count, 3)).astype(np.float32).copy(),
            np.full(count, 0.065, np.float32),
            np.full(count, 1.0, np.float32),
            np.full(count, 0.0, np.float32),
            np.zeros((count, 3), np.float32),
            normal.copy(),
            np.ones(count, np.float32),
        )
