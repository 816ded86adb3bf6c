"""Convolving by tiles gives what a plain convolution does, and so do its gradients."""

import pytest
import torch
import torch.nn.functional as F
from conftest import noise
from torch import Tensor

from carseg import winograd

SHAPES = [  # photos, channels in and out, height, width
    (1, 1, 1, 4, 4),
    (1, 4, 2, 8, 4),
    (2, 3, 5, 8, 12),
    (3, 2, 2, 40, 40),
    (2, 2, 3, 4, 100),
]


def last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous()


@pytest.mark.parametrize("at_once", [1, 7, 23, 800])
@pytest.mark.parametrize(("photos", "ins", "outs", "height", "width"), SHAPES)
def test_results_and_gradients_are_those_of_a_plain_convolution(
    photos: int,
    ins: int,
    outs: int,
    height: int,
    width: int,
    at_once: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where they are computed in pieces: bands of rows that touch, or photos in groups."""
    monkeypatch.setattr(winograd, "AT_ONCE", at_once)
    x = noise(photos, ins, height, width, dtype=torch.float64).requires_grad_()
    weight = noise(outs, ins, 3, 3, seed=1, dtype=torch.float64).requires_grad_()
    wanted = F.conv2d(x, weight, padding=1)
    given = noise(*wanted.shape, seed=2, dtype=torch.float64)
    gradients = torch.autograd.grad(wanted, (x, weight), given)
    with torch.no_grad():
        found = torch.empty_like(last(wanted))
        winograd.convolve(last(x), last(weight), found)
        of_x, of_weight = winograd.gradients(last(x), last(weight), last(given))
    torch.testing.assert_close(found, last(wanted))
    torch.testing.assert_close(of_x, last(gradients[0]))
    torch.testing.assert_close(of_weight, last(gradients[1]))


@pytest.mark.parametrize("at_once", [1, 24, 25, 74, 75, 800])
@pytest.mark.parametrize(("photos", "height", "width"), [(3, 20, 20), (2, 4, 40), (1, 12, 4)])
def test_pieces_cover_everything_once(
    photos: int, height: int, width: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "AT_ONCE", at_once)
    met = torch.zeros(photos, height, width, 1)
    for some, band in winograd.pieces(met):
        tiles = len(met[some]) * (band.stop - band.start) * width / 16
        assert tiles <= max(at_once, width / 4)  # a row of tiles is the least
        met[some, band] += 1
    assert torch.equal(met, torch.ones_like(met))


def test_in_float32_results_are_off_by_no_more_than_is_said() -> None:
    x, weight = noise(2, 256, 40, 40), noise(64, 256, 3, 3, seed=1)
    wanted = F.conv2d(x.double(), weight.double(), padding=1)
    found = torch.empty(2, 40, 40, 64)
    winograd.convolve(last(x), last(weight), found)
    off = (found.permute(0, 3, 1, 2) - wanted) / wanted.std()
    assert float(off.std()) < 5e-6
    assert float(off.abs().max()) < 1e-4
