"""Convolutions give what torch gives, whichever way they are computed, and gradients, too."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from conftest import noise, uneven
from torch import Tensor, nn

from carseg import convolution, winograd
from carseg.convolution import Conv3x3, weight_gradient
from carseg.device import Device
from carseg.learner import train_step
from carseg.losses import BCEWithLogitsLoss
from carseg.u2net import U2Net

MULTIPLIES_SLOWLY, HAS_AVX512 = convolution._multiplies_slowly, convolution._has_avx512
LAST, APART = torch.channels_last, torch.contiguous_format

LAYERS = [  # channels in and out, dilation, height, width, by tiles
    (3, 16, 1, 20, 20, False),
    (16, 1, 1, 20, 20, False),
    (64, 64, 1, 20, 20, False),
    (64, 128, 1, 20, 20, True),
    (128, 64, 1, 12, 36, True),
    (128, 64, 1, 16, 20, False),
    (64, 128, 1, 22, 20, False),
    (64, 128, 1, 20, 21, False),
    (128, 64, 2, 20, 20, False),
    (16, 24, 4, 9, 7, False),
]


@pytest.fixture(autouse=True)
def _slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute as on a processor where tiles pay, whichever this is."""
    monkeypatch.setattr(convolution, "_multiplies_slowly", lambda: True)
    monkeypatch.setattr(convolution, "_has_avx512", lambda: False)


