"""Batch norms of given weights, fitted to the photos that are to train."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from carseg.device import Device
from carseg.u2net import U2Net


def calibrate_batch_norm(net: U2Net, photos: Iterable[Tensor], device: Device) -> None:
    """Set batch norms' statistics to those of `photos`, without changing what the net computes.

    In eval mode a batch norm is a·x + b. Any mean and variance can stand in it if weight and
    bias make up for them; with those of the training photos, train mode computes nearly the
    same as eval mode, so training does not begin with a jolt.

    Args:
        net: on the device; its batch norms are changed in place, and it is left in eval mode.
        photos: (1, 3, H, W) each, normalised, all of one size.
        device: what to compute on.
    """
    layers = [layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)]
    moments: dict[nn.Module, list[Tensor]] = {layer: [] for layer in layers}

    def collect(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        variance, mean = torch.var_mean(args[0].float(), dim=(0, 2, 3), correction=0)
        moments[layer].append(torch.stack((mean, variance + mean**2)).double())  # (2, C)

    hooks = [layer.register_forward_pre_hook(collect) for layer in layers]
    net.eval()
    try:
        with torch.no_grad():
            for photo in photos:
                with device.autocast():
                    net(device.place(photo))
            for layer in layers:
                _restate(layer, *torch.stack(moments[layer]).mean(dim=0))
    finally:
        for hook in hooks:
            hook.remove()


def _restate(layer: nn.BatchNorm2d, mean: Tensor, square: Tensor) -> None:
    """Set a batch norm's statistics by mean and mean square, (C,) float64; keep its eval output."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    variance = (square - mean**2).clamp(min=0)
    scale = layer.weight.double() / (layer.running_var.double() + layer.eps).sqrt()
    shift = layer.bias.double() - layer.running_mean.double() * scale
    layer.running_mean.copy_(mean)
    layer.running_var.copy_(variance)
    layer.weight.copy_(scale * (variance + layer.eps).sqrt())
    layer.bias.copy_(shift + scale * mean)
