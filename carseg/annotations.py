"""What annotation tools write, as masks: COCO JSON, LabelMe JSON and CVAT XML."""

from __future__ import annotations

import base64
import io
import json
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pycocotools import mask as coco

from carseg.errors import CarsegError

Mask = NDArray[np.bool_]
Points = Sequence[Sequence[float]]
Corners = Sequence[tuple[float, float]]


class Region(NamedTuple):
    """A part of a picture that someone gave a class."""

    label: str
    mask: Mask  # (H, W), True inside


class Annotated(NamedTuple):
    """A picture's name, size and regions."""

    name: str
    width: int
    height: int
    regions: list[Region]


def read(path: Path) -> list[Annotated]:
    """Read every picture of an annotation file, whichever of the formats it is in.

    Raises:
        CarsegError: it is of none, or broken.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise CarsegError(f"{path}: there is no such file; check the path") from error
    except ValueError as error:
        raise CarsegError(f"{path}: is not text; give a COCO, LabelMe or CVAT file") from error
    try:
        return list(_reader(text)(text))
    except CarsegError as error:
        raise CarsegError(f"{path}: {error}") from error
    except (KeyError, IndexError, TypeError, ValueError, ET.ParseError, OSError) as error:
        raise CarsegError(
            f"{path}: is broken or of a kind that is not known ({error!r}); export it anew as COCO "
            "JSON, LabelMe JSON or CVAT XML for images"
        ) from error


def _reader(text: str) -> Callable[[str], Iterator[Annotated]]:
    if text.lstrip().startswith("<"):
        return read_cvat
    content = json.loads(text)
    if not isinstance(content, dict):
        raise CarsegError("is neither COCO nor LabelMe JSON; export it anew")
    if "shapes" in content:
        return read_labelme
    if {"images", "annotations", "categories"} <= content.keys():
        return read_coco
    raise CarsegError("is neither COCO nor LabelMe JSON; export it anew")


def read_coco(text: str) -> Iterator[Annotated]:
    """Read COCO JSON: polygons and run lengths, compressed or not."""
    content = json.loads(text)
    labels = {category["id"]: category["name"] for category in content["categories"]}
    regions: dict[Any, list[dict[str, Any]]] = {}
    for annotation in content["annotations"]:
        regions.setdefault(annotation["image_id"], []).append(annotation)
    for image in content["images"]:
        size = (image["height"], image["width"])
        yield Annotated(
            image["file_name"],
            image["width"],
            image["height"],
            [
                Region(labels[found["category_id"]], _from_coco(found["segmentation"], size))
                for found in regions.get(image["id"], [])
                if found.get("segmentation")
            ],
        )


def _from_coco(segmentation: Any, size: tuple[int, int]) -> Mask:
    if isinstance(segmentation, list):
        return from_polygons([np.reshape(flat, (-1, 2)).tolist() for flat in segmentation], size)
    if isinstance(segmentation["counts"], list):
        segmentation = coco.frPyObjects(segmentation, *size)
    if tuple(segmentation["size"]) != size:
        raise CarsegError(f"a mask of {segmentation['size']} in a picture of {list(size)}")
    return _decode(segmentation)


def read_labelme(text: str) -> Iterator[Annotated]:
    """Read LabelMe JSON: polygons, rectangles, circles and masks; one picture a file.

    Shapes are filled as LabelMe itself fills them, their outline with them.
    """
    content = json.loads(text)
    size = (content["imageHeight"], content["imageWidth"])
    regions = []
    for shape in content["shapes"]:
        kind = shape.get("shape_type") or "polygon"
        if kind == "mask":
            found = _pasted(shape, size)
        elif kind in LABELME_SHAPES:
            picture = Image.new("1", size[::-1])
            LABELME_SHAPES[kind](ImageDraw.Draw(picture), [tuple(p) for p in shape["points"]])
            found = np.asarray(picture)
        else:
            raise CarsegError(f"a {kind} has no inside; draw a polygon for {shape['label']!r}")
        regions.append(Region(shape["label"], found))
    # Windows writes the path with its own separators.
    name = content["imagePath"].replace("\\", "/")
    yield Annotated(name, size[1], size[0], regions)


def _pasted(shape: Mapping[str, Any], size: tuple[int, int]) -> Mask:
    (left, top), _ = shape["points"]
    with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as picture:
        part = np.asarray(picture.convert("L")) > 0
    return _placed(part, round(top), round(left), size)


def _polygon(draw: ImageDraw.ImageDraw, points: Corners) -> None:
    if len(points) < 3:
        raise CarsegError("a polygon of fewer than three points")
    draw.polygon(points, fill=1, outline=1)


def _rectangle(draw: ImageDraw.ImageDraw, points: Corners) -> None:
    (left, right), (top, bottom) = (sorted(ends) for ends in zip(*points, strict=True))
    draw.rectangle((left, top, right, bottom), fill=1, outline=1)


def _circle(draw: ImageDraw.ImageDraw, points: Corners) -> None:
    (x, y), (edge_x, edge_y) = points
    radius = float(np.hypot(edge_x - x, edge_y - y))
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1, outline=1)


LABELME_SHAPES = {
    "polygon": _polygon,
    "oriented_rectangle": _polygon,
    "rectangle": _rectangle,
    "circle": _circle,
}


def read_cvat(text: str) -> Iterator[Annotated]:
    """Read CVAT XML for images: polygons, boxes, ellipses and masks."""
    for image in ET.fromstring(text).iter("image"):  # noqa: S314 - Python's parser knows the bombs
        size = (int(image.attrib["height"]), int(image.attrib["width"]))
        regions = [
            Region(shape.attrib["label"], CVAT_SHAPES[shape.tag](shape.attrib, size))
            for shape in image
            if shape.tag in CVAT_SHAPES
        ]
        yield Annotated(image.attrib["name"], size[1], size[0], regions)


def _cvat_polygon(given: Mapping[str, str], size: tuple[int, int]) -> Mask:
    points = [[float(x) for x in point.split(",")] for point in given["points"].split(";")]
    return from_polygons([points], size)


def _cvat_box(given: Mapping[str, str], size: tuple[int, int]) -> Mask:
    left, top, right, bottom = (float(given[key]) for key in ("xtl", "ytl", "xbr", "ybr"))
    corners = np.array(_corners((left, top), (right, bottom)))
    turn = np.deg2rad(float(given.get("rotation", 0)))
    rotate = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    middle = corners.mean(axis=0)
    return from_polygons([((corners - middle) @ rotate + middle).tolist()], size)


def _cvat_ellipse(given: Mapping[str, str], size: tuple[int, int]) -> Mask:
    x, y, wide, high = (float(given[key]) for key in ("cx", "cy", "rx", "ry"))
    return _ellipse((x, y), (wide, high), float(given.get("rotation", 0)), size)


def _cvat_mask(given: Mapping[str, str], size: tuple[int, int]) -> Mask:
    height, width = int(given["height"]), int(given["width"])
    lengths = [int(length) for length in given["rle"].split(",")]
    # They alternate, background first, row by row.
    part = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(height, width)
    return _placed(part, int(float(given["top"])), int(float(given["left"])), size)


CVAT_SHAPES = {
    "polygon": _cvat_polygon,
    "box": _cvat_box,
    "ellipse": _cvat_ellipse,
    "mask": _cvat_mask,
}


def from_polygons(polygons: Sequence[Points], size: tuple[int, int]) -> Mask:
    """Fill polygons, (x, y) from the picture's upper left corner, in pixels: (H, W), their union.

    A polygon may leave the picture; what is outside is left out.
    """
    if min(len(points) for points in polygons) < 3:
        raise CarsegError("a polygon of fewer than three points")
    flat = [np.asarray(points, float).ravel().tolist() for points in polygons]
    parts = coco.frPyObjects(flat, *size)
    return _decode(coco.merge(parts))


def _decode(runs: Any) -> Mask:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools lags behind numpy
        return np.asarray(coco.decode(runs), np.bool_)


def _corners(one: Sequence[float], other: Sequence[float]) -> list[list[float]]:
    (left, right), (top, bottom) = sorted((one[0], other[0])), sorted((one[1], other[1]))
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def _ellipse(
    middle: Sequence[float], radii: Sequence[float], degrees: float, size: tuple[int, int]
) -> Mask:
    outline = cv2.ellipse2Poly(
        (0, 0), (round(1000 * radii[0]), round(1000 * radii[1])), round(degrees), 0, 360, 1
    )
    return from_polygons([(np.asarray(outline) / 1000 + np.asarray(middle)).tolist()], size)


def _placed(part: Mask, top: int, left: int, size: tuple[int, int]) -> Mask:
    """Place a part of a mask in the whole picture; what is outside is left out."""
    whole = np.zeros(size, np.bool_)
    target = whole[max(0, top) : top + part.shape[0], max(0, left) : left + part.shape[1]]
    target |= part[max(0, -top) :, max(0, -left) :][: target.shape[0], : target.shape[1]]
    return whole
