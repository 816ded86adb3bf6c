"""U²-Net against a second one, written from the paper in NumPy: slow, recursive, and apart."""

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from conftest import noise, uneven
from numpy.typing import NDArray
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from carseg import u2net
from carseg.fuse import fuse_batch_norm
from carseg.u2net import ConvBNReLU, U2Net

Array = NDArray[np.float64]
Values = dict[str, Array]

PARAMETERS = {"u2net": 44_009_869, "u2netp": 1_131_181}
# The paper's figure 5: the height of the block at each outer level; F: dilated, without pooling.
BLOCKS = {1: "7", 2: "6", 3: "5", 4: "4", 5: "4F", 6: "4F"}
# Its table 1: channels inside and out of each stage of the full net.
MIDDLE = {"1": 32, "2": 32, "3": 64, "4": 128, "5": 256, "6": 256,
          "5d": 256, "4d": 128, "3d": 64, "2d": 32, "1d": 16}  # fmt: skip
OUT = {"1": 64, "2": 128, "3": 256, "4": 512, "5": 512, "6": 512,
       "5d": 512, "4d": 256, "3d": 128, "2d": 64, "1d": 64}  # fmt: skip


def stage_names() -> list[str]:
    """The stages in the order of the authors' code, with the block that stands in each."""
    return ["1", "2", "3", "4", "5", "6", "5d", "4d", "3d", "2d", "1d"]


def block_convolutions(kind: str) -> Iterator[tuple[str, int]]:
    """Names and dilations of one block's convolutions, in order."""
    height, dilated = int(kind[0]), kind.endswith("F")
    yield "rebnconvin", 1
    for i in range(1, height):
        yield f"rebnconv{i}", 2 ** (i - 1) if dilated else 1
    yield f"rebnconv{height}", 2 ** (height - 1) if dilated else 2
    for i in reversed(range(1, height)):
        yield f"rebnconv{i}d", 2 ** (i - 1) if dilated else 1


def expected_keys() -> Iterator[str]:
    for stage in stage_names():
        for name, _ in block_convolutions(BLOCKS[int(stage[0])]):
            for part in ("weight", "bias"):
                yield f"stage{stage}.{name}.conv_s1.{part}"
            for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
                yield f"stage{stage}.{name}.bn_s1.{part}"
    for name in (*(f"side{i}" for i in range(1, 7)), "outconv"):
        yield from (f"{name}.weight", f"{name}.bias")


def on_meta(variant: str) -> U2Net:
    with torch.device("meta"):
        return U2Net(variant)


def convolve(x: Array, weight: Array, bias: Array, dilation: int) -> Array:
    """(C, H, W) to (out, H, W): one matrix product for each of the kernel's places."""
    _, height, width = x.shape
    reach = dilation * (weight.shape[2] // 2)
    padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach)))
    out = np.zeros((weight.shape[0], height, width)) + bias[:, None, None]
    for row in range(weight.shape[2]):
        for column in range(weight.shape[3]):
            top, left = row * dilation, column * dilation
            window = padded[:, top : top + height, left : left + width]
            out += np.tensordot(weight[:, :, row, column], window, axes=1)
    return out


