"""Array types of this package, and what turns arrays of points."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]  # float32 for what is shaded per point, else float64
Ints = NDArray[np.signedinteger[Any]]
Bools = NDArray[np.bool_]
Bytes = NDArray[np.uint8]


def rotation(angle: float) -> Floats:
    """Return the matrix (3, 3) that turns points about z, x towards y, by an angle in radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
