"""Annotation files of each format become the masks that were drawn."""

import base64
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from carseg.annotations import LARGEST, Annotated, from_polygons, read
from carseg.errors import CarsegError

HEIGHT, WIDTH = 40, 64
SIZE = (HEIGHT, WIDTH)
SQUARE = np.zeros(SIZE, np.bool_)
SQUARE[10:20, 8:30] = True
CORNERS = [[8, 10], [30, 10], [30, 20], [8, 20]]
DATA = Path(__file__).parent / "data"
Mask = NDArray[np.bool_]


def only(folder: Path, content: str | bytes, name: str = "a.json") -> Annotated:
    """The only picture of a file with this content."""
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    (picture,) = read(path)
    return picture


def mask_of(picture: Annotated) -> Mask:
    (region,) = picture.regions
    assert region.label == "car"
    mask = region.draw()
    assert mask.shape == SIZE
    return mask


def coco_file(segmentation: object, **annotation: object) -> str:
    return json.dumps({
        "images": [{"id": 7, "file_name": "x/1.jpg", "height": HEIGHT, "width": WIDTH}],
        "categories": [{"id": 3, "name": "car"}, {"id": 4, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "segmentation": segmentation, **annotation}
        ],
    })  # fmt: skip


def coco_ids(*images: object, of: object) -> str:
    """A file of pictures with these ids, and a region of the last id given."""
    content = json.loads(coco_file([FLAT]))
    (image,) = content["images"]
    content["images"] = [{**image, "id": i, "file_name": f"{k}.jpg"} for k, i in enumerate(images)]
    content["annotations"][0]["image_id"] = of
    return json.dumps(content)


def sized(text: str, height: object, width: object = WIDTH) -> str:
    """The same file, of a picture of another size."""
    content = json.loads(text)
    if "images" in content:
        content["images"][0].update(height=height, width=width)
    else:
        content.update(imageHeight=height, imageWidth=width)
    return json.dumps(content)


def pasted(mask: str, left: float = 8, top: float = 10) -> str:
    return labelme_file({"points": [[left, top], [9, 9]], "shape_type": "mask", "mask": mask})


def cvat_ellipse(**given: object) -> str:
    values = {"cx": 30, "cy": 20, "rx": 20, "ry": 8, **given}
    written = " ".join(f'{key}="{value}"' for key, value in values.items())
    return cvat_file(f'<ellipse label="car" {written}/>')


def cvat_mask(rle: str, left: object = 0, top: object = 0, width: int = 9, height: int = 9) -> str:
    return cvat_file(
        f'<mask label="car" rle="{rle}" left="{left}" top="{top}" width="{width}" '
        f'height="{height}"/>'
    )


def labelme_file(*shapes: Mapping[str, object]) -> str:
    return json.dumps(
        {"imagePath": "..\\Image\\1.jpg", "imageHeight": HEIGHT, "imageWidth": WIDTH,
         "shapes": [{"label": "car", **shape} for shape in shapes]}
    )  # fmt: skip


def cvat_file(shape: str) -> str:
    return (
        f'<?xml version="1.0"?><annotations><version>1.1</version><image id="0" name="s/1.jpg" '
        f'width="{WIDTH}" height="{HEIGHT}">{shape}<tag label="car"/></image></annotations>'
    )


def compressed(mask: Mask) -> dict[str, object]:
    found = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": found["size"], "counts": found["counts"].decode()}


def lengths(mask: Mask, order: Literal["C", "F"]) -> list[int]:
    """Run lengths, background first, by other means than the code under test."""
    counts, value = [0], False
    for pixel in mask.ravel(order):
        if pixel != value:
            counts.append(0)
            value = bool(pixel)
        counts[-1] += 1
    return counts


def png(mask: Mask) -> str:
    content = io.BytesIO()
    Image.fromarray(mask).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


