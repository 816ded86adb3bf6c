"""What the car's surface is made of at each visible point, and how it answers the light.

Windows and seams are drawn analytically in car coordinates on the visible points (deferred
shading with decals); `trim` adds lamps, grille, plates and wheels in the same way.
"""

import numpy as np

from carseg.sample.arrays import Bools, Floats
from carseg.sample.car import (
    BODY,
    MIRROR,
    RAIL,
    SIDE_GLASS_FROM,
    SIDE_GLASS_TO,
    TOP_FROM,
    WELL,
    WHEEL,
    smooth_outline,
)
from carseg.sample.layout import Plan
from carseg.sample.light import colour, smoothstep
from carseg.sample.scene import Scene
from carseg.sample.surface import Points, Surface
from carseg.sample.trim import (
    CHROME,
    PLASTIC,
    RUBBER,
    draw_front,
    draw_rear,
    draw_wheels,
    rounded_box,
)


def shade_car(plan: Plan, scene: Scene, points: Points) -> Floats:
    """Radiance (n, 3) of visible points of the car."""
    finish, normal = plan.finish, points.normal
    s = Surface.painted(finish.paint, normal)
    body = points.part == BODY
    if body.any():
        _body(s, plan, scene, body, points)
    wheel = points.part == WHEEL
    if wheel.any():
        draw_wheels(s, finish, wheel, points)
    well = points.part == WELL
    s.lay(well, colour(0.07, 0.07, 0.07), 0.0, 0.0)
    s.cavity[well] = 0.25
    rail = points.part == RAIL
    s.lay(rail, PLASTIC if not finish.chrome else CHROME, 0.3 if finish.chrome else 0.05)
    mirror = points.part == MIRROR
    s.lay(mirror & (normal[:, 0] < -0.75), colour(0.1, 0.11, 0.12), 0.6, 1.0)
    s.lay(mirror & (normal[:, 2] < -0.45), PLASTIC)
    return _light(s, plan, scene, points)


