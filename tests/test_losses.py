"""Both losses by hand and against scikit-learn."""

import numpy as np
import pytest
import torch
from conftest import noise
from sklearn.metrics import log_loss
from torch import Tensor, nn

from carseg.losses import BCEWithLogitsLoss, DiceLoss

LOSSES = [BCEWithLogitsLoss(), DiceLoss()]


def logit(probability: Tensor) -> Tensor:
    return torch.log(probability / (1 - probability))


def test_bce_is_the_log_loss_of_soft_labels_averaged_over_all_outputs() -> None:
    logits = noise(2, 7, 5, 6, dtype=torch.float64)
    mask = torch.sigmoid(noise(2, 1, 5, 6, seed=1, dtype=torch.float64))
    share = mask.numpy().ravel()
    each = []
    for output in range(7):
        found = torch.sigmoid(logits[:, output]).numpy().ravel()
        # A pixel that is a third car counts a third as car and two thirds as background.
        labels = np.repeat([1, 0], len(share))
        amounts = np.concatenate([share, 1 - share])
        each.append(log_loss(labels, np.tile(found, 2), sample_weight=amounts))
    assert BCEWithLogitsLoss()(logits, mask).item() == pytest.approx(np.mean(each), rel=1e-9)


@pytest.mark.parametrize(
    ("smooth", "expected"),
    # Σpt = 0.9 + 0.5·0.6 = 1.2; Σp = 0.9 + 0.2 + 0.6 + 0.3 = 2; Σt = 1 + 0.5 = 1.5
    [(0.0, 1 - 2.4 / 3.5), (1.0, 1 - 3.4 / 4.5), (5.0, 1 - 7.4 / 8.5)],
)
def test_dice_is_as_by_hand(smooth: float, expected: float) -> None:
    logits = logit(torch.tensor([[[[0.9, 0.2], [0.6, 0.3]]]], dtype=torch.float64))
    mask = torch.tensor([[[[1.0, 0.0], [0.5, 0.0]]]], dtype=torch.float64)
    assert DiceLoss(smooth)(logits, mask).item() == pytest.approx(expected, rel=1e-9)


def test_dice_counts_every_photo_and_output_alike() -> None:
    logits = noise(3, 7, 8, 8)
    # Cars of very different sizes: pooled over photos, the biggest would decide.
    mask = torch.zeros(3, 1, 8, 8)
    mask[0, :, :7], mask[1, :, :2], mask[2, :, 0, 0] = 1, 1, 1
    loss = DiceLoss()
    each = [loss(logits[i : i + 1, k : k + 1], mask[i : i + 1]) for i in range(3) for k in range(7)]
    torch.testing.assert_close(loss(logits, mask), torch.stack(each).mean())
    pooled = loss(logits.transpose(0, 1).reshape(1, 7, 24, 8), mask.reshape(1, 1, 24, 8))
    assert abs(float(pooled - loss(logits, mask))) > 0.05


def test_dice_of_a_mask_without_a_car() -> None:
    empty = torch.zeros(1, 1, 4, 4)
    loss = DiceLoss()
    assert loss(torch.full((1, 7, 4, 4), -100.0), empty).item() == pytest.approx(0)
    # All of 16 pixels taken for car: 1 - 1/17.
    assert loss(torch.full((1, 7, 4, 4), 100.0), empty).item() == pytest.approx(1 - 1 / 17)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("right", [True, False])
def test_extreme_logits_give_finite_losses_and_gradients(loss: nn.Module, right: bool) -> None:
    mask = (noise(2, 1, 16, 16) > 0).float()
    sign = (2 * mask - 1) * (1 if right else -1)
    logits = (1e4 * sign).expand(2, 7, 16, 16).clone().requires_grad_()
    value = loss(logits, mask)
    value.backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    if right:
        assert value.item() == pytest.approx(0, abs=1e-6)
    else:
        assert np.isfinite(value.item())
        assert value.item() > 0.9


@pytest.mark.parametrize("loss", LOSSES)
def test_all_seven_outputs_learn_in_the_right_direction(loss: nn.Module) -> None:
    mask = (noise(2, 1, 8, 8) > 0.3).float()
    logits = torch.zeros(2, 7, 8, 8, requires_grad=True)
    loss(logits, mask).backward()
    assert logits.grad is not None
    wanted = (2 * mask - 1).expand_as(logits)
    assert torch.equal(-logits.grad.sign(), wanted)
    torch.testing.assert_close(logits.grad, logits.grad[:, :1].expand_as(logits.grad))
