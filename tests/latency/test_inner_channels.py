"""Channels between two layers in a budget of time, from end to end, by a clock without noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

import hybridprune
from hybridprune.config import CutOptions, LatencyTarget
from hybridprune.latency.geometry import Geometry
from hybridprune.latency.measure import TableMaker
from hybridprune.latency.points import input_axes, output_axes
from hybridprune.latency.table import CHANNELS, Grids
from hybridprune.models.factored import FactoredLayer
from tests.latency.machine import Machine, machine, settle
from tests.latency.test_prune import NETWORKS, QUICK, Shortcuts, batches, cut, realised

__all__ = ["machine"]


def where_rotations_are_dear(machine: Machine) -> None:
    """A machine on which no factored form pays."""
    machine.start, machine.pointwise, machine.depthwise = 20_000.0, 20.0, 200.0


@pytest.mark.parametrize("refit", [0, pytest.param(16, marks=pytest.mark.full)])
def test_channels_go_where_no_rotation_pays(refit: int, machine: Machine) -> None:
    where_rotations_are_dear(machine)
    pruned = cut("shortcuts", 0.8, cut={"refit_images": refit})
    net = pruned.module
    assert isinstance(net, Shortcuts)
    assert not any(isinstance(layer, FactoredLayer) for layer in [*net.first.modules(), *net.second.children()][:-1])
    assert net.first.conv1.out_channels < 16 and net.first.conv2.in_channels == net.first.conv1.out_channels
    assert net.first.bn1.num_features == net.first.conv1.out_channels
    assert net.first.conv2.out_channels == net.second.conv1.in_channels == 16  # what a sum joins stays
    record = pruned.spec.latency
    assert record is not None and record["met"] and 0.75 <= record["realised_ms"] / record["dense_ms"] <= 0.84
    assert realised(machine, net) == pytest.approx(record["realised_ms"], rel=1e-6)


@pytest.mark.full
def test_both_kinds_of_cut_in_one_network_are_saved_and_loaded(machine: Machine, tmp_path: Path) -> None:
    machine.start, machine.pointwise, machine.depthwise = 6_000.0, 2.0, 30.0
    pruned = cut("shortcuts", 0.5, cut={"refit_images": 16})
    net = pruned.module
    assert isinstance(net, Shortcuts)
    factored = [name for name, layer in net.named_modules() if isinstance(layer, FactoredLayer)]
    narrow = net.first.bn1.num_features < 16 or net.second.bn1.num_features < 32
    assert factored and narrow, (factored, net)
    hybridprune.save(pruned, tmp_path / "net")
    loaded = hybridprune.restore(tmp_path / "net", NETWORKS["shortcuts"]())
    images = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        assert loaded.eval()(images).equal(net.eval()(images))


@pytest.mark.full
def test_a_cut_network_is_cut_again(machine: Machine) -> None:
    where_rotations_are_dear(machine)
    first = cut("shortcuts", 0.8)
    data = batches()
    how = LatencyTarget(batch=4, seconds=1e9)
    again = hybridprune.prune(first, data, target_latency=0.8, latency=how, progress=False, **QUICK).module
    assert isinstance(again, Shortcuts) and isinstance(first.module, Shortcuts)
    assert again.first.bn1.num_features < first.module.first.bn1.num_features < 16
    assert again.second.bn1.num_features >= 4  # a tenth of 32 stays, through both cuts


@pytest.mark.full
def test_a_network_without_such_pairs_has_its_directions(machine: Machine) -> None:
    pruned = cut("linear", 0.6)
    assert pruned.spec.latency is not None and pruned.spec.latency["met"]


class Inverted(nn.Module):
    """A block as MobileNetV2 has it: wide, a depthwise convolution, narrow."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 32, 1, bias=False)
        self.norm, self.middle = nn.BatchNorm2d(32), nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False)
        self.again, self.narrow = nn.BatchNorm2d(32), nn.Conv2d(32, 8, 1)
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.again(self.middle(self.norm(self.wide(x)).relu())).relu()
        return self.head((x + self.narrow(y)).mean((2, 3)))


@pytest.mark.full
def test_a_depthwise_layer_goes_along(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "inverted", Inverted)
    machine.pointwise, machine.depthwise = 1.0, 20.0
    pruned = cut("inverted", 0.6, cut={"refit_images": 16})
    net = pruned.module
    assert isinstance(net, Inverted)
    kept = net.middle.groups
    assert not pruned.left_alone
    assert kept < 32 and kept == net.wide.out_channels == net.again.num_features == net.narrow.in_channels
    assert pruned.spec.latency is not None and pruned.spec.latency["met"]


