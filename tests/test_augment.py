"""Augmentation: repeatable by its seed, and the mask goes where the photo goes."""

import albumentations as A
import numpy as np
import pytest
from conftest import ellipse
from numpy.typing import NDArray
from scipy import ndimage

from carseg.augment import (
    ALTERED,
    CAR_SCALES,
    MARGINS,
    Augment,
    camouflage,
    composite,
    crop_to_car,
    mean_colour,
    put_behind,
    put_elsewhere,
)

Array = NDArray[np.uint8]
SIZE = 96
SEEDS = range(20)
CAR = ellipse(SIZE, SIZE, seed=2)


def soft_mask() -> Array:
    """A mask whose edge is grey, as averaging over areas leaves it."""
    mask = np.where(CAR, 255, 0).astype(np.uint8)
    return np.mean([np.roll(mask, (y, x), (0, 1)) for y in (0, 1) for x in (0, 1)], axis=0).astype(
        np.uint8
    )


def pair() -> tuple[Array, Array]:
    """A photo that shows its own mask: a red car in a grey street."""
    photo = np.where(CAR[..., None], (235, 75, 65), (65, 75, 70)).astype(np.uint8)
    return photo, soft_mask()


@pytest.fixture(scope="module")
def augmented() -> list[tuple[Array, Array]]:
    augment = Augment()
    return [augment(*pair(), seed) for seed in SEEDS]


def test_the_same_seed_gives_the_same_whatever_came_before(
    augmented: list[tuple[Array, Array]],
) -> None:
    fresh, used = Augment(), Augment()
    for seed in (3, 5, 8):
        used(*pair(), seed + 100)
        for augment in (fresh, used):
            photo, mask = augment(*pair(), seed)
            assert np.array_equal(photo, augmented[seed][0])
            assert np.array_equal(mask, augmented[seed][1])


def test_other_seeds_give_others(augmented: list[tuple[Array, Array]]) -> None:
    # Some agree: those that are left as they are.
    assert len({photo.tobytes() for photo, _ in augmented}) > 12
    assert len({mask.tobytes() for _, mask in augmented}) > 12
    cars = {photo[mask == 255].mean(axis=0).round().tobytes() for photo, mask in augmented}
    assert len(cars) > 10, "as if they were only turned and shifted"


def test_some_photos_are_left_as_they_are() -> None:
    augment, (photo, mask) = Augment(), pair()
    looks = [augment(photo, mask, seed) for seed in range(300)]
    alone = [np.array_equal(look, photo) and np.array_equal(said, mask) for look, said in looks]
    assert np.mean(alone) == pytest.approx(1 - ALTERED, abs=0.08)


def test_what_changes_a_photo_is_drawn_one_by_one() -> None:
    class Telling(A.Compose):  # which of the transforms it has applied
        def __call__(self, **data: Array) -> dict[str, Array]:
            result: dict[str, Array] = super().__call__(**data)
            applied = {name for name, _ in result["applied_transforms"]}
            chosen.append(applied | {"one of them"} if applied & one_of else applied)
            return result

    chosen: list[set[str]] = []
    one_of = {"GaussianBlur", "GaussNoise", "ImageCompression"}
    augment = Augment()
    augment._compose = Telling(augment._compose.transforms, save_applied_params=True)
    for seed in range(300):
        augment(*pair(), seed)
    looks = {"D4": 0.5, "Affine": 0.7, "ColorJitter": 0.7, "RandomShadow": 0.3, "one of them": 0.2}
    assert one_of <= set().union(*chosen)
    shares = {name: share / ALTERED for name, share in looks.items()}
    for one, share in shares.items():
        assert np.mean([one in names for names in chosen]) == pytest.approx(share, abs=0.08)
        for other in shares.keys() - {one}:
            among = [one in names for names in chosen if other in names]
            assert np.mean(among) == pytest.approx(share, abs=0.15), f"{one} goes by {other}"


def test_numpys_own_generator_has_no_say_and_is_left_alone() -> None:
    before = np.random.get_state()
    Augment()(*pair(), 1)
    after = np.random.get_state()
    assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))