def pool(x: Array) -> Array:
    """Halve, with an odd last row or column as a cell of its own."""
    channels, height, width = x.shape
    padded = np.pad(x, ((0, 0), (0, height % 2), (0, width % 2)), constant_values=-np.inf)
    cells = padded.reshape(channels, -(-height // 2), 2, -(-width // 2), 2)
    return np.asarray(cells.max(axis=(2, 4)))


def stretch(x: Array, axis: int, length: int) -> Array:
    """Linear interpolation along one axis, pixels taken as areas and not as points."""
    old = x.shape[axis]
    at = np.clip((np.arange(length) + 0.5) * old / length - 0.5, 0, old - 1)
    below = np.floor(at).astype(int)
    above = np.minimum(below + 1, old - 1)
    share = (at - below).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    return x.take(below, axis) * (1 - share) + x.take(above, axis) * share


def stretched(x: Array, like: Array) -> Array:
    return stretch(stretch(x, 1, like.shape[1]), 2, like.shape[2])


def unit(v: Values, name: str, x: Array, dilation: int) -> Array:
    """Convolution, batch norm, ReLU."""
    y = convolve(x, v[f"{name}.conv_s1.weight"], v[f"{name}.conv_s1.bias"], dilation)
    weight, bias, mean, variance = (
        v[f"{name}.bn_s1.{part}"][:, None, None]
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    return np.maximum((y - mean) / np.sqrt(variance + 1e-5) * weight + bias, 0)


def block(v: Values, stage: str, kind: str, x: Array) -> Array:
    dilation_of = dict(block_convolutions(kind))
    height = int(kind[0])

    def run(name: str, x: Array) -> Array:
        return unit(v, f"{stage}.{name}", x, dilation_of[name])

    def inner(i: int, x: Array) -> Array:
        if not kind.endswith("F") and i not in (1, height):
            x = pool(x)
        x = run(f"rebnconv{i}", x)
        if i == height:
            return x
        return run(f"rebnconv{i}d", np.concatenate([stretched(inner(i + 1, x), x), x]))

    x = run("rebnconvin", x)
    return inner(1, x) + x


def reference(v: Values, photo: Array) -> Array:
    """Seven logits of one photo (3, H, W)."""
    decoded: dict[int, Array] = {}

    def outer(i: int, x: Array) -> Array:
        x = block(v, f"stage{i}", BLOCKS[i], x if i == 1 else pool(x))
        if i < 6:
            both = np.concatenate([stretched(outer(i + 1, x), x), x])
            x = block(v, f"stage{i}d", BLOCKS[i], both)
        decoded[i] = x
        return x

    outer(1, photo)
    sides = np.concatenate(
        [
            stretched(convolve(decoded[i], v[f"side{i}.weight"], v[f"side{i}.bias"], 1), photo)
            for i in range(1, 7)
        ]
    )
    fused = convolve(sides, v["outconv.weight"], v["outconv.bias"], 1)
    return np.concatenate([fused, sides])


@pytest.mark.parametrize(
    ("variant", "height", "width"),
    [("u2netp", 45, 70), ("u2netp", 64, 33), ("u2net", 35, 20)],
)
def test_logits_are_those_of_a_second_implementation(variant: str, height: int, width: int) -> None:
    # In double precision even another epsilon of the batch norms would show.
    net = uneven(U2Net(variant)).double()
    photos = noise(2, 3, height, width, dtype=torch.float64)
    with torch.inference_mode():
        found = net(photos).numpy()
    values = {key: value.numpy() for key, value in net.state_dict().items()}
    expected = np.stack([reference(values, photo) for photo in photos.numpy()])
    assert found.shape == (2, 7, height, width)
    assert expected.std(axis=(0, 2, 3)).min() > 1e-3, "flat logits would prove nothing"
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("variant", ["u2net", "u2netp"])
def test_state_dict_has_the_authors_keys_in_order(variant: str) -> None:
    keys = list(on_meta(variant).state_dict())
    assert keys == list(expected_keys())
    assert len(keys) == 798


@pytest.mark.parametrize("variant", ["u2net", "u2netp"])
def test_parameters_are_as_many_as_published(variant: str) -> None:
    assert sum(p.numel() for p in on_meta(variant).parameters()) == PARAMETERS[variant]


@pytest.mark.parametrize(
    ("variant", "middle", "out"),
    [("u2net", MIDDLE.get, OUT.get), ("u2netp", lambda _: 16, lambda _: 64)],
)
def test_stages_are_as_wide_as_in_the_paper(
    variant: str, middle: Callable[[str], int], out: Callable[[str], int]
) -> None:
    state = on_meta(variant).state_dict()
    for stage in stage_names():
        bottom = f"rebnconv{BLOCKS[int(stage[0])][0]}"
        assert len(state[f"stage{stage}.{bottom}.conv_s1.bias"]) == middle(stage), stage
        assert len(state[f"stage{stage}.rebnconv1d.conv_s1.bias"]) == out(stage), stage


@pytest.mark.parametrize("variant", ["u2net", "u2netp"])
def test_convolutions_are_dilated_where_the_paper_has_it(variant: str) -> None:
    convolutions = [
        (name, layer) for name, layer in on_meta(variant).named_modules()
        if isinstance(layer, nn.Conv2d)
    ]  # fmt: skip
    expected = [
        (f"stage{stage}.{name}.conv_s1", (dilation, dilation))
        for stage in stage_names()
        for name, dilation in block_convolutions(BLOCKS[int(stage[0])])
    ]
    expected += [(name, (1, 1)) for name in (*(f"side{i}" for i in range(1, 7)), "outconv")]
    assert [(name, layer.dilation) for name, layer in convolutions] == expected
    assert len(convolutions) == 119


def test_the_first_logit_is_fused_from_the_other_six() -> None:
    net = uneven(U2Net("u2netp"))
    with torch.inference_mode():
        logits = net(noise(1, 3, 40, 50))
        torch.testing.assert_close(logits[:, :1], net.outconv(logits[:, 1:]))


def test_side_outputs_go_from_fine_to_coarse() -> None:
    net = uneven(U2Net("u2netp"))
    with torch.inference_mode():
        sides = net(noise(1, 3, 128, 128))[0, 1:]
    # Stretched from half the size each, they bend less and less.
    bends = sides.diff(n=2, dim=1).abs().mean(dim=(1, 2)) / sides.std(dim=(1, 2))
    assert bends.tolist() == sorted(bends.tolist(), reverse=True)


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(KeyError):
        U2Net("u2netx")


def test_layers_that_add_large_constants_compute_in_float32_under_autocast() -> None:
    photo = noise(1, 3, 64, 64)
    net = uneven(U2Net("u2netp"))
    layer = net.stage2d.rebnconv1d
    with torch.no_grad():
        # A channel that is alike all over the picture adds 1299.2, which is taken away again.
        below = net.stage2d.rebnconv2d.bn_s1
        below.weight[0], below.bias[0] = 0, 16
        layer.conv_s1.weight[:, 0] = 0
        layer.conv_s1.weight[:, 0, 1, 1] = 81.2
        layer.bn_s1.running_mean.add_(16 * 81.2)
        exact = net(photo)
        with torch.autocast("cpu", torch.bfloat16):
            rough = net(photo).float()
            net.keep_exact()
            kept = net(photo)
    chosen = [name for name, module in net.named_modules() if getattr(module, "exact", False)]
    assert chosen == ["stage2d.rebnconv1d"]
    layers = [module for module in net.modules() if isinstance(module, ConvBNReLU)]
    assert all(layer.conv_s1.may_tile != layer.exact for layer in layers)
    assert kept.dtype == torch.bfloat16
    assert float((kept.float() - exact).norm()) < 0.5 * float((rough - exact).norm())
    # Learning goes through these layers, too.
    with torch.autocast("cpu", torch.bfloat16):
        net.train()(photo).float().sum().backward()
    assert bool(layer.conv_s1.weight.grad.isfinite().all())
    assert float(layer.conv_s1.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize("folded", [False, True])
def test_numbers_beside_large_constants_are_told_apart_under_autocast(folded: bool) -> None:
    photo = noise(1, 3, 64, 64)
    net = uneven(U2Net("u2netp"))
    layer = net.stage2d.rebnconv1d
    with torch.no_grad():
        # A channel gives 300, give or take 1; what is alike in it is taken away again.
        net.stage2d.rebnconv2d.bn_s1.bias[0] = 300
        layer.conv_s1.weight[:, 0] = 0
        layer.conv_s1.weight[:, 0, 1, 1] = 1
        layer.bn_s1.running_mean.add_(300)
        net.keep_exact()
        exact = net(photo)
        with torch.autocast("cpu", torch.bfloat16):
            kept = (fuse_batch_norm(net) if folded else net)(photo).float()
            net.stage2d.rebnconv2d.exact_output = False  # rounds what it gives
            rounded = net(photo).float()
    assert float((kept - exact).norm()) < 0.3 * float((rounded - exact).norm())


def test_only_what_an_exact_layer_reads_is_given_in_float32() -> None:
    net = uneven(U2Net("u2netp"))
    block = net.stage2d
    with torch.no_grad():
        for name in ("rebnconv2d", "rebnconv1d", "rebnconv3"):
            block.get_submodule(name).bn_s1.bias[0] = 300
    net.keep_exact()
    given = [name for name, layer in block.named_modules() if getattr(layer, "exact_output", False)]
    # What comes after the block's last layer and after its third need not be exact.
    assert given == ["rebnconv2d"]


def test_a_fresh_net_has_no_such_layer() -> None:
    net = U2Net("u2netp")
    net.keep_exact()
    assert not any(getattr(module, "exact", False) for module in net.modules())


class Convolutions(TorchDispatchMode):
    """Counts them, gradients apart."""

    count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += function is torch.ops.aten.convolution.default
        return function(*args, **(kwargs or {}))


Layout = torch.memory_format


def learn(
    net: U2Net, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[torch.Tensor], list[str], int, int]:
    """Give gradients of one look, what numbers are kept, convolutions, and joined parts kept."""
    numbers: list[str] = []
    joined: list[StorageWeakRef] = []
    join = u2net.join

    def note(x: torch.Tensor) -> torch.Tensor:
        numbers.append(str(x.dtype))
        return x

    def watched(*parts: torch.Tensor) -> torch.Tensor:
        whole = join(*parts)
        if len(parts) > 1:
            joined.append(StorageWeakRef(whole.untyped_storage()))
        return whole

    net = copy.deepcopy(net).train().to(memory_format=layout)  # type: ignore[call-overload]
    photos = noise(2, 3, 64, 96).contiguous(memory_format=layout)
    with Convolutions() as convolutions, monkeypatch.context() as patch:
        patch.setattr(u2net, "join", watched)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            logits = net(photos)
        kept = sum(not reference.expired() for reference in joined)
        logits.square().mean().backward()
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    return gradients, numbers, convolutions.count, kept


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_what_is_joined_or_pooled_is_so_again_for_the_gradient_and_no_convolution_is(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = uneven(U2Net("u2netp"))
    gradients, numbers, convolutions, kept = learn(net, layout, monkeypatch)
    assert kept == 0
    assert "torch.int64" not in numbers  # which of four neighbours were largest
    assert convolutions >= 112 + 7
    monkeypatch.setattr(u2net, "checkpoint", lambda compute, *given, **_: compute(*given))
    monkeypatch.setattr(u2net, "keep_apart", lambda *_: nullcontext())
    wanted, whole, same, all_kept = learn(net, layout, monkeypatch)
    assert all_kept == 50
    assert whole.count("torch.int64") == 5 + 2 * (5 + 4 + 3 + 2)
    assert same == convolutions
    assert len(gradients) == len(list(net.parameters()))
    for gradient, expected in zip(gradients, wanted, strict=True):
        assert torch.equal(gradient, expected)


def test_it_learns_on_the_meta_device_and_is_exported_with_gradients_too() -> None:
    net = on_meta("u2netp")
    net(torch.empty(2, 3, 64, 64, device="meta")).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in net.parameters())
    exported = torch.export.export(U2Net("u2netp").eval(), (noise(2, 3, 64, 64),))
    assert str(exported.graph).count("torch.ops.aten.conv2d.default") == 112 + 7