def test_all_tables_together_take_the_seconds_that_they_may(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, float] = {}

    def tables(self: TableMaker, wanted: Sequence[Geometry], kind: str) -> dict[Geometry, Grids]:
        given[kind] = self.seconds
        return measured(self, wanted, kind)

    measured = TableMaker.tables
    monkeypatch.setattr(TableMaker, "tables", tables)
    cut("shortcuts", 0.8)
    assert len(given) == 3 and sum(given.values()) == pytest.approx(1e9)


def test_a_budget_of_flops_takes_no_channels(machine: Machine) -> None:
    where_rotations_are_dear(machine)
    net = cut("shortcuts", None, target_flops=0.5).module
    assert isinstance(net, Shortcuts)
    assert net.first.bn1.num_features == 16 and net.second.bn1.num_features == 32


def test_a_refit_makes_up_for_channels(machine: Machine) -> None:
    """The reading layer answers more like the uncut one on the images of the refit."""
    where_rotations_are_dear(machine)
    images = torch.cat([x for x, _ in batches()])
    errors = {}
    for refit in (0, 16):
        found = cut("shortcuts", 0.7, cut={"refit_images": refit}).module.eval()
        torch.manual_seed(0)
        with torch.no_grad():
            errors[refit] = float((found(images) - _uncut()(images)).square().mean())
    assert errors[16] < 0.7 * errors[0], errors


def test_the_layer_that_makes_them_is_refitted_to_those_that_stay(machine: Machine) -> None:
    """Its inputs are what they were, so the least squares find the rows that it had."""
    where_rotations_are_dear(machine)
    draw = torch.Generator().manual_seed(0)
    data = [(torch.randn(64, 3, 8, 8, generator=draw), torch.randint(10, (64,), generator=draw))]
    torch.manual_seed(0)
    dense = settle(Shortcuts(), data[0][0])
    assert isinstance(dense, Shortcuts)
    rows, shifts = dense.first.conv1.weight.detach().clone(), torch.arange(16) / 16
    with torch.no_grad():
        dense.first.bn1.bias.copy_(shifts)
    how = {"latency": LatencyTarget(batch=4, seconds=1e9), "cut": CutOptions(refit_images=64), "progress": False}
    net = hybridprune.prune(dense, data, target_latency=0.7, **how, **QUICK).module
    assert isinstance(net, Shortcuts)
    found = net.first.conv1.weight.detach()
    distance = torch.cdist(found.flatten(1), rows.flatten(1)) / rows.flatten(1).norm(dim=1)
    nearest = distance.min(1)
    assert len(found) < 16 and float(nearest.values.max()) < 0.02
    torch.testing.assert_close(net.first.bn1.bias.detach(), shifts[nearest.indices])


def test_the_layer_that_reads_them_makes_up_for_those_that_go(machine: Machine) -> None:
    """Before any refit, by the curvature; and a refit of the cut layers alone takes it as well."""
    where_rotations_are_dear(machine)
    dense, draw, found = _uncut(), torch.Generator().manual_seed(0), []
    assert isinstance(dense, Shortcuts)
    data = [(torch.randn(320, 3, 8, 8, generator=draw), torch.randint(10, (320,), generator=draw))]
    for images in (0, 320):
        options = CutOptions(refit_images=images, refit="cores")
        how = {"latency": LatencyTarget(batch=4, seconds=1e9), "cut": options, "progress": False}
        net = hybridprune.prune(_uncut(), data, target_latency=0.7, **how, **QUICK).module
        assert isinstance(net, Shortcuts)
        stay = [int((dense.first.conv1.weight == row).all((1, 2, 3)).nonzero()) for row in net.first.conv1.weight]
        assert stay == sorted(stay) and len(stay) < 16  # a refit of cores leaves those that are whole as they are
        found.append(net.first.conv2.weight.detach())
        assert not torch.allclose(found[-1], dense.first.conv2.weight[:, stay], atol=1e-3)
    assert found[0].shape == found[1].shape and not torch.allclose(found[0], found[1], atol=1e-4)


def _uncut() -> nn.Module:
    torch.manual_seed(0)
    return settle(Shortcuts(), batches()[0][0]).eval()


@pytest.mark.parametrize(
    ("full", "multiple", "expected"),
    [(6, 1, [1, 2, 3, 4, 5, 6]), (32, 8, [8, 16, 24, 32]), (20, 8, [8, 16, 20]), (5, 8, [5])],
)
def test_blocks_are_multiples_or_all(full: int, multiple: int, expected: list[int]) -> None:
    geometry = Geometry(full, full, 1, (8, 8), (3, 3), (1, 1), (1, 1), (1, 1))
    assert output_axes(geometry, 9, multiple) == {CHANNELS: ([full], expected)}
    assert input_axes(geometry, 9, multiple) == {CHANNELS: (expected, [full])}
