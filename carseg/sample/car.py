"""Car bodies as lofted triangle meshes.

The body is a loft: cross-sections perpendicular to the length axis, spaced by arc length along
the side-view outline and closed by rounded end caps (lofting and Chaikin's corner cutting are
textbook geometric modelling). Windows, lamps and seams are not geometry: `paint.py` draws them
per pixel from the surface coordinates stored here.

Car coordinates in metres: x forwards, y to the left, z up, origin on the ground between the axles.
"""

from dataclasses import dataclass

import numpy as np

from carseg.sample.arrays import Floats, Ints, rotation

BODY, WELL, WHEEL, MIRROR, RAIL = range(5)

# Section parameters: where along the half section, from keel (0) to roof centre (9), a region is.
SIDE_GLASS_FROM, SIDE_GLASS_TO, TOP_FROM = 6.0, 7.3, 7.7


@dataclass(frozen=True, kw_only=True)
class CarShape:
    """Proportions of one kind of car, in metres (see the module for the axes)."""

    name: str
    half_width: float
    axle: float  # distance of each axle from the origin
    wheel_radius: float
    clearance: float
    outline: tuple[tuple[float, float], ...]  # top edge seen from the side, rear to front
    belt: tuple[float, float]  # height of the window sill line at the rear and the front end
    side_glass: tuple[float, float, float]  # rear end, front end, lean of the rear end
    pillars: tuple[float, ...]  # x of the pillars between the side windows
    screen: tuple[float, float]  # x of the windscreen's lower and upper edge
    rear_screen: tuple[float, float]  # x of the rear window's lower and upper edge
    doors: tuple[float, ...]  # x of the upright door seams
    tumblehome: float = 0.34  # how far the side windows lean inwards, metres per metre
    cladding: bool = False  # unpainted wheel-arch and sill trim
    rails: bool = False
    bed: tuple[float, float] | None = None  # covered load bed of a pick-up, x from and to

    @property
    def rear(self) -> float:
        """Rearmost x of the loft, before the end cap."""
        return self.outline[0][0]

    @property
    def front(self) -> float:
        """Foremost x of the loft, before the end cap."""
        return self.outline[-1][0]

    @property
    def arch_radius(self) -> float:
        """Radius of the wheel-arch opening."""
        return self.wheel_radius + 0.055

    def belt_height(self, x: Floats) -> Floats:
        """Height of the window sill line at each x."""
        t = (x - self.rear) / (self.front - self.rear)
        return self.belt[0] + (self.belt[1] - self.belt[0]) * t


@dataclass(frozen=True)
class Mesh:
    """Triangles with smooth normals; n vertices and m triangles."""

    position: Floats  # (n, 3)
    normal: Floats  # (n, 3), unit length
    surface: Floats  # (n, 2): body: (x of the section, section parameter); wheel: (radius, angle)
    part: Ints  # (m,)
    triangle: Ints  # (m, 3)


