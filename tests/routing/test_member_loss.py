"""The loss of a cascade's members against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hybridprune.routing.member_loss import kd_shares_of, member_losses, stop_weights, weighted_loss


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def test_weights_are_the_probabilities_to_stop_mixed_with_an_even_choice() -> None:
    # Two images, three members: going on with .75 and .5, and with .1 and .9.
    gates = torch.tensor([[logit(0.75), logit(0.5)], [logit(0.1), logit(0.9)]])
    stops = torch.tensor([[0.25, 0.375, 0.375], [0.9, 0.01, 0.09]])
    torch.testing.assert_close(stop_weights(gates, 0.0), stops)
    torch.testing.assert_close(stop_weights(gates, 0.3), 0.7 * stops + 0.1)
    torch.testing.assert_close(stop_weights(gates, 1.0), torch.full((2, 3), 1 / 3))


@given(st.integers(1, 4), st.floats(0.01, 1), st.floats(0, 80))
def test_no_image_is_without_weight_however_sure_the_gates_are(gates: int, floor: float, size: float) -> None:
    logits = size * torch.randn(6, gates, dtype=torch.float64, generator=torch.Generator().manual_seed(gates)).sign()
    weights = stop_weights(logits, floor)
    assert weights.shape == (6, gates + 1)
    assert float(weights.min()) >= floor / (gates + 1) * (1 - 1e-9)
    torch.testing.assert_close(weights.sum(1), torch.ones(6, dtype=torch.float64))


def test_a_loss_is_cross_entropy_and_distillation_in_each_members_shares() -> None:
    # Probabilities of two classes: members .8 / .2 and .5 / .5, the teacher .6 / .4; the label is class 0.
    logits = torch.tensor([[[math.log(4.0), 0.0]], [[0.0, 0.0]]])
    taught = torch.tensor([[math.log(1.5), 0.0]])
    found = member_losses(logits, torch.tensor([0]), taught, torch.tensor([0.25, 1.0]), 1.0)
    first = 0.75 * -math.log(0.8) + 0.25 * (0.6 * math.log(0.6 / 0.8) + 0.4 * math.log(0.4 / 0.2))
    second = 0.6 * math.log(0.6 / 0.5) + 0.4 * math.log(0.4 / 0.5)
    torch.testing.assert_close(found, torch.tensor([[first, second]]))


def test_the_temperature_softens_both_and_keeps_the_size_of_the_gradient() -> None:
    # At temperature 2 the members' odds 4 : 1 are 2 : 1, the teacher's 9 : 1 are 3 : 1.
    logits, taught = torch.tensor([[[math.log(4.0), 0.0]]]), torch.tensor([[math.log(9.0), 0.0]])
    found = member_losses(logits, torch.tensor([0]), taught, torch.tensor([1.0]), 2.0)
    softened = 0.75 * math.log(0.75 / (2 / 3)) + 0.25 * math.log(0.25 / (1 / 3))
    torch.testing.assert_close(found, torch.tensor([[4 * softened]]))


def test_labels_belong_to_images_and_not_to_members() -> None:
    logits = torch.tensor([[[0.0, math.log(3.0)], [0.0, 0.0]], [[math.log(3.0), 0.0], [math.log(7.0), 0.0]]])
    found = member_losses(logits, torch.tensor([1, 0]), logits[0], torch.zeros(2), 1.0)
    expected = -torch.tensor([[0.75, 0.25], [0.5, 0.875]]).log()
    torch.testing.assert_close(found, expected)


def test_weights_count_relative_to_their_mean_and_members_add_up() -> None:
    losses = torch.tensor([[1.0, 10.0], [3.0, 20.0]])
    weights = torch.tensor([[0.9, 0.1], [0.3, 0.7]])
    # (1.5 x 1 + .5 x 3) / 2 and (.25 x 10 + 1.75 x 20) / 2
    found = weighted_loss(losses, weights, weights.mean(0))
    torch.testing.assert_close(found, torch.tensor(1.5 + 18.75))
    torch.testing.assert_close(
        weighted_loss(losses, torch.full((2, 2), 0.01), torch.full((2,), 0.01)), losses.mean(0).sum()
    )


def test_the_last_member_has_a_share_of_its_own() -> None:
    assert kd_shares_of(3, 0.5, 0.1).tolist() == pytest.approx([0.5, 0.5, 0.1])
    assert kd_shares_of(1, 0.5, 0.1).tolist() == pytest.approx([0.1])
