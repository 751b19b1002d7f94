"""What a refit makes up for: sums come out right, and norms do not blow up what is left."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hybridprune.pruning.directions.compensation import Compensation
from hybridprune.pruning.directions.joints import Joint
from tests.pruning.random_curvature import source


def norm(affine: bool = True) -> nn.BatchNorm2d:
    """With statistics and parameters of its own, in double precision; one channel passes nothing on."""
    found = nn.BatchNorm2d(4, affine=affine).double().eval()
    draw = source(3)
    assert found.running_mean is not None and found.running_var is not None
    found.running_mean.normal_(generator=draw)
    found.running_var.uniform_(0.5, 2.0, generator=draw)
    if affine:
        nn.init.uniform_(found.weight, 0.5, 2.0, generator=draw)
        nn.init.normal_(found.bias, generator=draw)
        nn.init.zeros_(found.weight[2:3])
    return found


@torch.no_grad()
@pytest.mark.parametrize("joint", [Joint("0", True), Joint(None, True)])
def test_the_target_gives_the_uncut_networks_sum(joint: Joint) -> None:
    net = nn.Sequential(norm())
    y, theirs, ours = (torch.randn(3, 4, 5, 6, dtype=torch.float64, generator=source(i)) for i in range(3))
    behind = net[0] if joint.norm else nn.Identity()
    target = Compensation.of(net, net, joint).target(y, theirs - ours)
    missing = behind(target) + ours - behind(y) - theirs
    if joint.norm:
        assert torch.equal(target[:, 2], y[:, 2])  # that channel cannot make up for anything
        missing = missing[:, [0, 1, 3]]
    assert float(missing.abs().max()) < 1e-12


@torch.no_grad()
def test_a_settled_norm_divides_by_the_uncut_variance_and_adds_the_gaps_mean() -> None:
    reference = nn.Sequential(norm())
    model = copy.deepcopy(reference)
    compensation = Compensation.of(model, reference, Joint("0", True))
    y = torch.randn(300, 4, 2, 2, dtype=torch.float64, generator=source(1)) * 0.7
    gaps = [torch.randn(n, 4, 2, 2, dtype=torch.float64, generator=source(n)) + 0.3 for n in (2, 5)]
    for gap in gaps:
        compensation.target(y[: len(gap)], gap)
    variance, mean = torch.var_mean(y, (0, 2, 3), correction=0)
    compensation.settle(variance)
    ours, theirs = model[0], reference[0]
    assert isinstance(ours, nn.BatchNorm2d) and isinstance(theirs, nn.BatchNorm2d)
    assert ours.running_mean is not None and ours.running_var is not None
    ours.running_mean.copy_(mean)
    ours.running_var.copy_(variance)
    assert theirs.running_mean is not None
    theirs.running_mean.copy_(mean)
    expected = theirs(y) + torch.cat(gaps).mean((0, 2, 3)).view(1, 4, 1, 1)
    torch.testing.assert_close(ours(y), expected)


def test_without_a_scale_or_a_norm_nothing_is_settled() -> None:
    for net, joint in ((nn.Sequential(norm(affine=False)), Joint("0", True)), (nn.Sequential(norm()), Joint())):
        before = copy.deepcopy(net.state_dict())
        Compensation.of(net, net, joint).settle(torch.ones(4, dtype=torch.float64))
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@torch.no_grad()
def test_a_narrowed_norm_knows_which_variances_are_its_own() -> None:
    reference = nn.Sequential(norm())
    model, left = nn.Sequential(nn.BatchNorm2d(2).double()), torch.tensor([1, 3])
    variance = torch.tensor([0.3, 0.9], dtype=torch.float64)
    Compensation.of(model, reference, Joint("0", False), left).settle(variance)
    ours, theirs = model[0], reference[0]
    assert isinstance(ours, nn.BatchNorm2d) and isinstance(theirs, nn.BatchNorm2d) and theirs.running_var is not None
    expected = ((variance + theirs.eps) / (theirs.running_var[left] + theirs.eps)).sqrt()
    torch.testing.assert_close(ours.weight, expected)
