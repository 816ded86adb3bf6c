"""Camera, visibility and development: from a plan to a photo and its mask.

The car is rasterised with 2 x 2 samples per pixel and shaded afterwards (deferred shading); the
surroundings are traced once per pixel and again, finer, where two surfaces meet.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from carseg.sample.arrays import Bools, Bytes, Floats, Ints, rotation
from carseg.sample.car import BODY, WELL, Mesh, build_car
from carseg.sample.layout import Plan, draw_plan, furnish
from carseg.sample.light import CarShadow, Daylight, GroundMap, along_sun, draw_daylight
from carseg.sample.paint import shade_car
from carseg.sample.raster import barycentric, rasterise
from carseg.sample.scene import Scene
from carseg.sample.surface import Points

_SAMPLES = 2  # per pixel and axis
_BLOCK = 60_000  # points shaded at once; small enough for the processor's cache
_MAP_HALF = 7.0  # metres


@dataclass(frozen=True)
class Camera:
    """A pinhole camera; the principal point may lie off the picture's middle."""

    eye: Floats  # (3,)
    right: Floats
    up: Floats
    forward: Floats
    focal: float  # pixels
    centre: tuple[float, float]  # pixels
    size: tuple[int, int]  # width, height in pixels

    def rays(self, px: Floats, py: Floats) -> Floats:
        """Unit directions (n, 3) through picture points (n,) in pixels, y down."""
        a = (px - self.centre[0]) / self.focal
        b = (self.centre[1] - py) / self.focal
        d = self.forward + a[:, None] * self.right + b[:, None] * self.up
        d /= np.sqrt(np.einsum("ij,ij->i", d, d))[:, None]
        return d.astype(np.float32)

    def project(self, point: Floats) -> tuple[Floats, Floats]:
        """Picture positions (n, 2) in pixels and distances (n,) along the view axis."""
        offset = point - self.eye
        away = np.einsum("ij,j->i", offset, self.forward)
        x = self.centre[0] + self.focal * np.einsum("ij,j->i", offset, self.right) / away
        y = self.centre[1] - self.focal * np.einsum("ij,j->i", offset, self.up) / away
        return np.stack([x, y], axis=1), away


def render_picture(seed: int, index: int, long_side: int) -> tuple[Bytes, Bytes]:
    """Render picture `index` (from 0).

    Returns the photo, uint8 (height, width, 3) gamma-encoded RGB, and the mask, uint8 (height,
    width) with 255 where the car covers at least half of the pixel and 0 elsewhere.
    """
    rng = np.random.default_rng([seed, index])
    plan = draw_plan(rng, seed, index)
    mesh = build_car(plan.shape, plan.steer)
    world = np.einsum("ij,kj->ki", rotation(plan.heading), mesh.position)
    middle = 0.5 * (world.min(axis=0) + world.max(axis=0))
    middle[2] = 0
    world -= middle

    camera = _aim(plan, world, long_side)
    light = draw_daylight(rng, plan.light)
    holes = _Openings(plan, mesh)
    shadow, sun_view = _car_shadow(mesh, world, light, long_side, holes)
    scene = furnish(plan, rng, light, shadow, world.max(axis=0)[:2])

    car, coverage = _render_car(plan, mesh, world, scene, camera, holes, sun_view)
    around = _trace_surroundings(scene, camera, coverage < 1)
    photo = around * (1 - coverage[..., None]) + car
    picture = _develop(photo, light.exposure, rng)
    mask = np.where(coverage >= 0.5, 255, 0).astype(np.uint8)
    return np.rot90(picture, plan.quarter_turns), np.rot90(mask, plan.quarter_turns)