BLOB = SQUARE.copy()
BLOB[12:30, 20:25] = True
BLOB[14:16, 10:12] = False
FLAT = [x for corner in CORNERS for x in corner]
SHAPE = {"points": CORNERS}
OUTSIDE = [[70, 50], [90, 50], [90, 60]]
NO_PICTURE = "a picture or mask of .*; export it anew"
NOWHERE = "x/1.jpg: a region of 'car' has no inside, or is outside of the picture; draw it anew"
COCO = {
    "polygon": (coco_file([FLAT]), SQUARE),
    "two polygons": (coco_file([FLAT, [40, 2, 60, 2, 60, 6, 40, 6]]), None),
    "run lengths": (coco_file({"size": SIZE, "counts": lengths(BLOB, "F")}, iscrowd=1), BLOB),
    "compressed": (coco_file(compressed(BLOB)), BLOB),
    "a flat list": (coco_file(FLAT), SQUARE),
    "ids as floats": (coco_file([FLAT]).replace('"image_id": 7', '"image_id": 7.0'), SQUARE),
    "ids as text": (coco_file([FLAT]).replace('"image_id": 7', '"image_id": "7"'), SQUARE),
}


@pytest.mark.parametrize("kind", COCO)
def test_coco(kind: str, tmp_path: Path) -> None:
    text, expected = COCO[kind]
    if expected is None:
        expected = SQUARE.copy()
        expected[2:6, 40:60] = True
    picture = only(tmp_path, text)
    assert picture[:3] == ("x/1.jpg", WIDTH, HEIGHT)
    assert np.array_equal(mask_of(picture), expected)


@pytest.mark.parametrize("share", [0.001, 0.01, 0.5, 0.99, 1.0])
def test_compressed_runs_of_any_length_are_read(share: float, tmp_path: Path) -> None:
    mask = np.random.default_rng(0).random((HEIGHT, WIDTH)) < share
    mask[:, 5:9] = mask[:1, 5:9]  # long runs after short ones
    assert np.array_equal(mask_of(only(tmp_path, coco_file(compressed(mask)))), mask)


def test_a_coco_class_may_be_a_number(tmp_path: Path) -> None:
    text = coco_file([FLAT]).replace('"name": "car"', '"name": 1')
    assert [region.label for region in only(tmp_path, text).regions] == ["1"]


def test_a_coco_picture_without_regions_is_listed(tmp_path: Path) -> None:
    assert only(tmp_path, coco_file([])).regions == []


WITH_OUTLINE = np.zeros(SIZE, np.bool_)
WITH_OUTLINE[10:21, 8:31] = True
LABELME: dict[str, tuple[Mapping[str, object], Mask]] = {
    "polygon": ({"points": CORNERS, "shape_type": "polygon"}, WITH_OUTLINE),
    "old polygon": ({"points": CORNERS}, WITH_OUTLINE),
    "turned rectangle": ({"points": CORNERS, "shape_type": "oriented_rectangle"}, WITH_OUTLINE),
    "as X-AnyLabeling has it": ({"points": CORNERS, "shape_type": "rotation"}, WITH_OUTLINE),
    "rectangle": ({"points": [[30, 20], [8, 10]], "shape_type": "rectangle"}, WITH_OUTLINE),
    "rectangle of four points": ({"points": CORNERS, "shape_type": "rectangle"}, WITH_OUTLINE),
    "mask": (
        {"points": [[8, 10], [29, 29]], "shape_type": "mask", "mask": png(BLOB[10:30, 8:30])},
        BLOB,
    ),
}


@pytest.mark.parametrize("kind", LABELME)
def test_labelme(kind: str, tmp_path: Path) -> None:
    shape, expected = LABELME[kind]
    picture = only(tmp_path, labelme_file(shape))
    assert picture[:3] == ("../Image/1.jpg", WIDTH, HEIGHT)
    assert np.array_equal(mask_of(picture), expected)


def disc(x: float, y: float, wide: float, high: float) -> Mask:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    return ((columns - x) / wide) ** 2 + ((rows - y) / high) ** 2 <= 1


def overlap(one: Mask, other: Mask) -> float:
    return float((one & other).sum() / (one | other).sum())