SHAPES: tuple[CarShape, ...] = (
    CarShape(
        name="saloon", half_width=0.91, axle=1.40, wheel_radius=0.325, clearance=0.20,
        outline=(
            (-2.33, 0.93), (-2.28, 1.05), (-1.72, 1.09), (-0.85, 1.41), (-0.20, 1.455),
            (0.40, 1.41), (1.28, 0.99), (1.75, 0.91), (2.10, 0.80), (2.20, 0.68),
        ),
        belt=(0.98, 0.86), side_glass=(-1.42, 1.05, 0.55), pillars=(-0.32,),
        screen=(1.24, 0.42), rear_screen=(-1.66, -0.90), doors=(0.98, -0.30, -1.12),
    ),
    CarShape(
        name="hatchback", half_width=0.88, axle=1.28, wheel_radius=0.31, clearance=0.20,
        outline=(
            (-1.93, 0.80), (-1.90, 0.98), (-1.72, 1.20), (-1.36, 1.45), (-0.45, 1.50),
            (0.30, 1.45), (1.22, 1.00), (1.70, 0.90), (1.98, 0.78), (2.06, 0.66),
        ),
        belt=(1.02, 0.86), side_glass=(-1.42, 1.00, 0.35), pillars=(-0.22,),
        screen=(1.18, 0.34), rear_screen=(-1.84, -1.42), doors=(0.92, -0.18, -1.05),
    ),
    CarShape(
        name="suv", half_width=0.94, axle=1.36, wheel_radius=0.375, clearance=0.27,
        outline=(
            (-2.16, 0.92), (-2.13, 1.10), (-1.98, 1.33), (-1.68, 1.62), (-0.60, 1.70),
            (0.30, 1.66), (1.14, 1.16), (1.70, 1.08), (2.08, 0.96), (2.16, 0.80),
        ),
        belt=(1.16, 1.05), side_glass=(-1.78, 0.98, 0.25), pillars=(-0.26, -1.20),
        screen=(1.10, 0.34), rear_screen=(-2.08, -1.74), doors=(0.92, -0.22, -1.10),
        cladding=True, rails=True,
    ),
    CarShape(
        name="van", half_width=0.96, axle=1.62, wheel_radius=0.335, clearance=0.22,
        outline=(
            (-2.48, 1.05), (-2.46, 1.45), (-2.38, 1.84), (-2.22, 1.94), (-0.60, 1.98),
            (0.80, 1.93), (1.90, 1.16), (2.22, 1.02), (2.40, 0.84), (2.45, 0.70),
        ),
        belt=(1.16, 1.00), side_glass=(-2.10, 1.55, 0.10), pillars=(0.46, -0.95),
        screen=(1.84, 0.86), rear_screen=(-2.47, -2.36), doors=(1.45, 0.50, -0.90),
        tumblehome=0.20,
    ),
    CarShape(
        name="coupe", half_width=0.92, axle=1.30, wheel_radius=0.335, clearance=0.15,
        outline=(
            (-2.02, 0.84), (-1.98, 0.94), (-1.55, 1.00), (-0.55, 1.25), (-0.10, 1.285),
            (0.25, 1.25), (1.10, 0.89), (1.70, 0.80), (2.08, 0.68), (2.18, 0.56),
        ),
        belt=(0.92, 0.74), side_glass=(-1.02, 0.92, 0.75), pillars=(-0.42,),
        screen=(1.06, 0.27), rear_screen=(-1.40, -0.58), doors=(0.84, -0.48),
    ),
    CarShape(
        name="estate", half_width=0.91, axle=1.42, wheel_radius=0.33, clearance=0.20,
        outline=(
            (-2.34, 0.86), (-2.31, 1.04), (-2.15, 1.25), (-1.82, 1.43), (-0.60, 1.49),
            (0.42, 1.44), (1.30, 1.00), (1.78, 0.91), (2.12, 0.80), (2.22, 0.68),
        ),
        belt=(1.01, 0.86), side_glass=(-1.92, 1.06, 0.30), pillars=(-0.28, -1.22),
        screen=(1.26, 0.44), rear_screen=(-2.26, -1.86), doors=(0.99, -0.26, -1.16),
        rails=True,
    ),
    CarShape(
        name="pickup", half_width=0.94, axle=1.62, wheel_radius=0.385, clearance=0.30,
        outline=(
            (-2.66, 1.08), (-2.63, 1.13), (-2.40, 1.15), (-0.85, 1.15),
            (-0.80, 1.22), (-0.62, 1.68), (-0.10, 1.76), (0.50, 1.72),
            (1.24, 1.22), (1.90, 1.14), (2.22, 1.02), (2.30, 0.86),
        ),
        belt=(1.15, 1.10), side_glass=(-0.64, 1.08, 0.18), pillars=(0.18,),
        screen=(1.20, 0.54), rear_screen=(-0.80, -0.64), doors=(1.00, 0.22, -0.66),
        cladding=True, bed=(-2.52, -0.92),
    ),
)  # fmt: skip


def _round_corners(points: Floats, passes: int) -> Floats:
    """Chaikin's corner cutting along axis 0; both end points stay."""
    for _ in range(passes):
        first, second = points[:-1], points[1:]
        cut = np.stack([0.75 * first + 0.25 * second, 0.25 * first + 0.75 * second], axis=1)
        cut = cut.reshape(-1, *points.shape[1:])
        points = np.concatenate([points[:1], cut[1:-1], points[-1:]])
    return points


def smooth_outline(shape: CarShape) -> Floats:
    """The rounded side-view top edge, shape (n, 2) of (x, z), rear to front."""
    points = np.array(shape.outline)
    halves = np.empty((2 * len(points) - 1, 2))
    halves[::2] = points
    halves[1::2] = 0.5 * (points[:-1] + points[1:])
    return _round_corners(halves, 3)


