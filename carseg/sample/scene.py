"""The street around the car: ground, kerb, houses, hedges, poles, trees and sky.

World coordinates in metres: the car stands at the origin, the street runs along x, the camera
looks roughly along +y, z is up. Solids are convex and met analytically (Kay and Kajiya 1986,
slabs); everything smaller is procedural texture.
"""

from dataclasses import dataclass, field

import numpy as np

from carseg.sample.arrays import Floats, Ints
from carseg.sample.light import CarShadow, Daylight, along_sun, colour, mix, smoothstep
from carseg.sample.noise import Noise
from carseg.sample.texture import bricks, cover, leaves, stone

KERB_HEIGHT = 0.11
# What a ray meets: one of these, then a face of a solid, `FACES` numbers for each, then a tree.
SKY, STREET, BEYOND, KERB, FIRST_SOLID = 0, 1, 2, 3, 10
FACES = 8  # of a box 2 * axis, or one more where the axis is high; of a roof 6 and 7


@dataclass(frozen=True)
class Solid:
    """An axis-aligned box, optionally with a gabled roof whose ridge runs along x."""

    kind: str
    low: tuple[float, float, float]
    high: tuple[float, float, float]  # of the walls, without the roof
    colour: Floats
    second: Floats  # trim, roof or second wall colour
    pitch: float = 0.0  # roof slope, metres per metre; 0: flat
    seed: float = 0.0
    spacing: float = 2.6  # windows

    @property
    def ridge(self) -> float:
        """Height of the roof's ridge above the walls."""
        return 0.5 * (self.high[1] - self.low[1]) * self.pitch


@dataclass(frozen=True)
class Tree:
    """A crown drawn on an upright plane, and its trunk's foot."""

    x: float
    y: float
    height: float
    radius: float
    colour: Floats
    seed: float


