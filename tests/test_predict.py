"""From probabilities to masks: the average of views, and scaling before the threshold."""

import numpy as np
import pytest
import torch
from conftest import noise
from PIL import Image
from torch import Tensor, nn

from carseg.device import Device
from carseg.predict import at_size, combine, combine_two, find, predict_views, probability
from carseg.tensors import photo_tensor
from carseg.views import D4, View, turn

CPU = Device("float32", "cpu")


def probability_of_views(net: nn.Module, photo: Tensor) -> Tensor:
    return predict_views(lambda photos: probability(net, photos, CPU), photo)


class Corner(nn.Module):
    """Stands in for the net: logits that know left from right and top from bottom."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = torch.linspace(-2, 2, 8).view(1, 1, 8, 1) + torch.linspace(-1, 1, 8)
        self.seen: list[Tensor] = []

    def forward(self, photos: Tensor) -> Tensor:
        self.seen.append(photos.clone())
        fused = photos.mean(dim=1, keepdim=True) + self.slope
        return torch.cat([fused, *[torch.full_like(fused, 9.0)] * 6], dim=1)


def test_probability_is_the_sigmoid_of_the_fused_logit() -> None:
    net, photos = Corner(), noise(2, 3, 8, 8)
    found = probability(net, photos, CPU)
    assert (found.shape, found.dtype, found.requires_grad) == ((2, 1, 8, 8), torch.float32, False)
    expected = 1 / (1 + np.exp(-(photos.mean(1, keepdim=True) + net.slope).numpy()))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_probability_is_float32_even_from_bfloat16() -> None:
    net = nn.Conv2d(3, 7, 1)
    found = probability(net, noise(1, 3, 8, 8), Device("bfloat16"))
    assert found.dtype == torch.float32
    exact = probability(net, noise(1, 3, 8, 8), CPU)
    torch.testing.assert_close(found, exact, rtol=0.02, atol=0.02)
    assert not torch.equal(found, exact), "as if nothing had been computed in bfloat16"


def test_views_are_predictions_of_the_turned_photo_laid_back() -> None:
    net, photo = Corner(), noise(3, 8, 8)
    found = probability_of_views(net, photo)
    assert (found.shape, len(net.seen)) == ((8, 1, 8, 8), 8)
    expected = []
    for flip in (False, True):
        for quarter in range(4):
            view = np.rot90(photo.numpy(), quarter, (1, 2))
            view = view[..., ::-1] if flip else view
            logits = view.mean(axis=0) + net.slope[0, 0].numpy()
            back = np.rot90(logits[..., ::-1] if flip else logits, -quarter)
            expected.append(torch.sigmoid(torch.from_numpy(back.copy()))[None])
    torch.testing.assert_close(found, torch.stack(expected))


def test_alike_views_are_averaged() -> None:
    # A row each, equally sure of it, with what it finds in another place.
    views = torch.stack(
        [torch.full((1, 4, 4), 0.2).index_fill(1, torch.tensor(i), 0.8) for i in (0, 2)]
    )
    torch.testing.assert_close(combine(views), views.mean(dim=0))


def test_a_surer_view_weighs_more_as_documented() -> None:
    sure, unsure = torch.full((1, 4, 4), 0.1), torch.full((1, 4, 4), 0.1)
    sure[:, :2], unsure[:, :2] = 0.9, 0.88
    expected = (0.9 * np.exp(50 * 0.8) + 0.88 * np.exp(50 * 0.76)) / (
        np.exp(50 * 0.8) + np.exp(50 * 0.76)
    )
    found = combine(torch.stack([unsure, sure]))
    torch.testing.assert_close(found[0, 0], torch.full((4,), float(expected)), rtol=1e-4, atol=0)


def test_of_two_views_the_one_surer_of_the_picture_weighs_more() -> None:
    sure, unsure = torch.full((1, 4, 4), 0.9), torch.full((1, 4, 4), 0.11)
    expected = (0.9 * np.exp(100 * 0.8) + 0.11 * np.exp(100 * 0.78)) / (
        np.exp(100 * 0.8) + np.exp(100 * 0.78)
    )
    found = combine_two(torch.stack([unsure, sure]))
    torch.testing.assert_close(found, torch.full((1, 4, 4), float(expected)), rtol=1e-3, atol=0)


def test_of_a_view_that_finds_no_car_hardly_anything_is_kept() -> None:
    blank, found = torch.zeros(1, 4, 4), torch.full((1, 4, 4), 0.2)
    found[:, 1:3] = 0.7  # far less sure than the blank one is of its background
    torch.testing.assert_close(combine(torch.stack([*[blank] * 7, found])), found)
    assert not combine(torch.stack([blank, blank])).any(), "where none does, there is none"


def test_a_speck_does_not_outvote_a_car() -> None:
    car, speck = torch.full((1, 8, 8), 0.1), torch.full((1, 8, 8), 0.0)
    car[:, 2:7, 1:7], speck[:, 0, :2] = 0.9, 1.0  # an eighth would be four pixels
    assert torch.equal(combine(torch.stack([*[speck] * 7, car])) >= 0.5, car >= 0.5)
    speck[:, 0, 2:4] = 1.0
    assert not torch.equal(combine(torch.stack([*[speck] * 7, car])) >= 0.5, car >= 0.5)


@pytest.mark.parametrize("view", D4)
def test_the_average_of_views_turns_with_the_photo(view: View) -> None:
    net, photo = Corner(), noise(3, 8, 8)
    straight = combine(probability_of_views(net, photo))
    turned = combine(probability_of_views(net, turn(photo, view)))
    torch.testing.assert_close(turned, turn(straight, view))


def test_finding_is_squaring_looking_and_scaling_back() -> None:
    net = Corner()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 12, 3), np.uint8)
    photo = Image.fromarray(pixels)

    def look(photos: Tensor) -> Tensor:
        return probability(net, photos, CPU)

    square = photo_tensor(np.asarray(photo.resize((8, 8), Image.Resampling.LANCZOS)))
    views = predict_views(look, square)
    for chosen, expected in ((D4[:1], views[0]), (D4, combine(views))):
        found = find(look, photo, chosen, 8)
        assert (found.shape, found.dtype) == ((6, 12), np.float32)
        scaled = torch.nn.functional.interpolate(expected[None], (6, 12), mode="bilinear")
        np.testing.assert_allclose(found, scaled[0, 0], rtol=1e-6)


def test_a_mask_has_the_photos_own_size() -> None:
    mask = at_size(torch.tensor([[[0.0, 1.0], [0.0, 1.0]]]), (5, 9)) >= 0.5
    assert (mask.shape, mask.dtype) == ((5, 9), np.bool_)
    assert mask.tolist() == [[False] * 4 + [True] * 5] * 5


def test_probabilities_are_scaled_before_the_threshold() -> None:
    # Thresholded first, the single sure pixel would become four and its neighbours none.
    probabilities = torch.tensor([[[0.4, 0.4, 1.0, 0.4]]])
    soft = at_size(probabilities, (1, 16)) >= 0.5
    at = np.clip((np.arange(16) + 0.5) / 4 - 0.5, 0, 3)
    expected = np.interp(at, range(4), [0.4, 0.4, 1.0, 0.4]) >= 0.5
    assert soft[0].tolist() == expected.tolist()
    hard = at_size((probabilities >= 0.5).float(), (1, 16)) >= 0.5
    assert soft.sum() > hard.sum()
