"""Arrays as tensors: the numbers that the official weights expect."""

import numpy as np
import pytest
import torch
from conftest import ellipse

from carseg.tensors import mask_tensor, photo_tensor


def test_a_photo_is_normalised_as_by_hand() -> None:
    photo = np.zeros((4, 6, 3), np.uint8)
    photo[1, 2] = (200, 100, 50)
    photo[3, 5] = (0, 0, 160)
    tensor = photo_tensor(photo)
    assert (tensor.shape, tensor.dtype) == ((3, 4, 6), torch.float32)
    # 200 is the brightest value, so it is what 1 stands for.
    expected = [(1 - 0.485) / 0.229, (0.5 - 0.456) / 0.224, (0.25 - 0.406) / 0.225]
    assert tensor[:, 1, 2].tolist() == pytest.approx(expected, rel=1e-5)
    expected = [-0.485 / 0.229, -0.456 / 0.224, (0.8 - 0.406) / 0.225]
    assert tensor[:, 3, 5].tolist() == pytest.approx(expected, rel=1e-5)


def test_a_darker_exposure_gives_the_same_tensor() -> None:
    photo = np.random.default_rng(0).integers(0, 101, (8, 8, 3)).astype(np.uint8)
    torch.testing.assert_close(photo_tensor(photo), photo_tensor(photo * 2))


def test_a_black_photo_is_finite() -> None:
    tensor = photo_tensor(np.zeros((4, 4, 3), np.uint8))
    assert tensor[:, 0, 0].tolist() == pytest.approx(
        [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]
    )


def test_the_array_stays_as_it_was() -> None:
    photo = np.random.default_rng(0).integers(0, 200, (5, 5, 3)).astype(np.uint8)
    before = photo.copy()
    photo_tensor(photo).zero_()
    assert np.array_equal(photo, before)


def test_a_mask_is_the_share_of_car() -> None:
    tensor = mask_tensor(np.array([[0, 51], [204, 255], [255, 102]], np.uint8))
    assert tensor.dtype == torch.float32
    torch.testing.assert_close(tensor, torch.tensor([[[0, 0.2], [0.8, 1], [1, 0.4]]]))


def test_a_masks_mean_is_its_area() -> None:
    car = ellipse(32, 32, seed=1)
    assert mask_tensor(np.where(car, 255, 0).astype(np.uint8)).mean().item() == pytest.approx(
        car.mean()
    )