def build_car(shape: CarShape, steer: float = 0.0) -> Mesh:
    """The whole car as one mesh; `steer` turns the front wheels, in radians."""
    meshes = [_body(shape)]
    for x in (-shape.axle, shape.axle):
        for side in (-1, 1):
            meshes.append(_wheel_well(shape, x, side))
            meshes.append(_wheel(shape, x, side, steer if x > 0 else 0.0))
    for side in (-1, 1):
        meshes.append(_mirror(shape, side))
        if shape.rails:
            meshes.append(_rail(shape, side))
    return _join(meshes)


def _body(shape: CarShape) -> Mesh:
    outline = smooth_outline(shape)
    length = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(outline, axis=0).T))])
    along = np.linspace(0, length[-1], 130)
    x, top = np.interp(along, length, outline[:, 0]), np.interp(along, length, outline[:, 1])

    # Stations: the rear cap, the loft itself, the front cap. A cap is the end section, first
    # rounded over an edge radius, then filled in towards its centre.
    radius = 0.11
    turn = np.linspace(0, np.pi / 2, 9)[1:]
    fill = np.linspace(1, 0.0005, 14)[1:]
    inset = np.concatenate([radius * (1 - np.cos(turn)), np.full(len(fill), radius)])
    out = np.concatenate([radius * np.sin(turn), radius + 0.02 * (1 - fill**2)])
    scale = np.concatenate([np.ones(len(turn)), fill])
    cap = len(inset)
    x_all = np.concatenate([np.full(cap, x[0]), x, np.full(cap, x[-1])])
    top_all = np.concatenate([np.full(cap, top[0]), top, np.full(cap, top[-1])])
    out_all = np.concatenate([-out[::-1], np.zeros(len(x)), out])
    inset_all = np.concatenate([inset[::-1], np.zeros(len(x)), inset])
    scale_all = np.concatenate([scale[::-1], np.ones(len(x)), scale])

    section, parameter = _sections(shape, x_all, top_all)
    y, z = section[..., 0], section[..., 1]
    bottom = shape.clearance
    centre = 0.5 * (bottom + top_all)[:, None]
    y_scale = scale_all[:, None] * (1 - inset_all[:, None] / shape.half_width)
    z_scale = scale_all[:, None] * (1 - inset_all[:, None] / (centre - bottom))
    y = y * y_scale
    z = centre + (z - centre) * z_scale

    # Panels swell a little around the wheels.
    for axle in (-shape.axle, shape.axle):
        distance = np.hypot(x_all[:, None] - axle, z - shape.wheel_radius)
        swell = 0.022 * np.exp(-(((distance - shape.arch_radius) / 0.11) ** 2))
        y = y + swell * np.clip(y / shape.half_width, 0, 1) ** 4 * (z < 1.1)

    # Seen from above both ends are bowed; seen from the side the upper nose leans back.
    station = np.broadcast_to(x_all[:, None], y.shape)
    span = station / np.where(station > 0, shape.front, -shape.rear)
    bow = np.where(station > 0, 0.20, 0.10) * np.abs(span) ** 3 * np.sign(station)
    lean = 0.25 * np.clip(z - 0.55, 0, None) ** 2 * (span > 0) * np.clip(span, 0, 1) ** 8
    x_final = station + out_all[:, None] - bow * y**2 - lean

    half = np.stack([x_final, y, z], axis=-1)
    v = np.broadcast_to(parameter, y.shape)
    surface = np.stack([station + out_all[:, None], v], axis=-1)
    return _join([_half_body(half, surface), _half_body(half * (1, -1, 1), surface)])


