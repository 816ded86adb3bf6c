"""Batch norm over the batches of all processes."""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch norm whose statistics are those of all processes' photos: (N, C, H, W) to the same.

    As `torch.nn.SyncBatchNorm`, which needs a GPU. A process whose batch is empty takes part, too.
    """

    @classmethod
    def of(cls, layer: nn.BatchNorm2d) -> SyncBatchNorm:
        """Return a stand-in for a batch norm that shares its parameters and buffers."""
        synced = cls(layer.num_features, layer.eps, layer.momentum)
        synced._parameters, synced._buffers = layer._parameters, layer._buffers
        return synced.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise by everyone's statistics, and keep them; in eval mode by the kept ones."""
        if not self.training:
            normalised: Tensor = super().forward(x)
            return normalised
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        count = wide.new_full((1,), x.numel() // self.num_features)
        total = all_reduce_sum(torch.cat((wide.sum(dim=(0, 2, 3)), count)))
        whole = total[-1].detach()
        mean = total[:-1] / whole  # (C,)
        # Not the mean square less the squared mean, whose digits cancel.
        centred = wide - mean[:, None, None]
        variance = all_reduce_sum(centred.square().sum(dim=(0, 2, 3))) / whole  # (C,)
        self._keep(mean.detach(), (variance * whole / (whole - 1)).detach())
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    def _keep(self, mean: Tensor, variance: Tensor) -> None:
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        self.num_batches_tracked.add_(1)
        share = self.momentum
        if share is None:  # all batches so far weigh alike
            share = 1 / self.num_batches_tracked.item()
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradient)


def all_reduce_sum(x: Tensor) -> Tensor:
    """Add up the tensors of all processes; each one's loss may depend on all of them."""
    total: Tensor = _Sum.apply(x)  # type: ignore[no-untyped-call]
    return total


def synchronise(net: nn.Module) -> None:
    """Put a `SyncBatchNorm` in the place of every batch norm of a net."""
    for parent in list(net.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.BatchNorm2d):
                setattr(parent, name, SyncBatchNorm.of(layer))
