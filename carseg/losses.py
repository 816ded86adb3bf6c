"""Losses on logits, of the fused and the side outputs alike (deep supervision).

The outputs' losses are averaged, where the paper sums them (U²-Net, Qin et al. 2020, equation 1).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BCEWithLogitsLoss(nn.Module):
    """Binary cross-entropy of every output, given as logits, against the one mask."""

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the mean over all outputs and pixels.

        Args:
            logits: (N, K, H, W), float.
            mask: (N, 1, H, W), float, share of car in each pixel, 0…1.
        """
        return F.binary_cross_entropy_with_logits(logits, mask.expand_as(logits))


class DiceLoss(nn.Module):
    """Soft Dice loss, 1 - (2·Σpt + s) / (Σp + Σt + s), for each photo and output by itself.

    After V-Net (Milletari et al. 2016, arXiv:1606.04797, section 3) with plain sums in the
    denominator; s is `smooth`, which keeps a mask without a car defined.
    """

    def __init__(self, smooth: float = 1.0) -> None:
        super().__init__()
        self.smooth = smooth

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the mean over photos and outputs, 0…1.

        Args:
            logits: (N, K, H, W), float.
            mask: (N, 1, H, W), float, share of car in each pixel, 0…1.
        """
        probability = torch.sigmoid(logits)
        overlap = (probability * mask).sum(dim=(2, 3))  # (N, K)
        total = probability.sum(dim=(2, 3)) + mask.sum(dim=(2, 3))  # (N, K)
        return (1 - (2 * overlap + self.smooth) / (total + self.smooth)).mean()