def layer_of(ins: int, outs: int, dilation: int = 1) -> Conv3x3:
    torch.manual_seed(0)
    return Conv3x3(ins, outs, dilation).to(memory_format=LAST)  # type: ignore[call-overload, no-any-return]


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Note what is computed by tiles."""
    met: list[str] = []
    with monkeypatch.context() as patch:
        for name in ("convolve", "gradients"):
            whole = getattr(winograd, name)

            def noted(*args: Tensor, name: str = name, whole: object = whole) -> object:
                met.append(name)
                return whole(*args)  # type: ignore[operator]

            patch.setattr(winograd, name, noted)
        yield met


@pytest.mark.parametrize("may_tile", [True, False])
@pytest.mark.parametrize(("ins", "outs", "dilation", "height", "width", "by_tiles"), LAYERS)
def test_results_and_gradients_are_torchs(
    ins: int,
    outs: int,
    dilation: int,
    height: int,
    width: int,
    by_tiles: bool,
    may_tile: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer = layer_of(ins, outs, dilation)
    layer.may_tile = may_tile
    x = noise(2, ins, height, width).contiguous(memory_format=LAST).requires_grad_()
    with counting(monkeypatch) as met:
        found = layer(x)
        given = noise(*found.shape, seed=1)
        assert layer.bias is not None
        learnt = (x, layer.weight, layer.bias)
        gradients = torch.autograd.grad(found, learnt, given)
    assert met == (["convolve", "gradients"] if by_tiles and may_tile else [])
    double = [t.detach().double().requires_grad_() for t in learnt]
    wanted = F.conv2d(double[0], double[1], double[2], padding=dilation, dilation=dilation)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)
    for one, other in zip(
        gradients, torch.autograd.grad(wanted, double, given.double()), strict=True
    ):
        scale = float(other.std()) if other.numel() > 1 else 1.0
        torch.testing.assert_close(one.double() / scale, other / scale, rtol=1e-3, atol=1e-3)
        assert one.dim() < 4 or one.is_contiguous(memory_format=LAST)
    assert found.is_contiguous(memory_format=LAST)
    with torch.no_grad():
        assert torch.equal(layer(x), found)  # who only looks sees the same


@pytest.mark.parametrize("dilation", [1, 2, 4, 8])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (20, 20)])
def test_the_gradient_of_weights(height: int, width: int, dilation: int) -> None:
    x = noise(2, 3, height, width, dtype=torch.float64)
    weight = noise(4, 3, 3, 3, seed=1, dtype=torch.float64).requires_grad_()
    y = F.conv2d(x, weight, padding=dilation, dilation=dilation)
    given = noise(*y.shape, seed=2, dtype=torch.float64)
    (wanted,) = torch.autograd.grad(y, weight, given)
    seen, learnt = (t.permute(0, 2, 3, 1).contiguous() for t in (x, given))
    found = weight_gradient(seen, learnt, dilation)
    torch.testing.assert_close(found.permute(0, 3, 1, 2), wanted)


@pytest.mark.parametrize("layout", [LAST, APART])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_it_is_torchs_own_bytes_but_in_float32_with_channels_last(
    dtype: torch.dtype, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = layer_of(64, 128).to(dtype)
    x = noise(1, 64, 20, 20).to(dtype, memory_format=layout)
    monkeypatch.setattr(
        convolution.Conv3x3Function,
        "apply",
        lambda x, weight, bias, *_: F.conv2d(x, weight, bias, padding=1) + 1,
    )
    ours = dtype == torch.float32 and layout == LAST
    assert torch.equal(layer(x), nn.Conv2d.forward(layer, x) + int(ours))


def test_a_training_step_in_float32_takes_tiles_and_a_look_at_what_is_exported_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device, net = Device("float32", "cpu"), U2Net("u2netp")
    photos, masks = noise(1, 3, 64, 64), noise(1, 1, 64, 64).gt(0).float()
    with counting(monkeypatch) as met:
        net(photos)
        assert met == []
        net = device.place_net(net)
        train_step(
            net, BCEWithLogitsLoss(), torch.optim.SGD(net.parameters()), device, photos, masks
        )
    # The two layers of the lite net that read 128 channels of pictures large enough.
    assert met == ["convolve"] * 2 + ["gradients"] * 2


def test_a_net_gives_the_same_by_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Device("float32", "cpu").place_net(uneven(U2Net("u2netp")))
    photo = noise(1, 3, 64, 64).contiguous(memory_format=LAST)
    with torch.no_grad():
        tiled = net(photo)
        monkeypatch.setattr(convolution, "_multiplies_slowly", lambda: False)
        plain = net(photo)
    assert not torch.equal(tiled, plain)
    assert float((tiled - plain).norm()) < 1e-4 * float(plain.norm())


def test_what_is_given_may_be_changed_in_place() -> None:
    """As ReLU does, in a folded net right after."""
    layer, x = layer_of(64, 128), noise(1, 64, 20, 20).contiguous(memory_format=LAST)
    F.relu(layer(x), inplace=True).sum().backward()
    assert layer.weight.grad is not None


def test_no_photo_at_all_has_gradients_of_nothing() -> None:
    """As a process has whose share of a batch is empty."""
    layer, x = layer_of(64, 128), noise(1, 64, 20, 20).contiguous(memory_format=LAST)[:0]
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    assert float(layer.weight.grad.abs().max()) == 0


def test_gradients_under_autocast_are_those_without() -> None:
    layer, x = layer_of(64, 128), noise(1, 64, 20, 20).contiguous(memory_format=LAST)
    (wanted,) = torch.autograd.grad(layer(x).sum(), layer.weight)
    found = layer(x).sum()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(torch.autograd.grad(found, layer.weight)[0], wanted)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit is old, OpenVINO needs it
def test_what_is_traced_or_exported_is_torchs_own_in_any_layout() -> None:
    layer, x = layer_of(64, 128), noise(2, 64, 20, 20).contiguous(memory_format=LAST)
    wanted = nn.Conv2d.forward(layer, x)
    with torch.no_grad():
        assert torch.equal(torch.jit.trace(layer, x, check_trace=False)(x), wanted)
    sizes = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(layer, (x,), dynamic_shapes=sizes)
    assert torch.equal(exported.module()(x), wanted)
    assert "conv2d" in str(exported.graph)


@pytest.mark.parametrize(
    ("capability", "mkl", "pays", "learns"),
    [
        ("AVX2", True, True, True),
        ("AVX2", False, False, True),
        ("AVX512", True, False, False),
        ("SVE", False, False, True),
    ],
)
def test_the_way_is_the_one_measured_as_the_fastest(
    capability: str, mkl: bool, pays: bool, learns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolution, "_multiplies_slowly", MULTIPLIES_SLOWLY.__wrapped__)
    monkeypatch.setattr(convolution, "_has_avx512", HAS_AVX512.__wrapped__)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    layer, x = layer_of(64, 128), noise(1, 64, 20, 20).contiguous(memory_format=LAST)
    with counting(monkeypatch) as met, torch.no_grad():
        layer(x)
    assert bool(met) == pays
    assert ("Conv3x3Function" in type(layer(x).grad_fn).__name__) == learns


def test_autocast_has_its_own_way() -> None:
    layer, x = layer_of(64, 128), noise(1, 64, 20, 20).contiguous(memory_format=LAST)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
    assert found.dtype == torch.bfloat16
    assert "Conv3x3Function" not in type(found.grad_fn).__name__


def test_a_frozen_layer_with_few_channels_needs_no_way_of_its_own() -> None:
    layer = layer_of(16, 16).requires_grad_(False)
    x = noise(1, 16, 8, 8).contiguous(memory_format=LAST).requires_grad_()
    assert "Conv3x3Function" not in type(layer(x).grad_fn).__name__


def test_another_default_dtype_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As programs have it that use carseg as a library."""
    layer, x = layer_of(64, 128), noise(1, 64, 20, 20).contiguous(memory_format=LAST)
    before = layer(x)
    torch.set_default_dtype(torch.float64)
    try:
        with counting(monkeypatch) as met:
            found = layer(x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert met
    assert torch.equal(found, before)


def test_photos_need_no_gradient() -> None:
    layer = layer_of(3, 16)
    layer(noise(1, 3, 8, 8).contiguous(memory_format=LAST)).sum().backward()
    assert layer.weight.grad is not None