def test_the_mask_follows_the_photo_to_a_part_of_a_pixel() -> None:
    augment, (_, mask) = Augment(), pair()
    augment._compose = A.Compose(augment._compose.transforms[:2])  # what moves pixels
    showing = np.dstack([mask, mask, np.zeros_like(mask)])
    for seed in SEEDS:
        photo, moved = augment(showing, mask, seed)
        inside = photo[..., 2] == 0  # and not what is beyond the photo's edge
        difference = np.abs(photo[..., 0].astype(int) - moved)
        assert difference[inside].max() <= 1, seed
        assert not moved[~inside].any()


def test_cars_are_shifted_scaled_and_rotated() -> None:
    augment, mask, found = Augment(), np.zeros((SIZE, SIZE), np.uint8), []
    augment._compose = A.Compose(augment._compose.transforms[1:2])
    mask[36:60, 24:72] = 255
    for seed in range(60):
        y, x = np.nonzero(augment(np.dstack([mask] * 3), mask, seed)[1] > 127)
        (xx, xy), (_, yy) = np.cov(x, y)
        angle = np.degrees(np.arctan2(2 * xy, xx - yy)) / 2
        found.append((x.mean(), y.mean(), xx**0.5, angle))
    assert (np.ptp(found, axis=0) > (8, 8, 3, 11)).all()


def test_shadows_fall_anywhere() -> None:
    augment, grey = Augment(), np.full((SIZE, SIZE, 3), 150, np.uint8)
    augment._compose = A.Compose(augment._compose.transforms[3:4])
    dark = [(augment(grey, grey[..., 0], seed)[0] < 150).any(axis=-1) for seed in range(60)]
    above, below = np.split(np.mean(dark, axis=(0, 2)), 2)
    assert above.mean() == pytest.approx(below.mean(), rel=0.4)


def test_shapes_and_types_stay(augmented: list[tuple[Array, Array]]) -> None:
    for photo, mask in augmented:
        assert (photo.shape, photo.dtype) == ((SIZE, SIZE, 3), np.uint8)
        assert (mask.shape, mask.dtype) == ((SIZE, SIZE), np.uint8)


def test_the_sources_stay_as_they_were() -> None:
    photo, mask = pair()
    augment = Augment()
    for seed in range(5):
        augment(photo, mask, seed)
    assert np.array_equal(photo, pair()[0])
    assert np.array_equal(mask, pair()[1])