def _aim(plan: Plan, world: Floats, long_side: int) -> Camera:
    """Stand at the planned place and zoom so that the car fills the planned share."""
    short = round(long_side * 0.75)
    width, height = (short, long_side) if plan.portrait else (long_side, short)
    bearing = plan.camera
    eye = np.array(
        [np.sin(bearing) * plan.distance, -np.cos(bearing) * plan.distance, plan.eye_height]
    )
    forward = np.array([0.0, 0.0, 0.62]) - eye
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    up = np.cross(right, forward)
    draft = Camera(eye, right, up, forward, 1.0, (0.0, 0.0), (width, height))
    spot, _ = draft.project(world)
    low, high = spot.min(axis=0), spot.max(axis=0)
    extent = high - low
    focal = plan.fill * min(width / extent[0], 0.80 * height / extent[1])
    # A tall car close by would leave no surroundings: bound the share of the picture as well.
    focal = min(focal, np.sqrt(0.60 * width * height / (extent[0] * extent[1])))
    middle = focal * 0.5 * (low + high)
    room = np.maximum(np.array([width, height]) - focal * extent, 0.0) / 2
    offset = 0.8 * np.array(plan.shift) * room
    if plan.cut > 0:  # the car runs out of the picture on one side
        offset[0] = np.sign(plan.shift[0]) * (room[0] + plan.cut * focal * extent[0])
    centre = np.array([width, height]) / 2 - middle + offset
    return Camera(
        eye, right, up, forward, float(focal), (float(centre[0]), float(centre[1])), (width, height)
    )


class _Openings:
    """Where the body is cut open for the wheels, and the wheel wells for the road."""

    def __init__(self, plan: Plan, mesh: Mesh) -> None:
        self._shape, self._mesh = plan.shape, mesh
        x, _, z = mesh.position[mesh.triangle].mean(axis=1).T
        reach = np.hypot(np.abs(x) - plan.shape.axle, z - plan.shape.wheel_radius)
        self._close = (mesh.part == BODY) & (reach < plan.shape.arch_radius + 0.15)
        self._close |= mesh.part == WELL

    def __call__(self, number: Ints, weight: Floats) -> Bools:
        result: Bools = self._close[number]
        where = np.flatnonzero(result)
        corner = self._mesh.position[self._mesh.triangle[number[where]]]
        p = np.einsum("ij,ijk->ik", weight[where], corner)
        shape = self._shape
        reach = np.hypot(np.abs(p[:, 0]) - shape.axle, p[:, 2] - shape.wheel_radius)
        open_ = (reach < shape.arch_radius) & (np.abs(p[:, 1]) > shape.half_width - 0.30)
        below = (self._mesh.part[number[where]] == WELL) & (p[:, 2] < shape.clearance + 0.07)
        inside = (self._mesh.part[number[where]] == BODY) & open_
        result[where] = inside | below
        return result


def _blur(values: Floats, radius: int) -> Floats:
    """Three box filters in a row, close to a Gaussian; (2 * radius + 1) samples wide each."""
    for _ in range(3):
        values = ndimage.uniform_filter(values, 2 * radius + 1, mode="constant")
    return values


class _SunView:
    """The car seen from the sun: a shadow map (Williams 1978)."""

    def __init__(
        self, mesh: Mesh, world: Floats, to_sun: Floats, size: int, holes: _Openings
    ) -> None:
        self._scale = size / (2 * _MAP_HALF)
        self._sun = to_sun.astype(np.float64)
        self._size = size
        hit, self._depth = rasterise(
            self._place(world),
            -world[:, 2],
            mesh.triangle,
            (size, size),
            cull=False,
            is_hole=holes,
        )
        self.covered = hit >= 0

    def _place(self, point: Floats) -> Floats:
        ground = np.stack(along_sun(point, self._sun), axis=1)
        place: Floats = (ground + _MAP_HALF) * self._scale
        return place

    def lit(self, point: Floats, normal: Floats) -> Floats:
        """Share of the sun, (n,), at points (n, 3) of the car, from 3 x 3 lookups."""
        place = self._place(point + 0.03 * normal)
        total = np.zeros(len(point), np.float32)
        for dx in (-0.7, 0.0, 0.7):
            for dy in (-0.7, 0.0, 0.7):
                column = np.clip(place[:, 0] + dx, 0, self._size - 1).astype(np.int64)
                row = np.clip(place[:, 1] + dy, 0, self._size - 1).astype(np.int64)
                total += -self._depth[row, column] < point[:, 2] + 0.07
        return total / 9


