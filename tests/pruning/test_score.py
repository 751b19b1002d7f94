"""Scores of a gated network are those of the routes that its images take."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridprune.config import CurvatureOptions
from hybridprune.curvature import collect_factors, eigenbasis
from hybridprune.data import Batch
from hybridprune.models.gates import Hidden
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.pruning.decompose import METHODS, Decomposition
from hybridprune.pruning.layers import prunable_layers
from hybridprune.pruning.score import decompose_layers
from tests.cases import random_images, random_net
from tests.pruning.cases import SIZE, source

HALF = 6


class FixedGate(nn.Module):
    """Executes every block, but skips the one after gate ``index`` for the first ``skipped`` images."""

    def __init__(self, index: int, skipped: int) -> None:
        super().__init__()
        self.index, self.skipped = index, skipped

    def forward(self, index: int, pooled: Tensor, hidden: Hidden | None) -> tuple[Tensor, Hidden]:
        logit = pooled.new_ones(len(pooled))
        if index == self.index:
            logit[: self.skipped] = -1
        return logit, (pooled, pooled)


def twins() -> list[Batch]:
    """One batch, whose second half repeats the first."""
    labels = torch.arange(HALF) % 5
    return [Batch(random_images(HALF, SIZE).repeat(2, 1, 1, 1), labels.repeat(2), torch.arange(2 * HALF))]


def decompose(
    net: GatedNetwork, method: str, fisher_type: str = "exp", correct: bool = False
) -> dict[str, Decomposition]:
    options = CurvatureOptions(fisher_type=fisher_type, correct_eigenvalues=correct)
    batches: list[Batch] = twins()

    def sample(images: int, purpose: str) -> Iterable[Batch]:
        assert images > 0 and purpose in ("factors", "moments")
        return batches

    return decompose_layers(net, prunable_layers(net, SIZE), method, options, sample, source(0))


@pytest.mark.parametrize("correct", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_a_block_that_half_of_the_images_use_is_worth_half(method: str, correct: bool) -> None:
    net = random_net(14, 4)
    scores = {}
    for skipped in (0, HALF, 2 * HALF):
        net.gate = FixedGate(2, skipped)  # type: ignore[assignment]
        scores[skipped] = decompose(net, method, correct=correct)
    for name in ("backbone.blocks.3.conv1", "backbone.blocks.3.conv2"):
        always, half, never = (scores[skipped][name] for skipped in (0, HALF, 2 * HALF))
        for side in ("in_scores", "out_scores"):
            assert float(getattr(always, side)[0]) > 0
            torch.testing.assert_close(getattr(half, side), getattr(always, side) / 2, rtol=1e-3, atol=1e-9)
            assert float(getattr(never, side).abs().max()) == 0
    # The block behind it does run.
    assert float(scores[2 * HALF]["backbone.blocks.4.conv1"].out_scores[0]) > 0


def test_corrected_scores_are_those_of_the_images_own_gradients() -> None:
    net = random_net(8, 4)
    (batch,) = twins()
    found = decompose(net, "eigendamage", correct=True)
    convs = {layer.name: layer.conv for layer in prunable_layers(net, SIZE)}
    decisions = net(batch.images).decisions
    factors = collect_factors(
        lambda images: net(images, mode="executed").logits,
        convs,
        [(batch.images, batch.labels)],
        fisher_type="exp",
        moving_average=0.0,
        generator=source(0),
    )
    weights = [conv.weight for conv in convs.values()]
    squares = {name: torch.zeros_like(conv.weight, dtype=torch.float64) for name, conv in convs.items()}
    bases = {name: eigenbasis(f.input_factor, f.gradient_factor) for name, f in factors.items()}
    for i in range(2 * HALF):
        logits = net(batch.images[i : i + 1], decisions[i : i + 1]).logits
        gradients = torch.autograd.grad(F.cross_entropy(logits, batch.labels[i : i + 1]), weights)
        for (name, basis), gradient in zip(bases.items(), gradients, strict=True):
            rotated = torch.einsum("op,oikl,iq->pqkl", basis.q_out, gradient.double(), basis.q_in)
            squares[name] += rotated**2 / (2 * HALF)
    for name, conv in convs.items():
        basis = bases[name]
        weight = torch.einsum("op,oikl,iq->pqkl", basis.q_out, conv.weight.detach().double(), basis.q_in)
        worth = 0.5 * (squares[name] * weight**2).sum((2, 3))
        for scores, expected in ((found[name].out_scores, worth.sum(1)), (found[name].in_scores, worth.sum(0))):
            torch.testing.assert_close(scores, expected.sort(descending=True).values, rtol=1e-3, atol=1e-8)


def test_sampled_labels_are_repeatable_and_leave_no_trace() -> None:
    net = random_net(8, 4)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    one, two = (decompose(net, "fisher-tucker", fisher_type="true") for _ in range(2))
    for name in one:
        assert torch.equal(one[name].out_scores, two[name].out_scores)
        assert torch.equal(one[name].core, two[name].core)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