def _sections(shape: CarShape, x: Floats, top: Floats) -> tuple[Floats, Floats]:
    """Half sections (stations, points, 2) of (y, z), and the parameter of each point."""
    taper = 1 - 0.05 * np.abs(x / np.where(x > 0, shape.front, -shape.rear)) ** 4
    w = shape.half_width * taper
    low = np.full_like(x, shape.clearance)
    belt = np.minimum(shape.belt_height(x), top - 0.035)
    tall = top - belt
    tall_body = belt - low
    roof = 0.93 * w - shape.tumblehome * tall
    control = [
        (0 * w, low),
        (0.80 * w, low),
        (0.955 * w, low + 0.03),
        (0.995 * w, low + 0.35 * tall_body),
        (1.0 * w, low + 0.68 * tall_body),
        (0.985 * w, belt - 0.05),
        (0.93 * w, belt),
        (roof, top - 0.11 * tall),
        (roof - 0.09 - 0.02 * tall, top),
        (0 * w, top + 0.03),
    ]
    points = np.array(control).transpose(2, 0, 1)  # (stations, controls, 2)
    index = np.arange(len(control), dtype=float)
    # Extra points next to each corner keep the rounding tight.
    dense = np.sort(np.concatenate([index, index[1:] - 0.3, index[:-1] + 0.3]))
    lower = np.minimum(dense.astype(int), len(control) - 2)
    t = (dense - lower)[None, :, None]
    dense_points = points[:, lower] * (1 - t) + points[:, lower + 1] * t
    rounded = _round_corners(np.moveaxis(dense_points, 1, 0), 1)
    return np.moveaxis(rounded, 0, 1), _round_corners(dense, 1)


def _half_body(position: Floats, surface: Floats) -> Mesh:
    """Mesh of one side of the body, (rows, columns, 3), which ends at the plane of symmetry."""
    along, across = np.gradient(position, axis=0), np.gradient(position, axis=1)
    normal = np.cross(along, across)
    normal[:, [0, -1], 1] = 0.0  # there, as of both sides
    normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-12)
    from_middle = position.reshape(-1, 3) - np.array([0.0, 0.0, 0.7])
    outwards = np.einsum("ij,ij->", normal.reshape(-1, 3), from_middle)
    return _grid(position, normal * np.sign(outwards), surface, BODY)


def _grid(position: Floats, normal: Floats, surface: Floats, part: int) -> Mesh:
    """Mesh of a grid of points, (rows, columns, 3) as their normals; surface: (…, 2)."""
    rows, columns = position.shape[:2]
    index = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]
    triangle = np.concatenate(
        [np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)]
    )
    return Mesh(
        position.reshape(-1, 3),
        normal.reshape(-1, 3),
        surface.reshape(-1, 2),
        np.full(len(triangle), part, np.int32),
        triangle.astype(np.int32),
    )


def _lathe(profile: Floats, centre: Floats, side: int, segments: int, part: int) -> Mesh:
    """Turn a (axial, radius) profile about the y axis; axial grows towards the car's outside.

    The profile runs with the solid's inside on one hand: from the inner face over the rim to the
    outer face, normals point out of the solid.
    """
    angle = np.linspace(0, 2 * np.pi, segments + 1)
    axial, radius = profile[:, 0][:, None], profile[:, 1][:, None]
    x, z = radius * np.cos(angle), radius * np.sin(angle)
    position = np.stack([x, np.broadcast_to(side * axial, x.shape), z], axis=-1) + centre
    surface = np.stack(np.broadcast_arrays(radius, angle[None]), axis=-1)
    tangent = np.gradient(profile, axis=0)
    n_axial, n_radial = -tangent[:, 1][:, None], tangent[:, 0][:, None]
    normal = np.stack(
        np.broadcast_arrays(n_radial * np.cos(angle), side * n_axial, n_radial * np.sin(angle)),
        axis=-1,
    )
    normal = normal / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-12)
    return _grid(position, normal, surface, part)


def _wheel(shape: CarShape, x: float, side: int, steer: float) -> Mesh:
    r = shape.wheel_radius
    profile = np.array(
        [
            (-0.20, 0.20 * r),
            (-0.20, 0.92 * r),
            (-0.18, 0.98 * r),
            (-0.15, r),
            (-0.05, r),
            (-0.015, 0.985 * r),
            (0.0, 0.94 * r),
            (0.005, 0.86 * r),
            (0.0, 0.76 * r),
            (-0.005, 0.725 * r),
            (0.0, 0.70 * r),
            (-0.012, 0.675 * r),
            (-0.03, 0.66 * r),
            (-0.032, 0.55 * r),
            (-0.022, 0.35 * r),
            (-0.012, 0.2 * r),
            (-0.010, 0.1 * r),
            (-0.009, 0.002),
        ]
    )
    flat_y = side * (shape.half_width - 0.012)
    mesh = _lathe(profile, np.zeros(3), side, 56, WHEEL)
    turn = rotation(steer)
    pivot = np.array([0, -side * 0.1, 0])
    centre = np.array([x, flat_y, r])
    position = np.einsum("ij,kj->ki", turn, mesh.position - pivot) + pivot + centre
    normal = np.einsum("ij,kj->ki", turn, mesh.normal)
    surface = mesh.surface / (r, 1)
    return Mesh(position, normal, surface, mesh.part, mesh.triangle)


