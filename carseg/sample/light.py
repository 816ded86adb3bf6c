"""Daylight: sun, sky, and the shadow that the car throws on its surroundings."""

from dataclasses import dataclass

import numpy as np

from carseg.sample.arrays import Floats
from carseg.sample.noise import Noise


def colour(red: float, green: float, blue: float) -> Floats:
    """A linear RGB triple from gamma-encoded values in [0, 1]."""
    return (np.array([red, green, blue], np.float32) ** np.float32(2.2)).astype(np.float32)


def mix(a: Floats, b: Floats, t: Floats) -> Floats:
    """Blend of a and b, (n, 3) or (3,), by t of shape (n,) in [0, 1]."""
    blended: Floats = a + (b - a) * t[:, None]
    return blended


def smoothstep(low: float | Floats, high: float | Floats, x: Floats) -> Floats:
    """Hermite step from 0 at `low` to 1 at `high`."""
    t = np.clip((x - low) / (np.asarray(high) - low), 0, 1).astype(np.float32)
    step: Floats = t * t * (3 - 2 * t)
    return step


@dataclass(frozen=True)
class Daylight:
    """The light of one scene; all colours linear RGB."""

    to_sun: Floats  # (3,), unit length
    sun: Floats
    zenith: Floats
    horizon: Floats
    bounce: Floats  # light that the ground sends back up
    clouds: float  # share of the sky that is covered, 0 to 1
    exposure: float

    def sky(self, direction: Floats, noise: Noise | None) -> Floats:
        """Radiance of the sky, (n, 3), along unit directions (n, 3) that point upwards."""
        up = np.clip(direction[:, 2], 0.0, 1.0)
        result = mix(self.horizon, self.zenith, 1 - (1 - up) ** 3)
        if noise is not None and self.clouds > 0:
            # Clouds lie in a plane overhead; towards the horizon they crowd together.
            reach = 1.6 / (up + 0.18)
            veil = noise.fractal(direction[:, 0] * reach, direction[:, 1] * reach, 5)
            cover = smoothstep(0.18 - 0.4 * self.clouds, 0.40 - 0.4 * self.clouds, veil)
            body = 0.75 * self.horizon + 0.5 * self.zenith + 0.18 * self.sun
            shade = 1.0 - 0.9 * smoothstep(0.1, 0.5, veil) * self.clouds
            result = mix(result, body * shade[:, None], cover * smoothstep(0.0, 0.12, up))
        toward = np.clip(np.einsum("ij,j->i", direction, self.to_sun), 0, 1)
        glow: Floats = result + self.sun * (0.10 * toward**8 + 0.3 * toward**90)[:, None]
        return glow

    def ambient(self, normal: Floats) -> Floats:
        """Light from all of the sky and the ground on surfaces with these normals, (n, 3)."""
        dome = 0.45 * self.horizon + 0.55 * self.zenith
        return mix(self.bounce, dome, 0.5 + 0.5 * normal[:, 2])


def draw_daylight(rng: np.random.Generator, kind: str) -> Daylight:
    """Sunny, overcast or evening light; the sun stands on the camera's side of the street."""
    azimuth = np.radians(rng.uniform(38, 78) * rng.choice([-1, 1]))
    elevation = np.radians(rng.uniform(20, 28) if kind == "evening" else rng.uniform(33, 52))
    to_sun = np.array(
        [
            np.sin(azimuth) * np.cos(elevation),
            -np.cos(azimuth) * np.cos(elevation),
            np.sin(elevation),
        ],
        np.float32,
    )
    if kind == "sunny":
        sun, zenith = 3.3 * colour(1.0, 0.95, 0.87), 0.68 * colour(0.42, 0.62, 0.90)
        horizon, exposure = 0.85 * colour(0.78, 0.86, 0.95), 0.82
        clouds = float(rng.uniform(0.15, 0.6))
    elif kind == "evening":
        sun, zenith = 2.6 * colour(1.0, 0.76, 0.50), 0.55 * colour(0.46, 0.55, 0.78)
        horizon, exposure = 0.75 * colour(0.95, 0.82, 0.72), 0.98
        clouds = float(rng.uniform(0.2, 0.5))
    else:
        sun, zenith = 0.0 * colour(1, 1, 1), 1.15 * colour(0.84, 0.88, 0.93)
        horizon, exposure = 1.0 * colour(0.88, 0.90, 0.93), 1.12
        clouds = float(rng.uniform(0.6, 0.9))
    bounce = 0.18 * (horizon + zenith) + 0.10 * sun
    return Daylight(
        to_sun,
        sun.astype(np.float32),
        zenith.astype(np.float32),
        horizon.astype(np.float32),
        bounce.astype(np.float32),
        clouds,
        exposure,
    )


class GroundMap:
    """A square map on the ground around the car, looked up bilinearly; 0 outside."""

    def __init__(self, values: Floats, half_extent: float) -> None:
        """`values`: (size, size), row = y and column = x, spanning +-half_extent metres."""
        self._values = np.pad(values, 1).astype(np.float32)
        self._half = half_extent
        self._size = values.shape[0]

    def at(self, x: Floats, y: Floats) -> Floats:
        """The map's value at ground points x, y of shape (n,)."""
        scale = self._size / (2 * self._half)
        u = np.clip((x + self._half) * scale + 0.5, 0, self._size + 0.999)
        v = np.clip((y + self._half) * scale + 0.5, 0, self._size + 0.999)
        column, row = u.astype(np.int32), v.astype(np.int32)
        s, t = u - column, v - row
        grid = self._values
        lower = grid[row, column] * (1 - s) + grid[row, column + 1] * s
        upper = grid[row + 1, column] * (1 - s) + grid[row + 1, column + 1] * s
        values: Floats = (lower * (1 - t) + upper * t).astype(np.float32)
        return values


def along_sun(point: Floats, to_sun: Floats) -> tuple[Floats, Floats]:
    """Return x and y, (n,) each, where the sun's rays through points (n, 3) meet the ground."""
    slide = point[:, 2] / to_sun[2]
    return point[:, 0] - to_sun[0] * slide, point[:, 1] - to_sun[1] * slide


@dataclass(frozen=True)
class CarShadow:
    """What the car takes away from the light around it; values 0 (nothing) to 1 (all)."""

    cast: GroundMap  # sunlight, projected along the sun's rays onto the ground plane
    contact: GroundMap  # skylight on the ground
    to_sun: Floats

    def sunlit(self, point: Floats) -> Floats:
        """Share of the sun, (n,), that reaches points (n, 3) beyond the car."""
        lit: Floats = 1 - self.cast.at(*along_sun(point, self.to_sun))
        return lit
