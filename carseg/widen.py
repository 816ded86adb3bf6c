"""Function-preserving widening: a small net inside a wide one.

After the idea of Net2Net (Chen et al. 2016, arXiv:1511.05641), but the added channels are fresh,
behind weights of zero, where Net2WiderNet copies channels and divides what reads them.
U²-Net† is U²-Net with fewer channels, so its weights fit into the first channels of every layer
of the full net. The carried-over channels read nothing from the added ones, hence the wide net
computes what the small one does; the added ones start at random and are there to learn.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

# The input of these convolutions is two halves, (deeper, skip), each widened separately.
HALVES = re.compile(r"(stage\dd\.rebnconvin|rebnconv\dd)\.conv_s1\.weight$")

# Scale of the added channels. The carried-over ones read them with zero weights, all of which
# Adam's first steps move by the full learning rate at once. Quiet channels limit the disturbance
# (docs/recipe.md; not compared alone).
QUIET = 0.1


def widen(small: dict[str, Tensor], wide: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of the wide net that computes what the small one does.

    Args:
        small: state dict of the net to carry over.
        wide: state dict of a freshly made wide net, the source of the added channels; not changed.
    """
    state = {}
    for key, fresh in wide.items():
        old, new = small[key], fresh.clone()
        if old.dim() == 0:
            new = old.clone()
        elif old.dim() == 1:
            if key.endswith(("bn_s1.weight", "bn_s1.bias")):
                new *= QUIET
            new[: len(old)] = old
        else:
            rows = old.shape[0]
            new[:rows] = 0
            new[:rows, _columns(key, old.shape[1], new.shape[1])] = old
        state[key] = new
    return state


def _columns(key: str, old: int, new: int) -> Tensor:
    """Return the input channels of the wide convolution that carry the small one's."""
    columns = torch.arange(old)
    if HALVES.search(key):
        columns[old // 2 :] += (new - old) // 2
    return columns