def _body(s: Surface, plan: Plan, scene: Scene, body: Bools, points: Points) -> None:
    shape, finish, p = plan.shape, plan.finish, points.position
    x, y, z = points.surface[:, 0], p[:, 1], p[:, 2]
    v, side, normal = points.surface[:, 1], np.abs(p[:, 1]), s.normal
    outline = smooth_outline(shape)
    top = np.interp(x, outline[:, 0], outline[:, 1]).astype(np.float32)
    slope = np.gradient(outline[:, 1]) / np.maximum(np.gradient(outline[:, 0]), 1e-6)
    lean = np.interp(x, outline[:, 0], slope)
    belt = np.minimum(shape.belt_height(x), top - 0.035).astype(np.float32)
    flank = body & (v > 1.5) & (v < SIDE_GLASS_FROM) & (np.abs(normal[:, 1]) > 0.5)
    front, rear = body & (normal[:, 0] > 0.35), body & (normal[:, 0] < -0.35)

    # A character line along the flank, and a fold in the bonnet.
    crease = z - (belt - 0.13 + 0.012 * x)
    normal[:, 2] += flank * 0.30 * np.exp(-(((crease - 0.03) / 0.035) ** 2))
    normal[:, 2] -= flank * 0.22 * np.exp(-(((crease + 0.035) / 0.05) ** 2))
    lower = z - (shape.clearance + 0.20)
    normal[:, 2] += flank * 0.25 * np.exp(-((lower / 0.05) ** 2))
    bonnet = body & (v > TOP_FROM) & (x > shape.screen[0])
    fold = side - (0.50 + 0.06 * (x - shape.screen[0]))
    normal[:, 1] += bonnet * np.sign(y) * 0.16 * np.exp(-((fold / 0.05) ** 2))
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)

    # Doors, fuel cap, handles.
    low_edge, line = shape.clearance + 0.13, 0.0055
    doors = np.zeros(len(x), bool)
    for number, door in enumerate(shape.doors):
        bend = door + (0.10 * np.clip(z - 0.5, 0, 1) if number == 0 else 0.02 * z)
        seam = np.abs(x - bend) < line
        last = number == len(shape.doors) - 1 and door < -0.8
        if last:
            reach = np.hypot(x - shape.axle * np.sign(door), z - shape.wheel_radius)
            ring = shape.arch_radius + 0.075
            around = (np.abs(reach - ring) < line) & (x > bend)
            seam = (seam & (reach > ring)) | around
        doors |= seam & (z > low_edge)
    span = (x < shape.doors[0] + 0.04) & (x > shape.doors[-1])
    doors |= span & (np.abs(z - low_edge) < line)
    doors &= flank
    handles = np.zeros(len(x), bool)
    for door in shape.doors[1:]:
        grip = rounded_box(x - door - 0.20, z - (belt - 0.10), 0.105, 0.017, 0.014)
        handles |= flank & (grip < 0)
        normal[flank & (grip < 0), 2] += 0.5
        hollow = rounded_box(x - door - 0.20, z - (belt - 0.115), 0.085, 0.035, 0.03)
        s.albedo[flank & (grip >= 0) & (hollow < 0)] *= 0.55
    if finish.chrome:
        s.lay(handles, CHROME, 0.6, 0.8, 1.0)
    cap = np.hypot(x + shape.axle + 0.12, z - belt + 0.14) - 0.075
    doors |= flank & (y < 0) & (np.abs(cap) < 0.004)
    sill_height = float(shape.belt[0])
    flap = 0.5 * (sill_height + 0.02 - shape.clearance - 0.30)
    outline_gap = rounded_box(y, z - sill_height - 0.02 + flap, 0.64, flap, 0.05)
    hatch = rear & (np.abs(outline_gap) < 0.006) & (z < sill_height - 0.05)
    bonnet_gap = body & (x > shape.screen[0] + 0.25) & (v > 6.12) & (v < 6.24)
    nose_gap = front & (np.abs(z - (top - 0.10)) < 0.006) & (side < 0.75) & (x > shape.front - 0.1)

    # Unpainted sills, arches and bumper edges.
    sill = flank & (z < shape.clearance + (0.17 if shape.cladding else 0.06))
    distance = np.hypot(np.abs(x) - shape.axle, z - shape.wheel_radius)
    lip = shape.arch_radius + (0.065 if shape.cladding else 0.0)
    arch = body & (v > 1.2) & (v < 6) & (distance < lip)
    bumper_edge = (front | rear) & (z < shape.clearance + (0.20 if shape.cladding else 0.09))
    underside = body & (v < 1.5) & (normal[:, 2] < -0.5)
    s.lay(sill | arch | bumper_edge | underside, PLASTIC, 0.04, 0.25)

    s.lay(doors | hatch | bonnet_gap | nose_gap, colour(0.05, 0.05, 0.05), 0.0, 0.0)
    draw_front(s, shape, finish, front, x, y, z)
    draw_rear(s, shape, finish, rear, x, y, z, top)
    if shape.bed:
        within = (x > shape.bed[0]) & (x < shape.bed[1]) & (side < 0.80)
        s.lay(body & (v > TOP_FROM) & within, colour(0.13, 0.13, 0.14), 0.02, 0.2)

    # Side windows: what lies between sill line, roof and the end pillars.
    down = (top - z) / np.sqrt(1 + lean**2)
    rear_end = shape.side_glass[0] + shape.side_glass[2] * (z - belt)
    inset = np.minimum.reduce(
        [z - belt - 0.025, down - 0.085, x - rear_end, shape.side_glass[1] - x]
    )
    window = body & (v > SIDE_GLASS_FROM) & (v < SIDE_GLASS_TO + 0.6) & (inset > -0.03)
    glass = window & (inset > 0.0)
    for pillar in shape.pillars:
        glass &= np.abs(x - pillar - 0.06 * (z - belt)) > 0.035
    s.lay(window, PLASTIC, 0.05, 0.6)
    if finish.chrome:
        s.lay(window & (z < belt + 0.012) & (z > belt - 0.03), CHROME, 0.6, 0.9, 1.0)

    # Windscreen and rear window lie on the roof's side of the section.
    for base, upper in (shape.screen, shape.rear_screen):
        low, high = min(base, upper), max(base, upper)
        limit = (0.93 * shape.half_width - shape.tumblehome * (top - belt)) - 0.085
        edge = np.minimum.reduce([x - low, high - x, limit - side])
        pane = body & (v > SIDE_GLASS_TO + 0.5) & (edge > 0)
        s.lay(pane, PLASTIC, 0.05, 0.8)
        glass |= pane & (edge > 0.012) & (limit - side > 0.03)
        if base == shape.screen[0]:
            sweep = np.abs((base - x) - 0.10 - 0.07 * np.abs(np.sin(2.2 * y + 0.6)))
            s.lay(pane & (sweep < 0.010) & (side < 0.62), RUBBER, 0.02, 0.2)
            glass &= ~(pane & (sweep < 0.010) & (side < 0.62))
    s.lay(glass, colour(0.06, 0.07, 0.07), 0.085, 1.0)
    where = np.flatnonzero(glass)
    if len(where):
        s.glow[where] = _through(plan, scene, p[where], points.view[where])


