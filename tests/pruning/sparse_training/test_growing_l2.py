"""Growing L2: its schedule by hand, its gradient exactly, and going on from a saved state."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from hybridprune.pruning.sparse_training.growing_l2 import Filters, GrowingL2, L2Growth


def convolutions() -> tuple[nn.Conv2d, nn.Linear]:
    torch.manual_seed(0)
    return nn.Conv2d(3, 5, 3), nn.Linear(4, 6)


def filters(*layers: nn.Module, pushed: tuple[list[int], ...]) -> list[Filters]:
    return [
        Filters(layer.get_parameter("weight"), torch.tensor(places, dtype=torch.int64))
        for layer, places in zip(layers, pushed, strict=True)
    ]


def gradients(*layers: nn.Module) -> list[Tensor]:
    """Random gradients, those of the weights given back."""
    for layer in layers:
        for parameter in layer.parameters():
            parameter.grad = torch.randn_like(parameter)
    return [g.clone() for layer in layers if (g := layer.get_parameter("weight").grad) is not None]


def test_the_gradient_is_lambda_times_the_pushed_filters_and_nothing_elsewhere() -> None:
    conv, linear = convolutions()
    pressure = GrowingL2(filters(conv, linear, pushed=([3, 1], [0])), L2Growth(1.0, interval=2, rise=0.25))
    for step, expected in enumerate([0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1.0, 1.0, 1.0, 1.0]):
        before = gradients(conv, linear)
        biases = [None if m.bias is None or m.bias.grad is None else m.bias.grad.clone() for m in (conv, linear)]
        pressure.add_gradients(step / 100)
        assert pressure.lambdas.tolist() == [expected, expected]
        for layer, old, places in ((conv, before[0], [3, 1]), (linear, before[1], [0])):
            added = torch.zeros_like(old)
            added[places] = expected * layer.weight.detach()[places]  # powers of two and sums of them: exact
            assert layer.weight.grad is not None and torch.equal(layer.weight.grad, old + added)
            rest = [i for i in range(len(old)) if i not in places]
            assert torch.equal(layer.weight.grad[rest] - old[rest], torch.zeros_like(old[rest]))
        for layer, old in zip((conv, linear), biases, strict=True):
            assert layer.bias is not None and old is not None and layer.bias.grad is not None
            assert torch.equal(layer.bias.grad, old)


def test_a_gradient_that_is_not_there_is_zero() -> None:
    conv, _ = convolutions()
    GrowingL2(filters(conv, pushed=([2],)), L2Growth(1.0, rise=0.5)).add_gradients(0.0)
    assert conv.weight.grad is not None
    assert torch.equal(conv.weight.grad[2], 0.5 * conv.weight[2]) and not conv.weight.grad[[0, 1, 3, 4]].any()


@pytest.mark.parametrize("steps", [30, 3000])
def test_a_short_training_is_at_the_ceiling_after_two_thirds(steps: int) -> None:
    conv, _ = convolutions()
    pressure = GrowingL2(filters(conv, pushed=([2],)), L2Growth(1.0, interval=10))
    found = []
    for step in range(steps):
        pressure.add_gradients(step / steps)
        found.append(float(pressure.lambdas))
    assert found == sorted(found) and found[0] == 1e-4
    assert found[steps // 2] < 1 and found[steps * 2 // 3 + 9 :] == [1.0] * (steps - steps * 2 // 3 - 9)


def test_a_long_training_keeps_to_the_published_rise() -> None:
    growth = L2Growth(1.0, interval=10)
    assert growth.wanted(7, done=1e-6) == pytest.approx(7e-4)
    assert growth.wanted(20_000, done=0.1) == 1.0


def test_a_layer_whose_filters_are_gone_is_pushed_no_harder() -> None:
    conv, linear = convolutions()
    pressure = GrowingL2(filters(conv, linear, pushed=([3, 1], [0])), L2Growth(1.0, 1, 0.125, ratio=100.0))
    pressure.add_gradients(0.0)
    with torch.no_grad():
        # The mean of the other filters, a hundredth of which is not more than the pushed ones' mean.
        conv.weight[[0, 2, 4]], conv.weight[[1, 3]] = 1.0, -0.01
        linear.weight.fill_(1.0)[0] = 0.02
    pressure.add_gradients(0.0)
    assert pressure.lambdas.tolist() == [0.125, 0.25]
    with torch.no_grad():
        conv.weight[1] = 0.02
    pressure.add_gradients(0.0)
    assert pressure.lambdas.tolist() == [0.375, 0.375]


def test_filters_that_have_no_others_grow_on() -> None:
    _, linear = convolutions()
    pressure = GrowingL2(filters(linear, pushed=([*range(6)],)), L2Growth(0.01, 1, 0.004))
    for _ in range(3):
        pressure.add_gradients(0.0)
    assert float(pressure.lambdas) == 0.01


def test_it_goes_on_from_a_saved_state() -> None:
    conv, linear = convolutions()
    pushed: tuple[list[int], ...] = ([3, 1], [])

    def fresh() -> GrowingL2:
        return GrowingL2(filters(conv, linear, pushed=pushed), L2Growth(1.0, interval=3, rise=0.1))

    whole, first, second = fresh(), fresh(), fresh()
    lambdas = []
    for step in range(9):
        whole.add_gradients(step / 9)
        lambdas.append(whole.lambdas)
    for step in range(4):
        first.add_gradients(step / 9)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for step in range(4, 9):
        second.add_gradients(step / 9)
        assert torch.equal(second.lambdas, lambdas[step])
    assert lambdas[0].shape == (1,)