def test_a_labelme_rectangle_that_is_turned_is_no_upright_one(tmp_path: Path) -> None:
    shape = {"points": [[20, 5], [35, 20], [20, 35], [5, 20]], "shape_type": "oriented_rectangle"}
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    expected = abs(rows - 20) + abs(columns - 20) <= 15
    assert overlap(mask_of(only(tmp_path, labelme_file(shape))), expected) > 0.95


def test_a_labelme_circle_is_round(tmp_path: Path) -> None:
    shape = {"points": [[30, 20], [42, 20]], "shape_type": "circle"}
    assert overlap(mask_of(only(tmp_path, labelme_file(shape))), disc(30, 20, 12, 12)) > 0.9


CVAT = {
    "polygon": ('<polygon label="car" points="8,10;30,10;30.0,20.00;8,20" z_order="0"/>', SQUARE),
    "box": ('<box label="car" xtl="8" ytl="10" xbr="30" ybr="20"><attribute/></box>', SQUARE),
    "half a turn": (
        '<box label="car" xtl="8" ytl="10" xbr="30" ybr="20" rotation="180"/>',
        SQUARE,
    ),
    "quarter turn": (
        '<box label="car" xtl="14" ytl="4" xbr="24" ybr="26" rotation="90"/>',
        SQUARE,
    ),
    "mask with decimals": (
        f'<mask label="car" rle="{", ".join(map(str, lengths(BLOB[10:30, 8:30], "C")))}" '
        'left="8.00" top="10.00" width="22" height="20"/>',
        BLOB,
    ),
    "mask": (
        f'<mask label="car" rle="{", ".join(map(str, lengths(BLOB[10:30, 8:30], "C")))}" '
        'left="8" top="10" width="22" height="20"/>',
        BLOB,
    ),
}


@pytest.mark.parametrize("kind", CVAT)
def test_cvat(kind: str, tmp_path: Path) -> None:
    shape, expected = CVAT[kind]
    if kind == "quarter turn":  # 22 high and 10 wide about (19, 15): lies as the square does
        assert SQUARE.sum() == 220
    picture = only(tmp_path, cvat_file(shape), "a.xml")
    assert picture[:3] == ("s/1.jpg", WIDTH, HEIGHT)
    assert np.array_equal(mask_of(picture), expected)


def test_a_cvat_box_is_turned_clockwise(tmp_path: Path) -> None:
    text = '<box label="car" xtl="16" ytl="16" xbr="48" ybr="24" rotation="30"/>'
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5 - np.array([20, 32])[:, None, None]
    turn = math.radians(30)
    along, across = x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)
    expected = (abs(along) <= 16) & (abs(across) <= 4)
    assert overlap(mask_of(only(tmp_path, cvat_file(text), "a.xml")), expected) > 0.9


def test_a_cvat_ellipse_is_turned_clockwise(tmp_path: Path) -> None:
    upright = '<ellipse label="car" cx="30" cy="20" rx="20" ry="8"/>'
    assert overlap(mask_of(only(tmp_path, cvat_file(upright))), disc(30, 20, 20, 8)) > 0.97
    turned = '<ellipse label="car" cx="30" cy="20" rx="16" ry="5" rotation="45"/>'
    rows, columns = np.nonzero(mask_of(only(tmp_path, cvat_file(turned))))
    assert np.corrcoef(rows, columns)[0, 1] > 0.7, "down to the right"


def test_a_cvat_ellipse_is_drawn_between_pixels_and_degrees(tmp_path: Path) -> None:
    """Large and flat, so that half a degree and half a pixel are a lot."""
    text = cvat_ellipse(cx=320.5, cy=200.5, rx=300.5, ry=10.5, rotation=30.5)
    text = text.replace(f'"{WIDTH}"', '"640"').replace(f'"{HEIGHT}"', '"400"')
    (region,) = only(tmp_path, text, "a.xml").regions
    y, x = np.mgrid[:400, :640] - 200.0
    x -= 120
    turn = math.radians(30.5)
    along, across = x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)
    assert overlap(region.draw(), (along / 300.5) ** 2 + (across / 10.5) ** 2 <= 1) > 0.98