@dataclass
class Scene:
    """Everything but the car."""

    light: Daylight
    noise: Noise
    shadow: CarShadow
    ground: str
    beyond: str  # ground behind the kerb
    kerb: float  # y of the kerb
    garden: float  # y where the pavement ends and lawns begin
    bays: tuple[float, ...]  # x of painted parking lines
    edge_line: float | None  # y of a line along the street
    patches: float  # dappled shade of trees out of sight, 0: none
    solids: list[Solid] = field(default_factory=list)
    trees: list[Tree] = field(default_factory=list)
    skyline: float = 8.0

    def dapple(self, point: Floats) -> Floats:
        """Share of the sun, (n,), that passes the leaves of trees out of sight."""
        if self.patches <= 0:
            return np.ones(len(point), np.float32)
        x, y = along_sun(point, self.light.to_sun)
        crown = self.noise.fractal(0.45 * x + 7, 0.45 * y + 3, 4)
        edge = 0.22 - 0.25 * self.patches
        shade: Floats = 1 - 0.85 * smoothstep(edge, edge + 0.10, crown)
        return shade

    def reflection(self, point: Floats, direction: Floats) -> Floats:
        """Radiance, (n, 3), that a glossy surface at `point` (n, 3) sees along `direction`."""
        up = direction[:, 2]
        sky = self.light.sky(np.where(up[:, None] < 0, -direction, direction), None)
        azimuth = np.arctan2(direction[:, 1], direction[:, 0]).astype(np.float32)
        steps = self.noise.cell(azimuth * 3.5, np.zeros_like(azimuth) + self.skyline)
        ragged = self.noise.fractal(azimuth * 5, np.zeros_like(azimuth) + 2, 4)
        height = 0.12 + 0.20 * steps + 0.12 * ragged
        town = (0.10 + 0.22 * steps)[:, None] * (self.light.horizon + 0.25 * self.light.sun)
        sky = mix(sky, town, 1 - smoothstep(height - 0.02, height + 0.04, up))
        # Downwards the ground appears, dark where the car itself keeps the light off.
        reach = np.minimum(point[:, 2] / np.maximum(-up, 0.02), 12.0)
        x = (point[:, 0] + direction[:, 0] * reach).astype(np.float32)
        y = (point[:, 1] + direction[:, 1] * reach).astype(np.float32)
        level = np.zeros_like(x)
        sunlit = self.shadow.sunlit(np.stack([x, y, level], axis=1))
        open_sky = 1 - self.shadow.contact.at(x, y)
        glow = self.light.ambient(np.array([[0, 0, 1]], np.float32))[0]
        lit = open_sky[:, None] * glow + sunlit[:, None] * self.light.sun * self.light.to_sun[2]
        floor = 0.17 * lit
        result: Floats = mix(floor, sky, smoothstep(-0.03, 0.02, up)).astype(np.float32)
        return result

    def render(self, eye: Floats, direction: Floats, pixel: float) -> tuple[Floats, Ints]:
        """Radiance (n, 3) and a surface number (n,) for unit rays (n, 3) from `eye` (3,).

        pixel: angle between neighbouring rays in radians; texture finer than that is left out.
        """
        count = len(direction)
        distance = np.full(count, np.inf, np.float32)
        surface = np.full(count, SKY, np.int32)
        with np.errstate(divide="ignore", invalid="ignore"):
            self._meet_ground(eye, direction, distance, surface)
            aside, rise = direction[:, 0] / direction[:, 1], direction[:, 2] / direction[:, 1]
            for number, solid in enumerate(self.solids):
                where = _toward_solid(solid, eye, aside, rise)
                if len(where):
                    t, face = _meet_solid(solid, eye, direction[where], distance[where])
                    hit = face >= 0
                    distance[where[hit]] = t[hit]
                    surface[where[hit]] = FIRST_SOLID + FACES * number + face[hit]
        first_tree = FIRST_SOLID + FACES * len(self.solids)
        for number, tree in enumerate(self.trees):
            self._meet_tree(tree, eye, direction, distance, surface, first_tree + number)

        result = np.zeros((count, 3), np.float32)
        for value in np.unique(surface):
            where = np.flatnonzero(surface == value)
            d, t = direction[where], distance[where]
            if value == SKY:
                result[where] = self._far(d)
                continue
            point = (eye + d * t[:, None]).astype(np.float32)
            if value < FIRST_SOLID:
                tone = self._shade_ground(point, d, t * pixel, int(value))
            elif value < first_tree:
                which, side = divmod(int(value) - FIRST_SOLID, FACES)
                tone = self._shade_solid(self.solids[which], side, point, d, t * pixel)
            else:
                tone = self._shade_tree(self.trees[value - first_tree], point)
            haze = 1 - np.exp(-t / 450.0)
            result[where] = mix(tone, self.light.horizon, haze.astype(np.float32))
        return result, surface

    # -- geometry ---------------------------------------------------------------------------

    def _meet_ground(self, eye: Floats, direction: Floats, distance: Floats, surface: Ints) -> None:
        down = direction[:, 2] < -1e-4
        raised = (KERB_HEIGHT - eye[2]) / direction[:, 2]
        beyond = down & (eye[1] + raised * direction[:, 1] >= self.kerb)
        street = -eye[2] / direction[:, 2]
        near = down & ~beyond & (eye[1] + street * direction[:, 1] < self.kerb)
        face = down & ~beyond & ~near
        for number, mask, t in (
            (STREET, near, street),
            (BEYOND, beyond, raised),
            (KERB, face, (self.kerb - eye[1]) / direction[:, 1]),
        ):
            distance[mask] = t[mask]
            surface[mask] = number

    def _meet_tree(
        self,
        tree: Tree,
        eye: Floats,
        direction: Floats,
        distance: Floats,
        surface: Ints,
        number: int,
    ) -> None:
        t = ((tree.y - eye[1]) / np.maximum(direction[:, 1], 1e-3)).astype(np.float32)
        x = eye[0] + t * direction[:, 0] - tree.x
        z = eye[2] + t * direction[:, 2]
        close = (t < distance) & (np.abs(x) < 1.5 * tree.radius) & (direction[:, 1] > 0)
        where = np.flatnonzero(close & (z < tree.height + 1.5) & (z > 0))
        leaf = self._crown(tree, x[where], z[where]) > 0
        trunk = np.abs(x[where] - 0.04 * np.sin(3 * z[where])) < 0.05 * tree.radius + 0.02
        trunk &= z[where] < tree.height - tree.radius
        hit = where[leaf | trunk]
        distance[hit] = t[hit]
        surface[hit] = number

    def _crown(self, tree: Tree, x: Floats, z: Floats) -> Floats:
        middle = tree.height - 0.95 * tree.radius
        r = np.hypot(x / tree.radius, (z - middle) / tree.radius).astype(np.float32)
        bumps = self.noise.fractal(1.1 * x + tree.seed, 1.1 * z, 6)
        density: Floats = 0.82 - r + 1.15 * bumps
        return density

    # -- appearance -------------------------------------------------------------------------

    def _far(self, direction: Floats) -> Floats:
        """Sky, with a row of distant trees and houses in front of it."""
        tone = self.light.sky(np.where(direction[:, 2:] < 0, -direction, direction), self.noise)
        t = 120.0 / np.maximum(direction[:, 1], 0.05)
        x, z = direction[:, 0] * t, direction[:, 2] * t
        ridge = self.skyline + 16 * self.noise.fractal(x * 0.02, 0 * x + 5, 6)
        hidden = 1 - smoothstep(ridge - 0.5, ridge + 0.5, z)
        wood = colour(0.30, 0.36, 0.28) * (0.6 * self.light.horizon + 0.2 * self.light.sun)
        crowns = 1 + 1.2 * self.noise.fractal(x * 0.3, z * 0.3, 4)
        far = mix(wood * crowns[:, None], 0.8 * self.light.horizon, np.full_like(x, 0.4))
        return mix(tone, far, hidden)

    def _light(
        self,
        albedo: Floats,
        point: Floats,
        normal: Floats,
        occlusion: Floats,
        direct: Floats | float = 1.0,
    ) -> Floats:
        """Diffuse light of the sun and the sky on surfaces (n, 3)."""
        toward = np.clip(np.einsum("ij,j->i", normal, self.light.to_sun), 0, 1) * direct
        if self.light.sun.max() > 0:
            toward = toward * self.shadow.sunlit(point) * self.dapple(point)
        lit = self.light.ambient(normal) * occlusion[:, None] + self.light.sun * toward[:, None]
        result: Floats = (albedo * lit).astype(np.float32)
        return result

    def _shade_ground(self, p: Floats, d: Floats, pixel: Floats, part: int) -> Floats:
        x, y = p[:, 0], p[:, 1]
        # At a grazing angle a pixel covers a long stretch of the ground.
        footprint = pixel / np.sqrt(np.maximum(-d[:, 2], 0.02))
        normal = np.zeros_like(p)
        normal[:, 2] = 1
        if part == KERB:
            normal[:] = (0, -1, 0)
            albedo = stone(self.noise, x, p[:, 2] * 0.2, footprint, colour(0.62, 0.61, 0.59))
        else:
            kind = self.ground if part == STREET else self.beyond
            albedo, tilt = cover(self.noise, kind, x, y, footprint)
            normal[:, :2] += tilt
            if part == BEYOND:
                lawn = np.flatnonzero(y > self.garden)
                albedo[lawn] = cover(self.noise, "grass", x[lawn], y[lawn], footprint[lawn])[0]
                edge = np.flatnonzero(y < self.kerb + 0.14)
                slab = stone(
                    self.noise, x[edge], y[edge], footprint[edge], colour(0.66, 0.65, 0.63)
                )
                slab[np.abs((x[edge] + 0.02) % 1.0) < 0.012] *= 0.6
                albedo[edge] = slab
            else:
                albedo = self._marks(albedo, x, y, footprint)
                gutter = smoothstep(self.kerb - 0.35, self.kerb, y)
                albedo = albedo * (1 - 0.3 * gutter)[:, None]
        blotch = 1 + 0.35 * self.noise.fractal(0.35 * x + 11, 0.35 * y, 4)
        # Skylight is missing under the car and in front of walls.
        open_sky = 1 - self.shadow.contact.at(x, y)
        for solid in self.solids:
            dx = np.maximum(np.maximum(solid.low[0] - x, x - solid.high[0]), 0)
            dy = np.maximum(np.maximum(solid.low[1] - y, y - solid.high[1]), 0)
            reach = 0.35 * min(solid.high[2] - solid.low[2], 3.0)
            open_sky = open_sky * (1 - 0.4 * np.exp(-np.hypot(dx, dy) / reach))
        return self._light(albedo * blotch[:, None], p, normal, open_sky.astype(np.float32))

    def _marks(self, albedo: Floats, x: Floats, y: Floats, footprint: Floats) -> Floats:
        if not self.bays and self.edge_line is None:
            return albedo
        line = np.zeros(len(x), np.float32)
        soft = np.maximum(footprint, 0.01)
        for bay in self.bays:
            line = np.maximum(line, smoothstep(0.05 + soft, 0.05 - soft, np.abs(x - bay)))
        line = line * (y > self.kerb - 5.2)
        if self.edge_line is not None:
            stroke = smoothstep(0.06 + soft, 0.06 - soft, np.abs(y - self.edge_line))
            line = np.maximum(line, stroke)
        wear = smoothstep(-0.22, 0.05, self.noise.fractal(6 * x, 6 * y, 5, 6 * footprint))
        return mix(albedo, colour(0.86, 0.86, 0.83), 0.9 * line * wear)

    def _shade_tree(self, tree: Tree, p: Floats) -> Floats:
        x, z = p[:, 0] - tree.x, p[:, 2]
        here = self._crown(tree, x, z)
        # The density's slope towards the sun tells the lit from the shaded side of a clump.
        side = np.float32(np.sign(self.light.to_sun[0]) * 0.25)
        beside = self._crown(tree, x + side, z + 0.25)
        lit = np.clip(0.45 + 1.3 * (here - beside), 0.05, 1.0)
        depth = np.clip(0.55 + 0.45 * (z - tree.height + 2 * tree.radius) / (2 * tree.radius), 0, 1)
        speckle = self.noise.value(9 * x, 9 * z) * self.noise.value(21 * x, 21 * z)
        albedo = tree.colour * (0.5 + 1.6 * speckle)[:, None]
        sky = self.light.ambient(np.array([[0, -0.3, 0.6]], np.float32))[0]
        leaf = albedo * (
            sky * (0.35 + 0.5 * lit * depth)[:, None]
            + self.light.sun * (0.7 * lit * depth)[:, None]
        )
        bark = colour(0.36, 0.30, 0.25) * (0.5 * sky + 0.3 * self.light.sun)
        round_off = 1 - 0.7 * np.clip(np.abs(x) / (0.05 * tree.radius + 0.02), 0, 1) ** 2
        grain = 0.7 + 0.6 * self.noise.value(40 * x, 5 * z)
        bark = bark * (round_off * grain)[:, None]
        result: Floats = np.where((here > 0)[:, None], leaf, bark).astype(np.float32)
        return result

    def _shade_solid(self, solid: Solid, face: int, p: Floats, d: Floats, pixel: Floats) -> Floats:
        if solid.kind == "house" and face < 4:
            return self._shade_wall(solid, face, p, d, pixel)
        normal = np.zeros_like(p)
        if face < 6:
            normal[:, face // 2] = 1 if face % 2 else -1
        else:
            normal[:] = np.array([0, -solid.pitch if face == 6 else solid.pitch, 1])
            normal /= np.linalg.norm(normal[0])
        along = p[:, 0] if face // 2 == 1 or face >= 6 else p[:, 1]
        foot = p[:, 2] - solid.low[2]
        occlusion = (1 - 0.4 * np.exp(-foot / 0.5)).astype(np.float32)
        n = self.noise
        if solid.kind == "hedge":
            albedo, tilt = leaves(n, along, p[:, 2] + p[:, 1] * (face == 5), pixel, solid.colour)
            normal = normal + tilt
            normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        elif face >= 6:
            row = p[:, 1] * np.hypot(1, solid.pitch) / 0.33
            fade = np.clip(1.3 - pixel * 8, 0, 1)
            tile = n.cell(along / 0.28, row)
            ridge = 0.75 + 0.35 * (row % 1.0)
            tone = 1 + fade * ((0.85 + 0.3 * tile) * ridge - 1)
            albedo = solid.second * tone[:, None]
        elif solid.kind == "fence":
            board = (along / 0.12) % 1.0
            gap = smoothstep(0.10, 0.04, np.minimum(board, 1 - board))
            tone = 0.75 + 0.4 * n.cell(along / 0.12, along * 0 + 3)
            tone = tone * (1 + 0.5 * n.fractal(along * 30, p[:, 2] * 2, 3, pixel * 30))
            albedo = (
                solid.colour * (tone * (1 - 0.8 * gap * np.clip(1.4 - pixel * 25, 0, 1)))[:, None]
            )
        elif solid.kind == "brickwork":
            albedo = bricks(n, along, p[:, 2], pixel, solid.colour)
        elif solid.kind == "striped":
            band = ((p[:, 2] * 2.2) % 1.0) < 0.5
            albedo = np.where(band[:, None], solid.colour, solid.second)
        else:
            grain = 1 + 0.25 * n.fractal(along * 4, p[:, 2] * 4, 4, pixel * 4)
            albedo = solid.colour * grain[:, None]
        return self._light(albedo, p, normal, occlusion)

    def _shade_wall(self, solid: Solid, face: int, p: Floats, d: Floats, pixel: Floats) -> Floats:
        """A house wall with windows, doors and garage doors set back into it."""
        n, light = self.noise, self.light
        across = 0 if face // 2 == 1 else 1
        s, z = p[:, across] - solid.low[across], p[:, 2] - solid.low[2]
        length = solid.high[across] - solid.low[across]
        normal = np.zeros_like(p)
        normal[:, face // 2] = 1 if face % 2 else -1
        columns = max(int(length / solid.spacing), 1)
        pitch = length / columns
        storey = 2.9
        column, floor = np.floor(s / pitch), np.floor(z / storey)
        u, v = (s - (column + 0.5) * pitch), z - floor * storey
        pick = n.cell(column + solid.seed, floor * 7 + face + solid.seed)
        top_floor = floor * storey + 2.6 > solid.high[2] - solid.low[2]
        garage = (floor == 0) & (pick > 0.72) & (pitch > 2.5)
        door = (floor == 0) & (pick > 0.52) & ~garage
        blank = top_floor | ((face // 2 == 0) & (pick > 0.4))
        half = np.where(garage, 0.42 * pitch, np.where(door, 0.5, 0.29 * pitch))
        bottom = np.where(garage | door, 0.0, 0.95)
        top = np.where(garage, 2.25, np.where(door, 2.15, 2.25))
        opening = ~blank & (np.abs(u) < half) & (v > bottom) & (v < top)

        if solid.seed % 3 > 1.8:
            wall = bricks(n, s, z, pixel, solid.colour)
        else:
            plaster = 1 + 0.10 * n.fractal(s * 6, z * 6, 4, pixel * 6)
            streak = 0.10 * n.fractal(s * 2.5 + 9, z * 0.3, 4)
            wall = solid.colour * (plaster + streak)[:, None]
        plinth = z < 0.45
        wall = np.where(plinth[:, None], 0.6 * solid.second + 0.1, wall)
        band = (np.abs(z - storey) < 0.09) & (solid.seed % 2 > 1)
        wall = np.where(band[:, None], colour(0.80, 0.79, 0.76), wall)
        frame_outside = ~opening & ~blank & (np.abs(u) < half + 0.10) & (v < top + 0.1)
        frame_outside &= v > bottom - 0.1
        wall = np.where(frame_outside[:, None], colour(0.84, 0.83, 0.80), wall)
        eaves = 1 - 0.45 * smoothstep(0.7, 0.0, solid.high[2] - p[:, 2])
        occlusion = (eaves * (1 - 0.35 * np.exp(-z / 0.6))).astype(np.float32)
        sill_shadow = (v > bottom - 0.22) & (v < bottom - 0.1) & ~door & ~garage
        direct = np.where(sill_shadow & ~opening & (np.abs(u) < half + 0.1) & ~blank, 0.4, 1.0)
        direct = direct * (0.35 + 0.65 * smoothstep(0.15, 0.25, solid.high[2] - p[:, 2]))
        tone = self._light(wall, p, normal, occlusion, direct.astype(np.float32))
        where = np.flatnonzero(opening)
        if not len(where):
            return tone

        # Follow the ray to the recessed pane; if it leaves the opening first, it met the reveal.
        recess = 0.16
        into = np.maximum(np.abs(d[where, face // 2]), 0.05)
        u2 = u[where] + d[where, across] * recess / into
        v2 = v[where] + d[where, 2] * recess / into
        half, bottom, top = half[where], bottom[where], top[where]
        reveal = (np.abs(u2) > half) | (v2 > top) | (v2 < bottom)
        # The lintel's and the jamb's shadow on the pane.
        slope = light.to_sun / max((1 if face % 2 else -1) * float(light.to_sun[face // 2]), 0.15)
        shade = (v2 + slope[2] * recess > top) | (np.abs(u2 + slope[across] * recess) > half)
        sunlit = np.where(shade, 0.0, 1.0).astype(np.float32)

        frame = np.minimum(np.minimum(half - np.abs(u2), v2 - bottom), top - v2) < 0.07
        bars = (np.abs(u2) < 0.035) | (np.abs(v2 - bottom - 0.72 * (top - bottom)) < 0.03)
        is_window = ~(garage | door)[where]
        frame = is_window & (frame | bars)
        mirrored = d[where].copy()
        mirrored[:, face // 2] *= -1
        glass = 0.35 * self.reflection(p[where], mirrored) + 0.015
        curtain_edge = 0.45 * half * (0.6 + pick[where])
        fold = 0.6 + 0.4 * np.sin(u2 * 45)
        curtain = is_window & (np.abs(u2) > half - curtain_edge) & (pick[where] > 0.2)
        glass = np.where(curtain[:, None], glass + 0.12 * fold[:, None] * light.horizon, glass)
        leaf = np.where(
            (garage[where])[:, None],
            colour(0.72, 0.73, 0.73) if solid.seed % 5 > 2 else colour(0.52, 0.42, 0.33),
            solid.second,
        )
        rib = (v2 / 0.28) % 1.0
        leaf = leaf * np.where(garage[where], 0.82 + 0.18 * smoothstep(0.0, 0.25, rib), 1)[:, None]
        panel = (np.abs(np.abs(u2) - 0.25) < 0.15) & (np.abs(v2 % 0.7 - 0.35) < 0.25)
        leaf = leaf * np.where(door[where] & panel, 0.75, 1.0)[:, None]
        solid_part = np.where(frame[:, None], colour(0.87, 0.87, 0.85), leaf)
        dim = np.full(len(where), 0.8, np.float32)
        solid_part = self._light(solid_part, p[where], normal[where], dim, sunlit)
        pane = np.where((is_window & ~frame)[:, None], glass, solid_part)
        side = self._light(0.8 * wall[where], p[where], normal[where], 0.6 * dim, 0.25)
        tone[where] = np.where(reveal[:, None], side, pane)
        return tone


def _toward_solid(solid: Solid, eye: Floats, aside: Floats, rise: Floats) -> Ints:
    """Numbers of the rays, given by their slopes x/y and z/y, that may meet the solid.

    All solids lie on the far side of the camera, so that slopes bound their outline.
    """
    reach = np.array([solid.low[1], solid.high[1]]) - eye[1]
    x = (np.array([[solid.low[0]], [solid.high[0]]]) - eye[0]) / reach
    z = (np.array([[solid.low[2]], [solid.high[2] + solid.ridge]]) - eye[2]) / reach
    if x.max() < aside.min() or x.min() > aside.max():
        return np.empty(0, np.intp)
    if z.max() < rise.min() or z.min() > rise.max():
        return np.empty(0, np.intp)
    inside = (aside >= x.min()) & (aside <= x.max()) & (rise >= z.min()) & (rise <= z.max())
    return np.flatnonzero(inside)


def _meet_solid(
    solid: Solid, eye: Floats, direction: Floats, distance: Floats
) -> tuple[Floats, Ints]:
    """Distance (n,) and face (n,) where rays enter the convex solid; face -1: not in front."""
    near = np.full(len(direction), -np.inf, np.float32)
    far = distance.copy()
    face = np.zeros(len(direction), np.int32)
    for axis in range(3):
        high = solid.high[axis] + (solid.ridge if axis == 2 else 0.0)
        step = direction[:, axis]
        a, b = (solid.low[axis] - eye[axis]) / step, (high - eye[axis]) / step
        entry, leave = np.minimum(a, b), np.maximum(a, b)
        later = entry > near
        near = np.where(later, entry, near)
        face = np.where(later, 2 * axis + (step < 0), face)
        far = np.minimum(far, leave)
    if solid.pitch > 0:
        middle = 0.5 * (solid.low[1] + solid.high[1])
        top = solid.high[2] + solid.ridge
        for sign, name in ((-1, 6), (1, 7)):
            speed = direction[:, 2] + sign * solid.pitch * direction[:, 1]
            t = (top - eye[2] - sign * solid.pitch * (eye[1] - middle)) / speed
            entering = speed < 0
            later = entering & (t > near)
            near = np.where(later, t, near)
            face = np.where(later, name, face)
            far = np.where(~entering, np.minimum(far, t), far)
    face[(near >= far) | (near <= 0)] = -1
    return near, face
