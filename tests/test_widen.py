"""A small net inside a wide one: the same function, with room to learn."""

import re

import pytest
import torch
from conftest import noise, uneven
from torch import Tensor

from carseg.u2net import U2Net
from carseg.widen import QUIET, widen

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def small() -> U2Net:
    return uneven(U2Net("u2netp"), seed=1)


@pytest.fixture(scope="module")
def wide() -> U2Net:
    # Statistics and weights that would be seen wherever one of them leaked into the small net.
    return uneven(U2Net("u2net"), seed=2)


@pytest.fixture(scope="module")
def widened(small: U2Net, wide: U2Net) -> State:
    return widen(small.state_dict(), wide.state_dict())


def test_the_wide_net_computes_what_the_small_one_does(small: U2Net, widened: State) -> None:
    net = U2Net("u2net").eval()
    net.load_state_dict(widened, strict=True)
    photos = noise(2, 3, 45, 70)
    with torch.inference_mode():
        expected = small(photos)
        assert expected.std() > 1e-2
        torch.testing.assert_close(net(photos), expected, rtol=1e-4, atol=1e-4)


def test_sources_stay_as_they_were(small: U2Net, wide: U2Net) -> None:
    sources = [net.state_dict() for net in (small, wide)]
    before = [{key: value.clone() for key, value in source.items()} for source in sources]
    state = widen(*sources)
    for value in state.values():
        value.zero_()
    for source, copies in zip(sources, before, strict=True):
        assert all(torch.equal(source[key], copies[key]) for key in copies)


def test_added_channels_have_weights_of_their_own(
    small: U2Net, wide: U2Net, widened: State
) -> None:
    old, fresh = small.state_dict(), wide.state_dict()
    added = 0
    for key, value in widened.items():
        if value.dim() > 0:
            rows = old[key].shape[0]
            # Quieter by their batch norm's scale and shift, but not silent.
            quiet = QUIET if re.search(r"bn_s1\.(weight|bias)$", key) else 1
            assert torch.equal(value[rows:], quiet * fresh[key][rows:]), key
            added += len(value) - rows
    assert added > 10_000
    assert 0 < QUIET < 1


def test_carried_over_channels_read_nothing_from_added_ones(small: U2Net, widened: State) -> None:
    for key, old in small.state_dict().items():
        if old.dim() == 4:
            rows = widened[key][: old.shape[0]]
            read = rows.abs().sum(dim=(0, 2, 3)) > 0
            assert int(read.sum()) == old.shape[1], key
            assert torch.equal(rows[:, read], old), key


def test_a_net_widened_to_its_own_width_is_itself(small: U2Net) -> None:
    state = small.state_dict()
    other = uneven(U2Net("u2netp"), seed=3).state_dict()
    assert all(torch.equal(value, state[key]) for key, value in widen(state, other).items())