def _car_shadow(
    mesh: Mesh, world: Floats, light: Daylight, long_side: int, holes: _Openings
) -> tuple[CarShadow, _SunView]:
    """What the car takes away from the light around it, and from its own."""
    size = int(np.clip(long_side * 0.55, 128, 528))
    metre = size / (2 * _MAP_HALF)
    view = _SunView(mesh, world, light.to_sun, size, holes)
    soft = _blur(view.covered.astype(np.float32), max(int(0.025 * metre), 1))
    # Seen from straight above, the car's outline gives the shade below it.
    flat = (world[:, :2] + _MAP_HALF) * metre
    above, _ = rasterise(flat, -world[:, 2], mesh.triangle, (size, size), cull=False)
    cover = (above >= 0).astype(np.float32)
    touching = world[:, 2][mesh.triangle].max(axis=1) < 0.12
    tyres, _ = rasterise(flat, -world[:, 2], mesh.triangle[touching], (size, size), cull=False)
    foot = _blur((tyres >= 0).astype(np.float32), max(int(0.04 * metre), 1))
    near, wide = _blur(cover, max(int(0.10 * metre), 1)), _blur(cover, max(int(0.32 * metre), 1))
    contact = 1 - (1 - 0.80 * near) * (1 - 0.62 * wide) * (1 - 0.85 * np.clip(1.6 * foot, 0, 1))
    ground = GroundMap(soft, _MAP_HALF), GroundMap(contact.astype(np.float32), _MAP_HALF)
    return CarShadow(*ground, light.to_sun), view


def _trace_surroundings(scene: Scene, camera: Camera, wanted: Bools) -> Floats:
    """Light of everything but the car, (height, width, 3), where `wanted`; elsewhere 0."""
    width, height = camera.size
    eye = camera.eye.astype(np.float32)
    pixel = 1.0 / camera.focal
    photo = np.zeros((height * width, 3), np.float32)
    surface = np.full(height * width, -1, np.int32)
    index = np.arange(height * width)
    px, py = index % width + 0.5, index // width + 0.5
    chosen = np.flatnonzero(wanted.ravel())
    for start in range(0, len(chosen), _BLOCK):
        part = chosen[start : start + _BLOCK]
        photo[part], surface[part] = scene.render(eye, camera.rays(px[part], py[part]), pixel)
    # Where neighbours differ in surface or strongly in brightness, take four finer samples.
    grid = surface.reshape(height, width)
    tone = np.sqrt(np.maximum(photo[:, 1], 0)).reshape(height, width)
    edge = np.zeros((height, width), bool)
    for axis in (0, 1):
        step = (np.diff(grid, axis=axis) != 0) | (np.abs(np.diff(tone, axis=axis)) > 0.09)
        first = [slice(None), slice(None)]
        second = [slice(None), slice(None)]
        first[axis], second[axis] = slice(None, -1), slice(1, None)
        edge[tuple(first)] |= step
        edge[tuple(second)] |= step
    where = np.flatnonzero((edge & wanted).ravel())
    for start in range(0, len(where), _BLOCK):
        part_index = where[start : start + _BLOCK]
        total = np.zeros((len(part_index), 3), np.float32)
        for dx, dy in ((-0.125, -0.375), (0.375, -0.125), (-0.375, 0.125), (0.125, 0.375)):
            rays = camera.rays(px[part_index] + dx, py[part_index] + dy)
            total += np.minimum(scene.render(eye, rays, pixel)[0], 2.0)
        photo[part_index] = total / 4
    return photo.reshape(height, width, 3)


