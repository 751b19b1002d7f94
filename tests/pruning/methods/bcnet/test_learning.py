"""The training at widths: both sides are the networks that a cut makes, and what is put on record."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hybridprune.config import SparsityOptions
from hybridprune.curvature import CROSS_ENTROPY
from hybridprune.data import Batch
from hybridprune.engine.descent import Descent
from hybridprune.engine.loop import Loop
from hybridprune.engine.objective import LikelihoodLoss
from hybridprune.engine.pressure import parameter_groups
from hybridprune.pruning.channels import ChannelGroup
from hybridprune.pruning.channels.surgery import cut
from hybridprune.pruning.methods.bcnet.bins import LEFT, RIGHT, bins_of, drawn_widths, edges
from hybridprune.pruning.methods.bcnet.masks import RECORD, attach_widths, show, show_all
from hybridprune.pruning.methods.bcnet.method import prepare
from hybridprune.pruning.sparse_training.masked_reading import fold_masks
from hybridprune.pruning.sparse_training.protocol import Target
from tests.networks_and_images import random_images, random_net
from tests.pruning.channels.networks import NETS, groups_of
from tests.pruning.methods.nuspm.test_method import target_of

SIZE, STEPS, LR, SEED, SMALLEST = 8, 6, 0.05, 5, 2
BATCHES = [Batch(random_images(6, SIZE, seed=step), torch.arange(6) % 5) for step in range(STEPS)]
OPTIONS = SparsityOptions(sparse_epochs=1, bcnet_bins=4, bcnet_losses=SMALLEST)


def loss_of(net: nn.Module, batch: Batch) -> Tensor:
    return CROSS_ENTROPY.loss(net(batch.images), batch.labels)


def sides(net: nn.Module, groups: Sequence[ChannelGroup], widths: list[int]) -> list[nn.Module]:
    """The networks without the channels that a width leaves out on each side."""
    found = []
    for side in (LEFT, RIGHT):
        small, removed = copy.deepcopy(net), []
        for group, width in zip(groups, widths, strict=True):
            kept = edges(group.channels, bins_of(group.channels, 4))[width]
            rest = torch.arange(kept, group.channels)
            removed.append(rest if side == LEFT else rest - kept)
        cut(small, groups, removed)
        found.append(small)
    return found


def loop_of(net: nn.Module) -> tuple[Loop, Target]:
    target = target_of(net, 0.5)
    target = Target(net, target.groups, target.space, target.budget, {}, SEED)
    drive = prepare(target, OPTIONS)
    common: dict[str, Any] = {"lr": LR, "momentum": 0.9, "weight_decay": 1e-3, "steps": STEPS}
    named = parameter_groups(net.named_parameters(), drive)
    descent = Descent(net, named, torch.device("cpu"), schedule=lambda share: 1 - share / 2, drive=drive, **common)
    return Loop(LikelihoodLoss(CROSS_ENTROPY), descent, STEPS, "do better"), target


def steps(loop: Loop, first: int, last: int) -> None:
    for _ in loop(loop.descent.net, BATCHES[first:last], first):
        pass


def test_a_width_computes_what_the_cut_network_does_and_its_weights_get_that_gradient() -> None:
    net = random_net(8, 4).backbone.double().train()
    batch = Batch(random_images(6, SIZE, seed=9).double(), torch.arange(6) % 5)
    plain = copy.deepcopy(net)
    loop, target = loop_of(net)
    widths = drawn_widths([bins_of(g.channels, 4) for g in target.groups], SEED, 0)
    wanted = sum(loss_of(small, batch) for small in sides(plain, target.groups, widths)) / 2
    assert isinstance(wanted, Tensor) and bool((loss_of(net, batch) - wanted).abs() > 1e-4)
    loss, _ = loop.objective(net, batch, 0.0)
    assert bool((loss - wanted).abs() < 1e-12)
    loss.backward()
    (group,) = (g for g in target.groups if g.name.endswith("blocks.0.conv1"))
    gradient = net.get_submodule(group.name).get_parameter("parametrizations.weight.original").grad
    assert gradient is not None
    bins = bins_of(group.channels, 4)
    width = widths[target.groups.index(group)]
    kept = edges(group.channels, bins)[width]
    used = torch.arange(group.channels)
    used = (used < kept) | (used >= group.channels - kept)
    assert gradient.flatten(1).any(1).tolist() == used.tolist()


def test_the_smallest_losses_of_each_width_are_on_record() -> None:
    net = NETS["vgg"]()
    loop, target = loop_of(net)
    losses = []
    for step, batch in enumerate(BATCHES):
        losses.append(float(loop.objective(net, batch, 0.0)[0].detach()))
        steps(loop, step, step + 1)
    bins = [bins_of(g.channels, 4) for g in target.groups]
    seen = 0
    for number, group in enumerate(target.groups):
        record = net.get_submodule(group.name).get_buffer(RECORD)
        assert record.shape == (bins[number], SMALLEST)
        for width in range(1, bins[number] + 1):
            own = sorted(x for s, x in enumerate(losses) if drawn_widths(bins, SEED, s)[number] == width)[:SMALLEST]
            found = [x for x in record[width - 1].tolist() if x != torch.inf]
            torch.testing.assert_close(torch.tensor(found), torch.tensor(own), rtol=1e-4, atol=1e-5)
            seen += bool(own)
    assert loop.descent.drive is not None
    assert loop.descent.drive.metrics() == {"widths_seen": torch.tensor(seen / sum(bins)).item()}


def test_it_goes_on_as_if_it_had_not_stopped() -> None:
    whole = NETS["vgg"]()
    first, second = copy.deepcopy(whole), copy.deepcopy(whole)
    steps(loop_of(whole)[0], 0, STEPS)
    begun, again = loop_of(first)[0], loop_of(second)[0]
    steps(begun, 0, 3)
    second.load_state_dict(first.state_dict())
    again.load_state_dict(copy.deepcopy(begun.state_dict()))
    steps(again, 3, STEPS)
    assert any(name.endswith(RECORD) for name in whole.state_dict())
    assert all(torch.equal(v, second.state_dict()[k]) for k, v in whole.state_dict().items())


def test_folding_the_whole_network_changes_no_bit() -> None:
    net = NETS["branches"]().eval()
    before, x = copy.deepcopy(net.state_dict()), random_images(3, SIZE)
    expected = net(x)
    masks = [*attach_widths(net, groups_of(net), 4).values()]
    assert torch.equal(net(x), expected) and net.state_dict().keys() != before.keys()
    show(masks, RIGHT, [1] * len(masks))
    assert not torch.equal(net(x), expected)
    show_all(masks)
    fold_masks(net)
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
