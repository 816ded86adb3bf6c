"""Resizing computes what torch's does, and so does its gradient."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from carseg.resize import Double, _without_gradient, resize


def torch_resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((1, 1), (2, 2)),
        ((2, 1), (4, 2)),
        ((2, 2), (4, 4)),
        ((10, 7), (20, 14)),
        ((10, 10), (40, 40)),
        ((5, 5), (9, 9)),
        ((6, 6), (12, 11)),
        ((8, 8), (4, 4)),
        ((8, 8), (8, 8)),
    ],
)
def test_values_and_gradients_are_those_of_torch(
    old: tuple[int, int], new: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, *old, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, *new, dtype=torch.float64)
    found, wanted = resize(x, new), torch_resize(x, new)
    torch.testing.assert_close(found, wanted)
    gradients = [torch.autograd.grad((y * weight).sum(), x)[0] for y in (found, wanted)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("photos", [1, 2])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_a_part_of_a_concatenation(
    dtype: torch.dtype, layout: torch.memory_format, photos: int
) -> None:
    """As in the net: laid out as what came in, and what comes back is a slice that must stay."""
    torch.manual_seed(0)
    x = torch.randn(photos, 8, 10, 10).to(dtype, memory_format=layout).requires_grad_()
    skip = torch.randn(photos, 8, 20, 20).to(dtype, memory_format=layout)
    weight = torch.randn(photos, 16, 20, 20).to(dtype, memory_format=layout)
    gradients = []
    for function in (resize, torch_resize):
        y = torch.cat((function(x, (20, 20)), skip), dim=1)
        given = weight.clone()
        gradients.append(torch.autograd.grad(y, x, given)[0])
        assert torch.equal(given, weight)
    assert gradients[0].is_contiguous(memory_format=layout)
    rtol, atol = (None, None) if dtype == torch.float32 else (0.02, 0.03)
    torch.testing.assert_close(*gradients, rtol=rtol, atol=atol)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(20, 14), (29, 40)])
def test_what_a_gpu_takes_where_nothing_learns_gives_torchs_bytes(
    dtype: torch.dtype, layout: torch.memory_format, size: tuple[int, int]
) -> None:
    x = torch.randn(2, 3, 10, 7).to(dtype, memory_format=layout)
    found, wanted = _without_gradient(x, size), torch_resize(x, size)
    assert torch.equal(found, wanted)
    assert found.stride() == wanted.stride()


def test_on_a_gpu_autocast_leaves_features_in_bfloat16() -> None:
    torch.set_autocast_enabled("cuda", True)  # which torch.autocast does with a GPU alone
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        with FakeTensorMode():
            x = torch.empty(1, 2, 4, 4, dtype=torch.bfloat16, device="cuda")
            assert resize(x, (8, 8)).dtype == torch.bfloat16
    finally:
        torch.set_autocast_enabled("cuda", False)


def test_the_quick_gradient_is_taken_only_where_one_is_wanted() -> None:
    x = torch.randn(1, 2, 4, 4)
    assert resize(x, (8, 8)).grad_fn is None
    x.requires_grad_()
    assert type(resize(x, (8, 8)).grad_fn).__name__ == f"{Double.__name__}Backward"
    assert "Upsample" in type(resize(x, (9, 9)).grad_fn).__name__
    with torch.no_grad():
        assert resize(x, (8, 8)).grad_fn is None
