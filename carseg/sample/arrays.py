"""Names for the array types of this package."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]  # float32 for what is shaded per point, else float64
Ints = NDArray[np.signedinteger[Any]]
Bools = NDArray[np.bool_]
Bytes = NDArray[np.uint8]