@pytest.mark.parametrize("file", ["coco.json", "cvat.xml"])
def test_files_written_by_datumaro_hold_what_went_in(file: str) -> None:
    """Made with datumaro 1.13.12; the polygon was filled by pycocotools 2.0.11."""
    pictures = {picture.name: picture for picture in read(DATA / file)}
    for name in ("mask", "polygon"):
        expected = np.asarray(Image.open(DATA / f"{name}.png")) > 0
        assert np.array_equal(mask_of(pictures[f"{name}.jpg"]), expected), name
    if file == "cvat.xml":
        assert np.array_equal(mask_of(pictures["box.jpg"]), SQUARE)
    assert [region.label for region in pictures["dog.jpg"].regions] == ["dog"]


@pytest.mark.parametrize("kind", ["polygon", "rectangle", "circle", "mask"])
def test_files_written_by_labelme_hold_what_it_makes_of_them(kind: str) -> None:
    """Made with LabelMe 6.3.1, its own masks beside them."""
    (picture,) = read(DATA / f"labelme_{kind}.json")
    cars = [region.draw() for region in picture.regions if region.label == "car"]
    assert np.array_equal(cars[0], np.asarray(Image.open(DATA / f"labelme_{kind}.png")) > 0)


def test_what_leaves_the_picture_is_left_out() -> None:
    outside = [[-20, -20], [200, -20], [200, 10], [-20, 10]]
    expected = np.zeros(SIZE, np.bool_)
    expected[:10] = True
    assert np.array_equal(from_polygons([outside], SIZE), expected)


@pytest.mark.parametrize("left", [-4, 20, WIDTH - 5])
@pytest.mark.parametrize("top", [-3, 20, HEIGHT - 2])
def test_a_pasted_part_that_leaves_the_picture_is_cut(left: int, top: int, tmp_path: Path) -> None:
    part = np.random.default_rng(0).random((9, 9)) < 0.5
    expected = np.zeros(SIZE, np.bool_)
    for row, column in np.argwhere(part) + np.array((top, left)):
        if 0 <= row < HEIGHT and 0 <= column < WIDTH:
            expected[row, column] = True
    assert np.array_equal(mask_of(only(tmp_path, pasted(png(part), left, top))), expected)


def test_a_mask_at_fractions_of_pixels_lies_where_labelme_puts_it(tmp_path: Path) -> None:
    expected = mask_of(only(tmp_path, pasted(png(BLOB), 8, 10)))
    assert np.array_equal(mask_of(only(tmp_path, pasted(png(BLOB), 8.7, 10.5))), expected)


def test_a_point_may_be_as_far_away_as_pictures_are_large(tmp_path: Path) -> None:
    shape = {"points": [[-9e5, 10], [9e5, 10], [9e5, 19], [-9e5, 19]]}
    expected = np.zeros(SIZE, np.bool_)
    expected[10:20] = True
    assert np.array_equal(mask_of(only(tmp_path, labelme_file(shape))), expected)


@pytest.mark.parametrize("before", ["\n", " \t", "\ufeff\r\n"])
def test_blanks_before_xml_are_no_fault(before: str, tmp_path: Path) -> None:
    text = before + cvat_ellipse().removeprefix('<?xml version="1.0"?>')
    assert only(tmp_path, text, "a.xml").name == "s/1.jpg"


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    assert only(tmp_path, b"\xef\xbb\xbf" + coco_file([FLAT]).encode()).name == "x/1.jpg"