def _through(plan: Plan, scene: Scene, p: Floats, view: Floats) -> Floats:
    """Light seen through a window: seats, and the bright windows on the far side."""
    shape = plan.shape
    belt = shape.belt_height(p[:, 0])
    outline = smooth_outline(shape)
    tone = np.full((len(p), 3), 0.012, np.float32) * scene.light.horizon
    # The ray goes on to the windows of the opposite side.
    step = np.where(np.abs(view[:, 1]) < 0.02, 0.02, view[:, 1])
    far_y = np.sign(step) * 0.62
    t = (far_y - p[:, 1]) / step
    x, z = p[:, 0] + view[:, 0] * t, p[:, 2] + view[:, 2] * t
    top = np.interp(x, outline[:, 0], outline[:, 1])
    inside = np.minimum.reduce(
        [z - belt - 0.03, top - z - 0.12, x - shape.side_glass[0] - 0.2, shape.side_glass[1] - x]
    )
    clear = smoothstep(0.0, 0.02, inside.astype(np.float32)) * (t > 0.05)
    for pillar in shape.pillars:
        clear = clear * (np.abs(x - pillar) > 0.06)
    # Along the car the light comes in through windscreen and rear window.
    long_view = np.abs(view[:, 0]) > 0.75
    t_long = (np.where(view[:, 0] > 0, shape.side_glass[1], shape.side_glass[0]) - p[:, 0]) / (
        np.where(np.abs(view[:, 0]) < 0.02, 0.02, view[:, 0])
    )
    z_long, y_long = p[:, 2] + view[:, 2] * t_long, p[:, 1] + view[:, 1] * t_long
    hole = np.minimum(z_long - belt - 0.06, belt + 0.36 - z_long)
    hole = np.minimum(hole, 0.55 - np.abs(y_long)).astype(np.float32)
    clear = np.maximum(clear, smoothstep(0, 0.03, hole) * long_view * (shape.bed is None))
    cos, sin = np.cos(plan.heading), np.sin(plan.heading)
    world = np.stack(
        [view[:, 0] * cos - view[:, 1] * sin, view[:, 0] * sin + view[:, 1] * cos, view[:, 2]], 1
    ).astype(np.float32)
    beyond = scene.reflection(p, world)
    # Two rows of seats with head rests, on the ray's crossing of both seat planes.
    seat = np.zeros(len(p), bool)
    for lateral in (-0.36, 0.36):
        t = (lateral - p[:, 1]) / step
        for row in (0.0, -0.85):
            x = p[:, 0] + view[:, 0] * t - (shape.side_glass[1] - 1.25 + row)
            z = p[:, 2] + view[:, 2] * t - belt
            rest = rounded_box(x + 0.25 * z, z - 0.19, 0.06, 0.11, 0.05)
            back = rounded_box(x + 0.25 * z, z + 0.12, 0.09, 0.20, 0.06)
            seat |= (np.minimum(rest, back) < 0) & (t > 0)
        for row in (0.0, -0.85):
            plane = shape.side_glass[1] - 1.25 + row
            t = (plane - p[:, 0]) / np.where(np.abs(view[:, 0]) < 0.02, 0.02, view[:, 0])
            y = p[:, 1] + view[:, 1] * t - lateral
            z = p[:, 2] + view[:, 2] * t - belt
            rest = rounded_box(y, z - 0.19, 0.13, 0.10, 0.06)
            back = rounded_box(y, z + 0.12, 0.24, 0.20, 0.08)
            seat |= (np.minimum(rest, back) < 0) & (t > 0) & long_view
    glow = np.where(seat[:, None], 0.02 * scene.light.horizon, tone)
    result: Floats = (glow + 0.42 * (clear * ~seat)[:, None] * beyond).astype(np.float32)
    return result


