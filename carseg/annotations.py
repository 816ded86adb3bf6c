"""What annotation tools write, as masks: COCO JSON, LabelMe JSON and CVAT XML."""

from __future__ import annotations

import base64
import io
import json
import math
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pycocotools import mask as coco

from carseg.errors import CarsegError

Mask = NDArray[np.bool_]
Points = Sequence[Sequence[float]]
Corners = Sequence[tuple[float, float]]

FAR = 1e6  # pixels from the corner; to fill what goes on for much longer takes forever
LARGEST = 178_956_970  # pixels; Pillow opens no photo of more, and pycocotools crashes on many more
BROKEN = (
    AttributeError,
    IndexError,
    KeyError,
    OSError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
    ET.ParseError,
)  # what reading raises where something is missing or of another kind


class Region(NamedTuple):
    """A part of a picture that someone gave a class."""

    label: str
    # (H, W), True inside: drawn when called, as many large masks do not fit into memory. Raises a
    # CarsegError if the outline is broken, encloses nothing or lies outside of the picture, or if
    # the picture's size is impossible.
    draw: Callable[[], Mask]


class Annotated(NamedTuple):
    """A picture's name, size and regions."""

    name: str
    width: int
    height: int
    regions: list[Region]


def read(path: Path) -> list[Annotated]:
    """Read every picture of an annotation file, whichever of the formats it is in.

    Raises:
        CarsegError: it is missing, of none, broken, or a folder.
        OSError: it may not be read.
    """
    if path.is_dir():
        raise CarsegError(f"{path}: is a folder; give the files in it, as {path / '*.json'}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise CarsegError(f"{path}: there is no such file; check the path") from error
    except ValueError as error:
        raise CarsegError(f"{path}: is not text; give a COCO, LabelMe or CVAT file") from error
    with _naming(str(path)):
        return [_of(path, picture) for picture in _pictures(text.strip())]


def _of(path: Path, picture: Annotated) -> Annotated:
    """Return the picture with regions whose errors name the file and the picture."""
    # Windows writes paths with its own separators.
    picture = picture._replace(name=picture.name.replace("\\", "/"))
    regions = [
        Region(region.label, partial(_draw, path, picture, region)) for region in picture.regions
    ]
    if not all(isinstance(label, str) for label, _ in regions):
        raise TypeError("a class that is no text")
    return picture._replace(regions=regions)


def _draw(path: Path, picture: Annotated, region: Region) -> Mask:
    with _naming(f"{path}: {picture.name}"):
        check_size(picture.width, picture.height)
        mask = region.draw()
        if not mask.any():
            raise CarsegError(
                f"a region of {region.label!r} has no inside, or is outside of the picture; draw "
                "it anew or remove it"
            )
        return mask


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Turn errors in a file's content into CarsegErrors that name it."""
    try:
        yield
    except CarsegError as error:
        raise CarsegError(f"{where}: {error}") from error
    except BROKEN as error:
        raise CarsegError(
            f"{where}: is broken or of a kind that is not known ({error!r}); export it anew as "
            "COCO JSON, LabelMe JSON or CVAT XML for images"
        ) from error


def _pictures(text: str) -> Iterator[Annotated]:
    if text.startswith("<"):
        return read_cvat(text)
    content = json.loads(text)
    names = content.keys() if isinstance(content, dict) else set()
    if "shapes" in names:
        return read_labelme(content)
    if {"images", "annotations", "categories"} <= names:
        return read_coco(content)
    raise CarsegError(
        "is neither COCO nor LabelMe JSON; export it as one of them, or as CVAT XML for images"
    )


def read_coco(content: Mapping[str, Any]) -> Iterator[Annotated]:
    """Read COCO JSON, parsed: polygons and run lengths, compressed or not."""
    labels = {
        number: str(category["name"]) for number, category in _by_id(content, "categories").items()
    }
    images = _by_id(content, "images")
    regions: dict[str, list[dict[str, Any]]] = {}
    for annotation in content["annotations"]:
        of = _id(annotation["image_id"])
        if of not in images:
            raise CarsegError(
                f"annotation {annotation.get('id')} is of image {annotation['image_id']!r}, which "
                "is not among the images; export it anew"
            )
        regions.setdefault(of, []).append(annotation)
    for number, image in images.items():
        size = (image["height"], image["width"])
        yield Annotated(
            image["file_name"],
            image["width"],
            image["height"],
            [
                Region(labels[_id(found["category_id"])], partial(_from_coco, found, size))
                for found in regions.get(number, [])
                if found.get("segmentation") or found.get("bbox")
            ],
        )


def _by_id(content: Mapping[str, Any], name: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for entry in content[name]:
        if (number := _id(entry["id"])) in found:
            raise CarsegError(
                f"two of its {name} have the id {entry['id']!r}, as in files merged by hand; "
                "number them anew, or import the files one by one"
            )
        found[number] = entry
    return found


def _id(value: object) -> str:
    """Return an id as text: 7, 7.0 and "7" are one, as some tools mix them."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _from_coco(found: Mapping[str, Any], size: tuple[int, int]) -> Mask:
    segmentation = found.get("segmentation")
    if not segmentation:
        raise CarsegError(f"annotation {found['id']} is a box; draw the outline of what is in it")
    if isinstance(segmentation, list):
        if not isinstance(segmentation[0], list):  # one polygon, as some tools write it
            segmentation = [segmentation]
        return from_polygons([np.reshape(flat, (-1, 2)).tolist() for flat in segmentation], size)
    if tuple(segmentation.get("size", size)) != size:
        raise CarsegError(
            f"a mask of {segmentation['size']} in a picture of {list(size)}; export it anew"
        )
    counts = segmentation["counts"]
    lengths = counts if isinstance(counts, list) else _decompressed(counts)
    return _from_runs(lengths, size[::-1]).T  # column by column


def _decompressed(text: str) -> list[int]:
    """Decode COCO's compressed run lengths; pycocotools does not notice missing ones."""
    lengths: list[int] = []
    value = bits = 0
    for code in text.encode():
        # Five bits each, the lowest ones first; the sixth says that more follow.
        value |= (code - 48 & 31) << bits
        bits += 5
        if not code - 48 & 32:
            if code - 48 & 16:
                value -= 1 << bits
            # From the fourth on it is the difference to the last run of the same colour.
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = bits = 0
    return lengths


def _from_runs(lengths: Sequence[int], shape: tuple[int, int]) -> Mask:
    """Return a mask of runs, which alternate, background first, row by row."""
    check_size(*shape[::-1])
    pixels = shape[0] * shape[1]
    if sum(lengths) != pixels or min(lengths) < 0:
        raise CarsegError(f"runs of {sum(lengths)} pixels for a mask of {pixels}; export it anew")
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(shape)


def read_labelme(content: Mapping[str, Any]) -> Iterator[Annotated]:
    """Read LabelMe JSON, parsed: polygons, rectangles, also turned, circles, masks; one picture.

    Shapes are filled as LabelMe itself fills them, their outline with them.
    """
    size = (content["imageHeight"], content["imageWidth"])
    regions = [
        Region(shape["label"], partial(_labelme, shape, size)) for shape in content["shapes"]
    ]
    yield Annotated(content["imagePath"], size[1], size[0], regions)


def _labelme(shape: Mapping[str, Any], size: tuple[int, int]) -> Mask:
    kind = shape.get("shape_type") or "polygon"
    if kind == "mask":
        return _pasted(shape, size)
    if kind not in LABELME_SHAPES:
        raise _hollow(kind, shape["label"])
    points = [(float(x), float(y)) for x, y in shape["points"]]
    _check(points)
    picture = Image.new("1", size[::-1])
    LABELME_SHAPES[kind](ImageDraw.Draw(picture), points)
    return np.asarray(picture)


def _hollow(kind: str, label: str) -> CarsegError:
    return CarsegError(f"a {kind} has no inside; draw a polygon for {label!r}")


def _pasted(shape: Mapping[str, Any], size: tuple[int, int]) -> Mask:
    (left, top), _ = shape["points"]
    _check([(left, top)])
    content = io.BytesIO(base64.b64decode(shape["mask"]))
    try:
        with Image.open(content) as picture:
            part = np.asarray(picture.convert("L")) > 0
    except MemoryError:  # of which the file is not to blame
        raise
    except Exception as error:  # Pillow has no common base for what a broken file may raise
        raise CarsegError(
            f"the mask of {shape['label']!r} is broken ({type(error).__name__}); draw it anew"
        ) from error
    return _placed(part, int(top), int(left), size)  # as LabelMe does, not rounded


def _polygon(draw: ImageDraw.ImageDraw, points: Corners) -> None:
    if len(points) < 3:
        raise CarsegError("a polygon of fewer than three points; draw it anew or remove it")
    draw.polygon(points, fill=1, outline=1)


def _rectangle(draw: ImageDraw.ImageDraw, points: Corners) -> None:
    (left, *_, right), (top, *_, bottom) = (sorted(ends) for ends in zip(*points, strict=True))
    draw.rectangle((left, top, right, bottom), fill=1, outline=1)


def _circle(draw: ImageDraw.ImageDraw, points: Corners) -> None:
    (x, y), (edge_x, edge_y) = points
    radius = float(np.hypot(edge_x - x, edge_y - y))
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1, outline=1)


LABELME_SHAPES = {
    "polygon": _polygon,
    "oriented_rectangle": _polygon,
    "rotation": _polygon,  # as X-AnyLabeling calls them
    "rectangle": _rectangle,
    "circle": _circle,
}


def read_cvat(text: str) -> Iterator[Annotated]:
    """Read CVAT XML for images: polygons, boxes, ellipses and masks."""
    images = list(ET.fromstring(text).iter("image"))  # noqa: S314 - Python's parser knows the bombs
    if not images:
        raise CarsegError("holds no picture; export it as CVAT XML for images")
    for image in images:
        size = (int(image.attrib["height"]), int(image.attrib["width"]))
        regions = [
            Region(shape.attrib["label"], partial(_cvat, shape.tag, shape.attrib, size))
            for shape in image
            if shape.tag in CVAT_SHAPES or shape.tag in CVAT_HOLLOW
        ]
        yield Annotated(image.attrib["name"], size[1], size[0], regions)


def _cvat(kind: str, given: Mapping[str, str], size: tuple[int, int]) -> Mask:
    if kind in CVAT_HOLLOW:
        raise _hollow(kind, given["label"])
    return CVAT_SHAPES[kind](given, size)


def _cvat_polygon(given: Mapping[str, str], size: tuple[int, int]) -> Mask:
    points = [[float(x) for x in point.split(",")] for point in given["points"].split(";")]
    return from_polygons([points], size)


def _cvat_box(given: Mapping[str, str], size: tuple[int, int]) -> Mask:
    left, right = sorted(float(given[key]) for key in ("xtl", "xbr"))
    top, bottom = sorted(float(given[key]) for key in ("ytl", "ybr"))
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    _check(corners.tolist())
    middle = corners.mean(axis=0)
    return from_polygons([((corners - middle) @ _rotation(given) + middle).tolist()], size)


def _cvat_ellipse(given: Mapping[str, str], size: tuple[int, int]) -> Mask:
    middle, radii = ([float(given[key]) for key in keys] for keys in (("cx", "cy"), ("rx", "ry")))
    _check([middle, radii])
    around = np.linspace(0, 2 * np.pi, 360, endpoint=False)
    outline = np.stack([np.cos(around), np.sin(around)], axis=1) * radii
    return from_polygons([(outline @ _rotation(given) + middle).tolist()], size)


def _rotation(given: Mapping[str, str]) -> NDArray[np.float64]:
    """Return the matrix that rotates points (N, 2) about (0, 0), clockwise as y points down."""
    turn = math.radians(float(given.get("rotation", 0)))
    cos, sin = math.cos(turn), math.sin(turn)
    return np.array([[cos, sin], [-sin, cos]])


def _cvat_mask(given: Mapping[str, str], size: tuple[int, int]) -> Mask:
    height, width = int(given["height"]), int(given["width"])
    left, top = float(given["left"]), float(given["top"])
    _check([(left, top)])
    lengths = [int(length) for length in given["rle"].split(",")]
    return _placed(_from_runs(lengths, (height, width)), int(top), int(left), size)


CVAT_SHAPES = {
    "polygon": _cvat_polygon,
    "box": _cvat_box,
    "ellipse": _cvat_ellipse,
    "mask": _cvat_mask,
}
CVAT_HOLLOW = ("polyline", "points", "cuboid", "skeleton")


def from_polygons(polygons: Sequence[Points], size: tuple[int, int]) -> Mask:
    """Fill polygons, (x, y) from the picture's upper left corner, in pixels: (H, W), their union.

    A polygon may leave the picture; what is outside is left out.

    Raises:
        CarsegError: a polygon of fewer than three points, or a point that is no number or far away.
    """
    for points in polygons:
        _check(points)
        if len(points) < 3:
            raise CarsegError("a polygon of fewer than three points; draw it anew or remove it")
    flat = [np.asarray(points, float).ravel().tolist() for points in polygons]
    parts = coco.frPyObjects(flat, *size)
    return _decode(coco.merge(parts))


def _check(points: Points) -> None:
    if not (np.abs(np.asarray(points, float)) < FAR).all():  # false of what is no number, too
        raise CarsegError("a point that is no number, or far away; draw it anew or remove it")


def check_size(width: int, height: int) -> None:
    """Refuse a size that no picture has before anything of it is drawn.

    Raises:
        CarsegError: it is no size of whole numbers, or too large.
    """
    whole = isinstance(width, int) and isinstance(height, int)
    if not whole or min(width, height) < 1 or width * height > LARGEST:
        raise CarsegError(f"a picture or mask of {width!r}x{height!r} pixels; export it anew")


def _decode(runs: Any) -> Mask:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools lags behind numpy
        return np.asarray(coco.decode(runs), np.bool_)


def _placed(part: Mask, top: int, left: int, size: tuple[int, int]) -> Mask:
    """Place a part of a mask in the whole picture; what is outside is left out."""
    whole = np.zeros(size, np.bool_)
    bottom, right = max(0, top + part.shape[0]), max(0, left + part.shape[1])
    target = whole[max(0, top) : bottom, max(0, left) : right]
    target |= part[max(0, -top) :, max(0, -left) :][: target.shape[0], : target.shape[1]]
    return whole
