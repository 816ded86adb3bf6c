"""Photos that show the same, whatever their names, sizes and files' bytes."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

SIDE = 8  # pixels of a thumbnail
NEIGHBOURS = 8  # that a thumbnail is compared with: those most like it
NEAR = 4.0  # root mean square difference, of 255, of thumbnails that show the same; others have 20


def thumbnail(photo: Image.Image) -> NDArray[np.uint8]:
    """Shrink an RGB photo to (8, 8, 3), uint8; saved anew or scaled, it stays nearly the same."""
    return np.asarray(photo.resize((SIDE, SIDE), Image.Resampling.BOX))


def near_duplicates(thumbnails: Iterable[NDArray[np.uint8]]) -> Iterator[tuple[int, int]]:
    """Give (first, i) for each photo i that duplicates an earlier one; `first` is the first such.

    A photo turned by right angles, as without its EXIF tag, is a duplicate; a mirrored or cropped
    one is not.

    Args:
        thumbnails: of the photos, (8, 8, 3), uint8 each.
    """
    number_of: dict[bytes, int] = {}  # of each kind of thumbnail
    kind_of = array("q")
    for picture in thumbnails:
        kind_of.append(number_of.setdefault(picture.tobytes(), len(number_of)))
    if not number_of:
        return iter(())
    kinds = np.frombuffer(b"".join(number_of), np.uint8).reshape(len(number_of), -1)  # (K, 192)
    limit = NEAR * kinds.shape[1] ** 0.5
    tree = KDTree(kinds)
    links = coo_array((len(kinds), len(kinds)))
    for quarters in range(4):
        turned = np.rot90(kinds.reshape(-1, SIDE, SIDE, 3), quarters, axes=(1, 2))
        # What is missing, where fewer are near enough, has the number after the last.
        near = tree.query(
            turned.reshape(kinds.shape), k=NEIGHBOURS + 1, distance_upper_bound=limit, workers=-1
        )[1]
        ones, column = np.nonzero(near < len(kinds))
        others = near[ones, column]
        links += coo_array((np.ones(len(ones)), (ones, others)), shape=links.shape)
    group_of = connected_components(links, directed=False)[1]
    first_of: dict[int, int] = {}
    firsts = (first_of.setdefault(int(group_of[kind]), i) for i, kind in enumerate(kind_of))
    return ((first, i) for i, first in enumerate(firsts) if first != i)