BROKEN = {
    "nothing": ("", "is broken or of a kind"),
    "other JSON": ('{"a": 1}', "is neither COCO nor LabelMe"),
    "a list": ("[1]", "is neither COCO nor LabelMe|is broken"),
    "cut JSON": (coco_file([FLAT])[:90], "is broken"),
    "cut XML": (cvat_file("")[:80], "is broken"),
    "no size": (coco_file([FLAT]).replace("height", "hoch"), r"is broken.*KeyError\('height'\)"),
    "a class that is not listed": (coco_file([FLAT]).replace('"id": 3', '"id": 9'), "is broken"),
    "two pictures of one id": (coco_ids(7, 7, of=7), "two of its images have the id 7, as in"),
    "an id of no picture": (coco_ids(7, 8, of=9), "annotation 1 is of image 9, which is not"),
    "two classes of one id": (
        coco_file([FLAT]).replace('"id": 4', '"id": 3'), "two of its categories have the id 3"),
    "half a point": (coco_file([FLAT[:-1]]), "is broken"),
    "two points in LabelMe": (labelme_file({"points": CORNERS[:2]}), "fewer than three points"),
    "two points in CVAT": (cvat_file('<polygon label="car" points="1,2;3,4"/>'), "fewer than"),
    "points in CVAT": (cvat_file('<points label="car" points="1,2;3,4"/>'), "a points has no"),
    "a cuboid in CVAT": (cvat_file('<cuboid label="car" xtl1="3"/>'), "a cuboid has no inside"),
    "a skeleton in CVAT": (
        cvat_file('<skeleton label="car"><points label="1" points="1,2"/></skeleton>'),
        "a skeleton has no inside"),
    "two points": (coco_file([FLAT[:4]]), "fewer than three points"),
    "runs of another size": (
        coco_file({"size": [4, 4], "counts": compressed(np.ones((4, 4), bool))["counts"]}),
        r"a mask of \[4, 4\] in a picture of \[40, 64\]",
    ),
    "runs that do not fill it": (
        coco_file({"size": [HEIGHT, WIDTH], "counts": [0, 3]}), "runs of 3 pixels for a mask of"),
    "no runs": (coco_file({"size": [HEIGHT, WIDTH], "counts": ""}), "is broken|runs of 0 pixels"),
    "a negative run": (coco_file({"size": [HEIGHT, WIDTH], "counts": [-1, HEIGHT * WIDTH + 1]}),
                       "runs of"),
    "a compressed run too few": (
        coco_file({**compressed(BLOB), "counts": compressed(BLOB)["counts"][:-2]}), "runs of"),
    "no number in COCO": (coco_file([[0, 0, 3, 0, math.nan, 3]]), "a point that is no number"),
    "no number in LabelMe": (labelme_file({"points": [*CORNERS, [math.nan, 1]]}), "is no number"),
    "no number in CVAT": (cvat_file('<polygon label="car" points="0,0;nan,2;3,4"/>'), "no number"),
    "a point far away": (coco_file([[0, 0, 1e12, 0, 3, 3]]), "or far away"),
    "a box alone": (coco_file([], bbox=[8, 10, 22, 10]), "annotation 1 is a box; draw the outline"),
    "no name": (labelme_file().replace('"..\\\\Image\\\\1.jpg"', "null"), "is broken"),
    "a name of another kind": (coco_file([FLAT]).replace('"x/1.jpg"', "5"), "is broken"),
    "no class": (labelme_file({"points": CORNERS}).replace('"car"', "null"), "no text"),
    "a line in CVAT": (cvat_file('<polyline label="car" points="1,2;3,4"/>'), "has no inside"),
    "XML of another kind": ("<annotation><object/></annotation>", "holds no picture; export it as"),
    "a line": (labelme_file({"points": CORNERS, "shape_type": "linestrip"}), "has no inside"),
    "no picture": (labelme_file({"points": [[0, 0], [9, 9]], "shape_type": "mask", "mask": "AAAA"}),
                   r"the mask of 'car' is broken \(UnidentifiedImageError\); draw it anew"),
    "a damaged picture": (pasted(base64.b64encode(base64.b64decode(png(BLOB))[:45]).decode()),
                          "the mask of 'car' is broken"),
    "a picture damaged inside": (
        pasted(base64.b64encode(
            (found := base64.b64decode(png(BLOB)))[:33] + b"\0\0\0\1\1\2\3\4" + found[41:]
        ).decode()), "the mask of 'car' is broken"),
    "runs too short": (cvat_mask("3,4"), "runs of 7 pixels for a mask of 81; export"),
    "lists in lists": ("[" * 200_000, r"is broken.*RecursionError"),
    "a point of no size": (labelme_file({"points": [*CORNERS, [10**400, 1]]}), "is broken"),
    "an ellipse without end": (cvat_ellipse(rx="inf"), "or far away"),
    "an ellipse high without end": (cvat_ellipse(ry="inf"), "or far away"),
    "a turn without end": (cvat_ellipse(rotation="inf"), "is broken"),
    "a turn that is no number": (cvat_ellipse(rotation="nan"), "is no number"),
    "a box without end": (cvat_file('<box label="car" xtl="0" ytl="0" xbr="inf" ybr="9"/>'),
                          "or far away"),
    "a CVAT mask at no place": (cvat_mask("0,81", left="inf"), "or far away"),
    "a LabelMe mask at no place": (pasted(png(BLOB), top=math.inf), "or far away"),
    "a CVAT mask too large": (cvat_mask(f"0,{10**18}", width=10**9, height=10**9), NO_PICTURE),
    **{
        f"{kind} {height} high": (sized(text, height), f"1.jpg: {NO_PICTURE}")
        for kind, text in (("COCO", coco_file([FLAT])), ("LabelMe", labelme_file(SHAPE)))
        for height in (math.inf, math.nan, 10**30, -40, 0, 40.5, "40", LARGEST // WIDTH + 1)
    },
    "COCO runs of a large picture": (
        sized(coco_file({"size": [10**9, 10**9], "counts": [0, 10**18]}), 10**9, 10**9),
        NO_PICTURE),
    "a large LabelMe mask": (sized(pasted(png(BLOB)), 10**9, 10**9), NO_PICTURE),
    "COCO outside": (coco_file([[x for point in OUTSIDE for x in point]]), NOWHERE),
    "COCO on the other side": (coco_file([[-x for point in OUTSIDE for x in point]]), NOWHERE),
    "COCO of no area": (coco_file([[8, 10, 30, 10, 20, 10]]), NOWHERE),
    "COCO of no run": (coco_file({"size": SIZE, "counts": [HEIGHT * WIDTH]}), NOWHERE),
    "LabelMe outside": (labelme_file({"points": OUTSIDE}), "Image/1.jpg: a region of 'car' has no"),
    "CVAT outside": (cvat_ellipse(cx=-40), "s/1.jpg: a region of 'car' has no"),
    "an ellipse that is a line": (cvat_ellipse(ry=0), "s/1.jpg: a region of 'car' has no"),
    **{
        f"pasted {side}": (pasted(png(BLOB), *at), "Image/1.jpg: a region of 'car' has no inside")
        for side, at in {"above": (8, -41), "left": (-65, 10), "below": (8, 40), "right": (64, 10),
                         "far above": (8, -500), "above and left": (-70, -70)}.items()
    },
    "no numbers": (cvat_file('<polygon label="car" points="a,b;c,d"/>'), "is broken"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_broken_is_one_line_with_the_files_name(kind: str, tmp_path: Path) -> None:
    content, said = BROKEN[kind]
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(CarsegError, match=said) as caught:
        [region.draw() for picture in read(tmp_path / "a.json") for region in picture.regions]
    assert str(caught.value).startswith(f"{tmp_path / 'a.json'}: ")
    assert len(str(caught.value).splitlines()) == 1


def test_what_is_no_text_or_not_there_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(CarsegError, match=r"a\.png: is not text; give a COCO"):
        read(tmp_path / "a.png")
    with pytest.raises(CarsegError, match=r"gone\.json: there is no such file"):
        read(tmp_path / "gone.json")
    with pytest.raises(CarsegError, match=r"is a folder; give the files in it, as .*\*\.json"):
        read(tmp_path)


def test_the_largest_picture_is_the_largest_photo() -> None:
    assert Image.MAX_IMAGE_PIXELS is not None
    assert LARGEST == 2 * Image.MAX_IMAGE_PIXELS


def test_a_part_outside_is_left_out_of_a_region(tmp_path: Path) -> None:
    text = coco_file([FLAT, [x for point in OUTSIDE for x in point]])
    assert np.array_equal(mask_of(only(tmp_path, text)), SQUARE)