def _wheel_well(shape: CarShape, x: float, side: int) -> Mesh:
    r = shape.arch_radius + 0.004
    profile = np.array([(0.0, r), (-0.15, r), (-0.30, r), (-0.301, 0.6 * r), (-0.302, 0.002)])
    centre = np.array([x, side * (shape.half_width + 0.012), shape.wheel_radius])
    mesh = _lathe(profile, centre, side, 40, WELL)
    inwards = np.array([x, side * 2.0, shape.wheel_radius]) - mesh.position
    flip = np.sign(np.einsum("ij,ij->i", mesh.normal, inwards))[:, None]
    return Mesh(mesh.position, mesh.normal * flip, mesh.surface, mesh.part, mesh.triangle)


def _ellipsoid(centre: Floats, radii: Floats, power: float, part: int) -> Mesh:
    """A superellipsoid (Barr 1981): boxier for a smaller `power`."""
    u, v = np.meshgrid(np.linspace(-np.pi, np.pi, 25), np.linspace(-1.57, 1.57, 15), indexing="ij")

    def bend(values: Floats) -> Floats:
        return np.sign(values) * np.abs(values) ** power

    unit = np.stack(
        [bend(np.cos(v)) * bend(np.cos(u)), bend(np.cos(v)) * bend(np.sin(u)), bend(np.sin(v))],
        axis=-1,
    )
    normal = np.stack([np.cos(v) * np.cos(u), np.cos(v) * np.sin(u), np.sin(v)], -1) / radii
    normal = normal / np.linalg.norm(normal, axis=-1, keepdims=True)
    return _grid(unit * radii + centre, normal, np.zeros((*u.shape, 2)), part)


def _mirror(shape: CarShape, side: int) -> Mesh:
    x = shape.side_glass[1] - 0.12
    z = float(shape.belt_height(np.array(x))) + 0.08
    tall = 1.25 if shape.half_width > 0.93 else 1.0
    centre = np.array([x, side * (0.93 * shape.half_width + 0.09), z])
    return _ellipsoid(centre, np.array([0.07, 0.12, 0.075 * tall]), 0.7, MIRROR)


def _rail(shape: CarShape, side: int) -> Mesh:
    rear, front = shape.side_glass[0] + 0.15, shape.screen[1] - 0.15
    outline = smooth_outline(shape)
    x = np.linspace(rear, front, 30)
    top = np.interp(x, outline[:, 0], outline[:, 1])
    tall = top - shape.belt_height(x)
    y = 0.93 * shape.half_width - shape.tumblehome * tall - 0.10
    end = np.clip(np.minimum(x - rear, front - x) / 0.12, 0, 1)
    z = top - 0.035 + 0.06 * end
    angle = np.linspace(0, 2 * np.pi, 9)
    ring_y = side * y[:, None] + 0.018 * np.cos(angle)
    ring_z = z[:, None] + 0.018 * np.sin(angle)
    position = np.stack([np.broadcast_to(x[:, None], ring_y.shape), ring_y, ring_z], -1)
    normal = position - np.stack([x, side * y, z], -1)[:, None]
    normal = normal / np.linalg.norm(normal, axis=-1, keepdims=True)
    return _grid(position, normal, np.zeros((*ring_y.shape, 2)), RAIL)


def _join(meshes: list[Mesh]) -> Mesh:
    offsets = np.cumsum([0] + [len(mesh.position) for mesh in meshes[:-1]])
    triangle = np.concatenate(
        [mesh.triangle + offset for mesh, offset in zip(meshes, offsets, strict=True)]
    )
    position = np.concatenate([mesh.position for mesh in meshes])
    normal = np.concatenate([mesh.normal for mesh in meshes])
    # One winding for all: counter-clockwise seen from where the smooth normal points.
    corner = position[triangle]
    face = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    backwards = np.einsum("ij,ij->i", face, normal[triangle].sum(axis=1)) < 0
    triangle[backwards] = triangle[backwards][:, ::-1]
    return Mesh(
        position,
        normal,
        np.concatenate([mesh.surface for mesh in meshes]),
        np.concatenate([mesh.part for mesh in meshes]),
        triangle.astype(np.int32),
    )
