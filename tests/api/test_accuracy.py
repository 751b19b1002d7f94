"""``accuracy``: the share of images that a network classifies as labelled, counted here by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hybridprune
from hybridprune.errors import UserError
from tests.networks_and_images import random_net

LOGITS = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0], [1.0, 0.0, 5.0], [2.0, 0.0, 1.0]])
"""Classes 0, 1, 2, 0."""


class Given(nn.Linear):
    """Gives its inputs."""

    def __init__(self) -> None:
        super().__init__(1, 1)

    def forward(self, input: Tensor) -> Tensor:
        return input


def test_what_is_right_is_counted_over_batches_of_any_size() -> None:
    labels = torch.tensor([0, 1, 1, 0])
    loader = [(LOGITS[:3], labels[:3]), (LOGITS[3:], labels[3:])]
    assert hybridprune.accuracy(Given(), loader) == 3 / 4
    assert hybridprune.accuracy(Given(), iter(loader)) == 3 / 4, "once is enough"


def test_logits_that_are_no_numbers_are_wrong() -> None:
    broken = LOGITS.clone()
    broken[0, 0] = torch.nan
    assert hybridprune.accuracy(Given(), [(LOGITS, torch.zeros(4, dtype=torch.long))]) == 1 / 2
    assert hybridprune.accuracy(Given(), [(broken, torch.zeros(4, dtype=torch.long))]) == 1 / 4


def test_positions_count_but_for_the_ignored() -> None:
    maps = LOGITS.T.reshape(1, 3, 2, 2)
    labels = torch.tensor([[[0, 2], [-100, 0]]])
    assert hybridprune.accuracy(Given(), [(maps, labels)]) == 2 / 3


def test_forward_takes_the_logits_out_of_a_batch() -> None:
    batch = ({"x": LOGITS}, torch.tensor([0, 0, 2, 0]), "more")
    assert hybridprune.accuracy(Given(), [batch], forward=lambda model, batch: model(batch[0]["x"])) == 3 / 4


def test_a_network_runs_in_eval_mode_and_stays_as_it_is() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, 5))
    images, labels = torch.randn(16, 3, 8, 8), torch.randint(5, (16,))
    with torch.no_grad():
        expected = float((net.eval()(images).argmax(1) == labels).double().mean())
    before = {name: value.clone() for name, value in net.train().state_dict().items()}
    assert hybridprune.accuracy(net, [(images, labels)]) == expected
    assert net.training and all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_a_network_of_half_precision_runs_in_single() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(12, 3).bfloat16()
    net = nn.Sequential(nn.Flatten(), linear)
    images = torch.randn(6, 3, 2, 2)
    with torch.no_grad():
        labels = nn.functional.linear(images.flatten(1), linear.weight.float(), linear.bias.float()).argmax(1)
    assert hybridprune.accuracy(net, [(images, labels)]) == 1
    assert linear.weight.dtype == torch.bfloat16


def test_gates_are_obeyed() -> None:
    net = random_net(8, 2, 3)
    images = torch.randn(24, 3, 8, 8)
    with torch.no_grad():
        labels = net.eval()(images, mode="executed").logits.argmax(1)
    assert hybridprune.accuracy(net, [(images, labels)]) == 1


@pytest.mark.parametrize(
    ("model", "loader", "told"),
    [
        (Given(), [], "the loader gives no labelled images"),
        (Given(), [(LOGITS, torch.full((4,), -100))], "the loader gives no labelled images"),
        (Given(), [(LOGITS, torch.tensor([0, 1, 3, 0]))], "batch 1: .*class id 3 with 3 outputs"),
        (Given(), [(LOGITS, torch.tensor([0, 1]))], r"batch 1: .*need class ids \[4\]"),
        (Given(), [(LOGITS[:, :1], torch.zeros(4))], r"batch 1: the output \[4, 1\] has no logit for each class"),
        (Given(), [LOGITS], "batch 1: a batch is a Tensor, not a pair"),
        (lambda x: x, [], "model: is a function; give a torch.nn.Module"),
    ],
)
def test_what_does_not_fit_is_told(model: Any, loader: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        hybridprune.accuracy(model, loader)


def test_a_batch_that_forward_cannot_take_is_told() -> None:
    with pytest.raises(UserError, match="batch 1: is a dict; give tuples whose second item is the class ids"):
        hybridprune.accuracy(Given(), [{"x": LOGITS}], forward=lambda model, batch: model(batch["x"]))