def _render_car(
    plan: Plan,
    mesh: Mesh,
    world: Floats,
    scene: Scene,
    camera: Camera,
    holes: _Openings,
    sun_view: _SunView,
) -> tuple[Floats, Floats]:
    """The car's light per pixel, (height, width, 3), and its coverage from 0 to 1."""
    width, height = camera.size
    spot, away = camera.project(world)
    size = (width * _SAMPLES, height * _SAMPLES)
    spot = spot * _SAMPLES
    hit, _ = rasterise(spot, -1 / away, mesh.triangle, size, is_hole=holes)
    row, column = np.nonzero(hit >= 0)
    number = hit[row, column]
    tone = np.zeros((len(number), 3), np.float32)
    back = rotation(-plan.heading)
    for start in range(0, len(number), _BLOCK):
        part = slice(start, start + _BLOCK)
        corner = mesh.triangle[number[part]]
        weight = barycentric(spot, corner, column[part] + 0.5, row[part] + 0.5)
        weight = weight / away[corner]  # perspective-correct interpolation
        weight /= weight.sum(axis=1, keepdims=True)

        position = np.einsum("ij,ijk->ik", weight, mesh.position[corner])
        normal = np.einsum("ij,ijk->ik", weight, mesh.normal[corner])
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        place = np.einsum("ij,ijk->ik", weight, world[corner])
        ray = place - camera.eye
        ray /= np.linalg.norm(ray, axis=1, keepdims=True)
        world_normal = np.einsum("ij,kj->ki", back.T, normal)
        points = Points(
            mesh.part[number[part]],
            position.astype(np.float32),
            normal.astype(np.float32),
            np.einsum("ij,ijk->ik", weight, mesh.surface[corner]).astype(np.float32),
            np.einsum("ij,kj->ki", back, ray).astype(np.float32),
            sun_view.lit(place, world_normal),
        )
        tone[part] = shade_car(plan, scene, points)
    fine = np.zeros((size[1], size[0], 3), np.float32)
    fine[row, column] = np.clip(tone, 0, 2.5)
    blocks = (height, _SAMPLES, width, _SAMPLES)
    car = fine.reshape(*blocks, 3).mean(axis=(1, 3), dtype=np.float32)
    coverage = (hit >= 0).reshape(blocks).mean(axis=(1, 3), dtype=np.float32)
    return car, coverage


def _develop(photo: Floats, exposure: float, rng: np.random.Generator) -> Bytes:
    """Lens, sensor and tone curve: linear light to 8-bit RGB."""
    height, width = photo.shape[:2]
    long_side = max(height, width)
    # The lens blurs by about half a pixel at full size.
    blur = 0.16 * min(long_side / 960, 1.0)
    padded = np.pad(photo, ((1, 1), (0, 0), (0, 0)), mode="edge")
    photo = (1 - 2 * blur) * photo + blur * (padded[:-2] + padded[2:])
    padded = np.pad(photo, ((0, 0), (1, 1), (0, 0)), mode="edge")
    photo = (1 - 2 * blur) * photo + blur * (padded[:, :-2] + padded[:, 2:])
    y, x = np.mgrid[0:height, 0:width]
    radius = np.hypot(x - width / 2, y - height / 2) / (0.5 * np.hypot(width, height))
    photo = photo * (exposure * (1 - 0.22 * radius**2.5)).astype(np.float32)[..., None]
    # Shot noise grows with the square root of the light; a little is there in the dark too.
    grain = rng.standard_normal((height, width, 3), dtype=np.float32)
    photo = photo + grain * (0.004 * np.sqrt(np.maximum(photo, 0)) + 0.0012)
    # Filmic tone curve (Narkowicz 2015, fit of the ACES curve), then display gamma.
    light = np.maximum(photo, 0) * 0.85
    film = light * (2.51 * light + 0.03) / (light * (2.43 * light + 0.59) + 0.14)
    encoded = np.clip(film, 0, 1) ** (1 / 2.2)
    picture: Bytes = np.clip(encoded * 255 + 0.5, 0, 255).astype(np.uint8)
    return picture