def test_all_ways_to_hold_the_camera_occur() -> None:
    # A marked corner of the mask: where it comes to lie tells turns, and flips turn it over.
    photo = np.zeros((SIZE, SIZE, 3), np.uint8)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[: SIZE // 2, : SIZE // 2], mask[: SIZE // 2, SIZE // 2 :] = 250, 120
    augment = Augment()
    seen = set()
    for seed in range(200):
        _, found = augment(photo, mask, seed)
        middle = found[SIZE // 4 :: SIZE // 2, SIZE // 4 :: SIZE // 2]
        seen.add(tuple((middle.astype(int) // 100).flatten().tolist()))
    assert {
        (2, 1, 0, 0), (1, 2, 0, 0), (0, 0, 2, 1), (0, 0, 1, 2),
        (2, 0, 1, 0), (0, 2, 0, 1), (1, 0, 2, 0), (0, 1, 0, 2),
    } <= seen  # fmt: skip


def scene(seed: int, size: int = 64) -> tuple[Array, Array]:
    """A disc of one bright colour on black, and its mask."""
    random = np.random.default_rng(seed)
    y, x = np.ogrid[:size, :size]
    mask = np.where((y - size // 2) ** 2 + (x - size // 2) ** 2 < (size // 4) ** 2, 255, 0)
    colour = random.integers(100, 256, 3)
    return (mask[..., None] // 255 * colour).astype(np.uint8), mask.astype(np.uint8)


def test_a_car_put_behind_covers_background_only() -> None:
    (photo, mask), (other, other_mask) = scene(1), scene(2)
    changed = 0
    for seed in range(20):
        before = photo.copy()
        mixed = put_behind(photo, mask, other, other_mask, np.random.default_rng(seed))
        assert mixed.dtype == np.uint8
        assert np.array_equal(photo, before), "the cached photo is left alone"
        assert np.array_equal(mixed[mask == 255], photo[mask == 255])
        added = (mixed != photo).any(axis=-1)
        colours = mixed[added]
        assert (colours <= other.max(axis=(0, 1)) + 1).all()
        # Smaller than its own size by CAR_SCALES, in each direction.
        assert added.sum() <= CAR_SCALES[1] ** 2 * (other_mask > 0).sum() * 1.2
        changed += bool(added.any())
    assert changed >= 10


def test_of_a_car_put_behind_its_own_pixels_are_taken_flipped_or_not() -> None:
    photo, mask = scene(1)
    other, other_mask = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
    other[:] = (0, 0, 255)  # what is around it
    for part in (np.s_[16:48, 16:28], np.s_[36:48, 16:48]):  # an L
        other[part], other_mask[part] = (0, 255, 0), 255
    other[other_mask > 0, 0] = 255 * (np.nonzero(other_mask)[1] < 28)  # its left part is yellow
    seen, flips = 0, set()
    for seed in range(20):
        mixed = put_behind(photo, mask, other, other_mask, np.random.default_rng(seed))
        at = (mixed != photo).any(axis=-1)
        added = mixed[at].astype(int)
        seen += len(added) > 0
        columns, yellow = np.nonzero(at)[1], added[:, 0] > 128
        if yellow.any() and not yellow.all():
            flips.add(bool(columns[yellow].mean() > columns[~yellow].mean()))
        # Along its soft edge something of both is mixed in.
        assert np.mean(added[:, 2] > 128) < 0.1 if len(added) else True, seed
    assert seen >= 10
    assert flips == {False, True}


def test_a_car_put_behind_keeps_its_shape_and_comes_in_many_sizes() -> None:
    (photo, other), widths = (np.zeros((64, 64, 3), np.uint8) for _ in range(2)), []
    mask, other_mask = (np.zeros((64, 64), np.uint8) for _ in range(2))
    mask[31:33, 31:33], other[20:30, 10:50], other_mask[20:30, 10:50] = 255, 255, 255
    for seed in range(30):
        mixed = put_behind(photo, mask, other, other_mask, np.random.default_rng(seed))
        high, wide = (1 + np.ptp(np.flatnonzero(mixed.any(axis=(axis, 2)))) for axis in (1, 0))
        assert wide / high == pytest.approx(4, rel=0.3)
        widths.append(wide)
    assert 40 * CAR_SCALES[0] - 2 <= min(widths) < 18
    assert 26 < max(widths) <= 40 * CAR_SCALES[1] + 2


def test_a_car_put_behind_depends_on_its_generator_alone() -> None:
    scenes = (*scene(1), *scene(2))
    one, two, three = (put_behind(*scenes, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, three)


def test_a_car_put_behind_sticks_out_from_behind_the_own_one() -> None:
    (photo, mask), (other, other_mask) = scene(1), scene(2)
    for seed in range(20):
        random = np.random.default_rng(seed)
        added = (put_behind(photo, mask, other, other_mask, random) != photo).any(axis=-1)
        beside = ndimage.binary_dilation(mask > 0, iterations=2) & added
        assert beside.any() or not added.any(), seed


def test_a_car_put_elsewhere_keeps_itself_and_changes_its_surroundings() -> None:
    (photo, mask), (other, other_mask) = scene(1), scene(2)
    # A wide street, brighter from left to right, with the other car far to the right.
    other[..., :] = np.arange(64, dtype=np.uint8)[None, :, None] * 2
    other_mask[:] = 0
    other_mask[20:40, 44:] = 255
    shown: list[Array] = []
    for seed in range(20):
        mixed = put_elsewhere(photo, mask, other, other_mask, np.random.default_rng(seed))
        assert (mixed.shape, mixed.dtype) == (photo.shape, np.uint8)
        assert np.array_equal(mixed[mask == 255], photo[mask == 255])
        assert mixed[mask == 0].max() <= other.max()
        shown.append(mixed[0, :, 0])
    assert len({row.tobytes() for row in shown}) > 10, "parts are drawn at random"
    # Where there is a choice, the part with less of the other car is taken.
    assert np.mean([row.mean() for row in shown]) < other.mean() - 4


def test_of_parts_without_any_car_one_is_taken_wherever_it_lies() -> None:
    (photo, mask), (other, other_mask) = scene(1), scene(2)
    other[..., :] = np.arange(64, dtype=np.uint8)[None, :, None] * 2
    other_mask[:] = 0
    middles = [
        put_elsewhere(photo, mask, other, other_mask, np.random.default_rng(seed))[0, :, 0].mean()
        for seed in range(200)
    ]
    assert np.mean(middles) == pytest.approx(other.mean(), abs=4)


def test_a_photo_full_of_another_car_is_no_background() -> None:
    (photo, mask), street = scene(1), np.full((64, 64, 3), 90, np.uint8)
    for level, taken in ((255, False), (40, False), (20, True)):  # 16 % and 8 % of each pixel
        car = np.full((64, 64), level, np.uint8)
        mixed = put_elsewhere(photo, mask, street, car, np.random.default_rng(0))
        assert np.array_equal(mixed, photo) != taken


def test_a_cropped_car_fills_the_square_but_for_a_margin() -> None:
    photo, mask = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
    mask[20:40, 10:50] = 255
    photo[mask == 255] = (200, 40, 40)
    shares, gaps = [], []
    for seed in range(50):
        cropped, shape = crop_to_car(photo, mask, np.random.default_rng(seed))
        assert (cropped.shape, cropped.dtype) == (photo.shape, np.uint8)
        assert (shape.shape, shape.dtype) == (mask.shape, np.uint8)
        assert np.array_equal(
            cropped[shape == 255], np.broadcast_to((200, 40, 40), (np.sum(shape == 255), 3))
        )
        assert not cropped[shape == 0].any()
        rows, columns = (np.flatnonzero((shape > 127).any(axis=axis)) for axis in (1, 0))
        shares += [len(rows) / 64, len(columns) / 64]
        gaps.append((rows[0], 63 - rows[-1], columns[0], 63 - columns[-1]))
    assert min(shares) >= 1 / (1 + 2 * MARGINS[1]) - 0.03
    assert max(shares) > 0.9
    assert max(shares) - min(shares) > 0.2
    assert (np.max(gaps, axis=0) > 6).all(), "on each side"
    assert (np.min(gaps, axis=0) < 3).all()


def test_at_the_edge_a_crop_ends_with_the_photo() -> None:
    photo, mask = scene(1)
    mask[:] = 255
    cropped, shape = crop_to_car(photo, mask, np.random.default_rng(0))
    assert np.array_equal(cropped, photo)
    assert (shape == 255).all()


@pytest.mark.parametrize(
    "car", [np.s_[:0, :0], np.s_[9:10, 9:10], np.s_[20:23, 5:50], np.s_[5:50, 20:23]],
    ids=["none", "a pixel", "flat", "thin"],
)  # fmt: skip
def test_a_car_too_small_to_show_anything_is_not_cropped_to(car: tuple[slice, slice]) -> None:
    photo, mask = scene(1)
    mask[:] = 0
    mask[car] = 255
    cropped, shape = crop_to_car(photo, mask, np.random.default_rng(0))
    assert np.array_equal(cropped, photo)
    assert np.array_equal(shape, mask)


def test_a_recoloured_car_stands_in_the_same_place() -> None:
    photo, mask = pair()
    photo[CAR] = (200, 40, 40)
    augment = Augment()
    painted = [augment.recolour(photo, mask, seed) for seed in SEEDS]
    for one in painted:
        assert (one.shape, one.dtype) == (photo.shape, np.uint8)
        assert np.array_equal(one[mask == 0], photo[mask == 0])
    hues = [np.unravel_index(one[mask == 255].mean(axis=0).argmax(), 3) for one in painted]
    assert len(set(hues)) == 3, "red, green and blue cars all occur"
    assert np.array_equal(painted[3], Augment().recolour(photo, mask, 3))


def street(photo: Array, mask: Array) -> tuple[Array, Array]:
    """The photo with a striped street for black, and what each pixel lacks of the car's colour."""
    photo = photo.copy()
    photo[mask == 0] = 20
    photo[::8][mask[::8] == 0] = 40
    away = np.abs(photo.astype(float) - photo[mask == 255][0]).sum(axis=-1)
    return photo, away


def test_camouflage_brings_the_surroundings_nearer_to_the_cars_colour() -> None:
    plain, mask = scene(1)
    photo, away = street(plain, mask)
    car = photo[mask == 255][0]
    whole = blocks = 0
    for seed in range(40):
        hidden = camouflage(photo, mask, np.random.default_rng(seed))
        assert (hidden.shape, hidden.dtype) == (photo.shape, np.uint8)
        assert np.array_equal(hidden[mask == 255], photo[mask == 255])
        changed = (hidden != photo).any(axis=-1)
        nearer = away - np.abs(hidden.astype(float) - car).sum(axis=-1)
        assert not changed.any() or nearer[changed].mean() > 0
        if changed.sum() == (mask == 0).sum():
            whole += 1
        elif changed.any():
            blocks += 1
            rows, columns = np.nonzero(changed)
            block = (slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1))
            assert changed[block][mask[block] == 0].all(), "all of a rectangle, but for the car"
            beside = ndimage.binary_dilation(mask > 0, iterations=2)
            assert beside[block].any(), "at the car"
    assert whole > 8
    assert blocks > 8


def test_camouflage_keeps_the_texture() -> None:
    plain, mask = scene(1)
    photo, _ = street(plain, mask)
    whole = 0
    for seed in range(20):
        hidden = camouflage(photo, mask, np.random.default_rng(seed)).astype(int)
        if (hidden[:16] != photo[:16]).all():
            whole += 1
            # Stripes stay 20 levels brighter, but where the brightest levels end.
            step = (hidden[8] - hidden[9])[hidden[8] < 255]
            assert (step == 20).all()
    assert whole > 4


@pytest.mark.parametrize("value", [0, 255])
def test_nothing_is_camouflaged_without_a_car_or_without_surroundings(value: int) -> None:
    photo, mask = scene(1)
    hidden = camouflage(photo, np.full_like(mask, value), np.random.default_rng(0))
    assert np.array_equal(hidden, photo)


def test_with_a_mask_too_small_to_see_nothing_is_put_behind() -> None:
    photo, mask = scene(1)
    for masks in ((mask, np.zeros_like(mask)), (np.zeros_like(mask), mask)):
        mixed = put_behind(photo, masks[0], photo, masks[1], np.random.default_rng(0))
        assert np.array_equal(mixed, photo)


def test_shifted_pictures_show_no_second_car() -> None:
    # Mirrored at its border, a car in a corner would appear twice, in photo and mask.
    photo = np.zeros((64, 64, 3), np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    photo[2:18, 2:18] = 255
    mask[2:18, 2:18] = 255
    augment = Augment()
    for seed in range(60):
        _, found = augment(photo, mask, seed)
        columns = np.flatnonzero((found > 127).any(axis=0))
        rows = np.flatnonzero((found > 127).any(axis=1))
        for line in (columns, rows):
            assert len(line) == 0 or line[-1] - line[0] < 40


def test_every_share_of_car_blends_two_colours_as_it_should() -> None:
    shares, photo, scene = (a.astype(np.uint8) for a in np.mgrid[0:256, 0:256:15, 0:256:15])
    mask, *colours = (values.reshape(256, -1) for values in (shares, photo, scene))
    mixed = composite(np.dstack([colours[0]] * 3), mask, np.dstack([colours[1]] * 3))
    exact = (colours[0] * (mask / 255) + colours[1] * (1 - mask / 255)).round()
    assert np.array_equal(mixed, np.dstack([exact] * 3))


def test_a_mean_colour_is_weighed() -> None:
    photo = np.array([[(10, 20, 30), (50, 60, 70)]], np.uint8)
    assert mean_colour(photo, np.array([[[0.25], [0.75]]])) == pytest.approx([40, 50, 60])
    assert mean_colour(photo, np.zeros((1, 2, 1))) == pytest.approx([0, 0, 0]), "no pixel at all"
