"""What is computed on: the layout of what convolutions read."""

import os

import pytest
import torch
from conftest import noise
from torch import Tensor, nn

from carseg.device import Device
from carseg.learner import train_step
from carseg.losses import BCEWithLogitsLoss
from carseg.u2net import U2Net

LAST, APART = torch.channels_last, torch.contiguous_format


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_keeps_to_the_layout_that_convolutions_compute_fastest_in(precision: str) -> None:
    """A photo laid out otherwise than the weights would bring its layout to all that follows."""
    device = Device(precision, "cpu")
    net = device.place_net(U2Net("u2netp"))
    met: list[Tensor] = []

    def note(_: nn.Module, args: tuple[Tensor, ...], given: Tensor) -> None:
        met.append(args[0])
        given.register_hook(met.append)

    layers = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d)]
    for layer in layers:
        layer.register_forward_hook(note)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    train_step(
        net,
        BCEWithLogitsLoss(),
        optimizer,
        device,
        noise(2, 3, 64, 64),
        noise(2, 1, 64, 64).gt(0).float(),
    )
    assert len(met) == 2 * len(layers)
    for x in met:
        if x.shape[1] == 1:
            continue  # a side output's gradient is a slice of that of all of them, and small
        assert x.is_contiguous(memory_format=LAST), x.shape


@pytest.mark.parametrize(
    ("features", "dtype"),
    [
        # AMD's processors multiply it at twice the rate of float32.
        ({"avx512_bf16": True, "avx512_fp16": True, "cpu_name": "AMD EPYC"}, torch.bfloat16),
        ({"avx512_f": True}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": True, "avx512_fp16": True, "amx_bf16": True}, torch.bfloat16),
        # As a virtual machine that hides AMX shows it: steps in bfloat16 take 1.3 times as long.
        ({"avx512_bf16": True, "avx512_fp16": True, "cpu_name": "Intel Xeon"}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_bfloat16_is_taken_where_it_is_faster(
    features: dict[str, object], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    assert Device("auto", "cpu").dtype == dtype
    assert Device("bfloat16", "cpu").dtype == torch.bfloat16, "what is asked for is done"


@pytest.mark.parametrize("repeatable", [True, False])
def test_a_gpu_repeats_itself_in_runs_but_other_programs_keep_their_settings(
    repeatable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: pytest.fail("it was chosen already"))
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # to be put back at the end
    del os.environ["CUBLAS_WORKSPACE_CONFIG"]
    try:
        device = Device("float32", "cuda", repeatable)
        assert (device.torch.type, device.torch.index) == ("cuda", 3), "the one of this thread"
        assert str(device) == "cuda in float32"
        fills: bool = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
        assert fills != repeatable
        assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) == repeatable
        assert torch.are_deterministic_algorithms_enabled() == repeatable
        assert torch.backends.cudnn.allow_tf32 != repeatable
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_batches_and_nets_have_channels_last(precision: str) -> None:
    device = Device(precision, "cpu")
    assert device.place(noise(2, 3, 8, 8)).is_contiguous(memory_format=LAST)
    net = device.place_net(U2Net("u2netp"))
    assert all(p.is_contiguous(memory_format=LAST) for p in net.parameters() if p.dim() == 4)


def test_layouts_change_no_gradient() -> None:
    gradients = []
    for layout in (APART, LAST):
        torch.manual_seed(0)
        net = U2Net("u2netp").double().to(memory_format=layout)  # type: ignore[call-overload]
        photos = noise(2, 3, 64, 64, dtype=torch.float64).to(memory_format=layout)
        net(photos).square().sum().backward()
        gradients.append([p.grad for p in net.parameters()])
    for one, other in zip(*gradients, strict=True):
        # Single small elements of a gradient of 30,000 are off by more than themselves allow.
        size = float(other.abs().max())
        torch.testing.assert_close(one, other, rtol=1e-7, atol=max(1e-7, 1e-10 * size))