def _light(s: Surface, plan: Plan, scene: Scene, points: Points) -> Floats:
    cos, sin = np.float32(np.cos(plan.heading)), np.float32(np.sin(plan.heading))
    part, cavity = points.part, s.cavity

    def to_world(v: Floats) -> Floats:
        turned = np.stack(
            [v[:, 0] * cos - v[:, 1] * sin, v[:, 0] * sin + v[:, 1] * cos, v[:, 2]], axis=1
        )
        return turned.astype(np.float32)

    light = scene.light
    point, normal, ray = map(to_world, (points.position, s.normal, points.view))
    facing = np.clip(-np.einsum("ij,ij->i", normal, ray), 0.0, 1.0)
    # Near the ground and facing down the car stands in its own shade.
    height = np.clip(points.position[:, 2] / 0.9, 0, 1)
    openness = np.clip(0.5 + 0.5 * normal[:, 2] + 0.5 * height, 0.12, 1.0)
    occlusion = (0.30 + 0.70 * openness) * cavity * (0.55 + 0.45 * height)

    toward = np.einsum("ij,j->i", normal, light.to_sun)
    direct = points.self_shadow * scene.dapple(point) * smoothstep(-0.02, 0.10, toward)
    ambient = light.ambient(normal) * occlusion[:, None]
    diffuse = ambient + light.sun * (np.clip(toward, 0, 1) * direct * cavity)[:, None]

    mirrored = (ray + 2 * facing[:, None] * normal).astype(np.float32)
    mirrored /= np.linalg.norm(mirrored, axis=1, keepdims=True)
    seen = scene.reflection(point, mirrored)
    blurred = light.ambient(mirrored)
    seen = blurred + (seen - blurred) * s.gloss[:, None]
    # Schlick's approximation of Fresnel reflection (1994), and Blinn's highlight (1977).
    fresnel = s.mirror + (1 - s.mirror) * (1 - facing) ** 5 * (0.25 + 0.75 * s.gloss)
    fresnel = np.where(part == WELL, 0, fresnel) * (0.4 + 0.6 * cavity)
    half = light.to_sun - ray
    half /= np.linalg.norm(half, axis=1, keepdims=True)
    spot = np.clip(np.einsum("ij,ij->i", half, normal), 0, 1)
    shine = (spot**350 * 14 * s.gloss + spot**40 * 0.5 * (0.2 + 0.8 * s.gloss)) * direct
    tint = 1 + (s.albedo - 1) * s.metal[:, None]

    # Metallic paint scatters a broad highlight in its own colour below the clear coat.
    painted = ((part == BODY) | (part == MIRROR)) & (s.gloss == 1.0) & (s.mirror < 0.07)
    flake = plan.finish.metallic * painted * (0.30 * facing**2)
    flakes = s.albedo * (
        blurred * occlusion[:, None] + light.sun * (2.0 * spot**12 * direct)[:, None]
    )
    below = s.albedo * diffuse * (1 - 0.8 * s.metal)[:, None] + s.glow
    result = below * (1 - fresnel)[:, None] + flakes * flake[:, None]
    shade = np.clip(0.35 + 0.65 * occlusion, 0, 1)
    result = result + tint * seen * (fresnel * shade)[:, None]
    result = result + tint * light.sun * (shine * np.maximum(fresnel, s.mirror))[:, None]
    shaded: Floats = result.astype(np.float32)
    return shaded
