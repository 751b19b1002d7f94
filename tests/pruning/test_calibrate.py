"""Times inside of a network: what a few whole networks say of the times in tables."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from hybridprune.api.first_look import Task, look
from hybridprune.api.prunable import PlainNetwork
from hybridprune.config import CurvatureOptions, CutOptions, LatencyTarget
from hybridprune.curvature import likelihood_of
from hybridprune.latency.network_clock import DeployedClock
from hybridprune.models.factored import DENSE, Ranks
from hybridprune.models.spec import NetworkSpec
from hybridprune.pruning import calibrate
from hybridprune.pruning.budget.space import Budget
from hybridprune.pruning.calibrate import GAINS, NETWORKS, NetworkFit, TimesInNetwork, fit_networks, random_cut
from hybridprune.pruning.directions.inner_channels import InnerCell
from hybridprune.pruning.directions.space import DirectionCell
from hybridprune.pruning.make_plan import make_plan
from hybridprune.pruning.plan import DirectionPlan
from tests.latency.machine import Machine, machine, settle

__all__ = ["machine"]

NOW = 1e6


@pytest.mark.parametrize(("gain", "each"), [(1.0, 0.0), (0.5, 0.0), (1.5, 2000.0), (0.8, 9000.0)])
def test_gain_and_cost_of_a_changed_layer_are_found(gain: float, each: float) -> None:
    """Of networks that obey the formula, but for the little that the fit pays for being far from the tables."""
    draw = np.random.default_rng(0)
    changed = draw.integers(5, 30, 12)
    expected = NOW - draw.uniform(1e4, 6e5, 12)
    realised = NOW + gain * (expected - NOW) + each * changed
    found = fit_networks(NOW, expected.tolist(), changed.tolist(), realised.tolist())
    assert found.gain == pytest.approx(gain, abs=0.02) and found.each_ns == pytest.approx(each, abs=300)


def test_what_fewer_channels_save_has_a_gain_of_its_own() -> None:
    draw = np.random.default_rng(0)
    changed, narrowed = draw.integers(5, 30, 12), -draw.uniform(1e4, 3e5, 12)
    saved = -draw.uniform(1e4, 6e5, 12)
    realised = NOW + 0.6 * saved + 2000.0 * changed + 1.4 * narrowed
    found = fit_networks(NOW, (NOW + saved + narrowed).tolist(), changed.tolist(), realised.tolist(), narrowed.tolist())
    assert found.gain == pytest.approx(0.6, abs=0.02) and found.channel_gain == pytest.approx(1.4, abs=0.02)
    assert found.each_ns == pytest.approx(2000, abs=300)


def test_a_cut_that_saves_nothing_never_pays() -> None:
    """Where networks come out faster the more layers change, the gain alone has to explain it."""
    expected, changed = [0.9 * NOW, 0.8 * NOW, 0.7 * NOW], [10, 20, 30]
    found = fit_networks(NOW, expected, changed, [0.85 * NOW, 0.7 * NOW, 0.55 * NOW])
    assert found.each_ns >= 0 and found.gain == pytest.approx(1.5, abs=0.01)
    assert fit_networks(NOW, expected, changed, [9 * NOW] * 3).gain >= GAINS[0]
    assert fit_networks(NOW, expected, [0] * 3, [1.0] * 3).gain <= GAINS[1]


@dataclass(frozen=True)
class Linearly:
    """A table by which a dense layer takes 1000 ns and each rank 10."""

    def of(self, ranks: Ranks) -> Tensor:
        return torch.as_tensor(1000 if ranks.rank_in is None else 10 * ranks.rank_in)


def test_what_a_layer_is_now_takes_what_it_took() -> None:
    times = TimesInNetwork(Linearly(), DENSE, NetworkFit(0.5, 30.0))
    assert int(times.of(DENSE)) == 1000
    assert int(times.of(Ranks(40, None))) == 1000 - 300 + 30
    assert times.of(Ranks(torch.tensor([40, 80, 100]), None)).tolist() == [730, 930, 1030]  # type: ignore[arg-type]
    factored = TimesInNetwork(Linearly(), Ranks(40, None), NetworkFit(0.5, 30.0))
    assert int(factored.of(Ranks(40, None))) == 400 and int(factored.of(DENSE)) == 400 + 300 + 30
    assert int(TimesInNetwork(Linearly(), DENSE, NetworkFit(3.0)).of(Ranks(1, None))) == 1  # time is never negative


def timed_plan(seconds: float = 1e9) -> tuple[DirectionPlan, DeployedClock]:
    """A plan of a small ResNet, and its clock."""
    draw = torch.Generator().manual_seed(0)
    data = [(torch.randn(8, 3, 8, 8, generator=draw), torch.randint(10, (8,), generator=draw))]
    torch.manual_seed(0)
    net = settle(NetworkSpec("resnet", 8, 8, 10).build().backbone, data[0][0])
    how = LatencyTarget(batch=2, seconds=seconds)
    clock = DeployedClock.of(net, lambda module: module, data[0][0][:1], how, "fisher-tucker")
    found, example = look(net, data, Task(likelihood_of("cross_entropy"), None))
    few = CurvatureOptions(curvature_images=8, moment_images=8)
    plain = PlainNetwork(net, found, example, (), 0)
    plan = make_plan(
        plain, CutOptions(refit_images=0, separable="none"), few, budget=Budget(ns=clock.dense_ns), clock=clock
    )
    assert isinstance(plan, DirectionPlan)
    return plan, clock


@pytest.mark.full
def test_each_cell_gets_its_part_of_the_fit(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "fit_networks", lambda *_: NetworkFit(0.5, 30.0, 1.5))
    space = timed_plan()[0].space
    inner = [cell for cell in space.cells if isinstance(cell, InnerCell)]
    layers = [cell for cell in space.cells if isinstance(cell, DirectionCell)]
    assert len(inner) == 3 and all(cell.gain == 1.5 for cell in inner)
    assert all(isinstance(cell.times, TimesInNetwork) and cell.times.fit.gain == 0.5 for cell in layers)


@pytest.mark.exhaustive
@pytest.mark.full
def test_other_random_cuts_are_predicted(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a machine where operations inside of a network take longer, the tables alone know nothing."""
    machine.crowded, machine.wholes = 8000.0, 1.2
    fitted: list[int] = []
    errors = {}
    for name in ("calibrated", "tables"):
        if name == "tables":
            monkeypatch.setattr(
                calibrate, "fit_networks", lambda now, expected, *_: fitted.append(len(expected)) or NetworkFit()
            )
        plan, clock = timed_plan()
        draw = np.random.default_rng(7)
        off = []
        for level in np.linspace(0, 1, 6):
            kept = random_cut(plan.space, level, draw)
            off.append(abs(plan.space.cost(kept).ns / clock.dense_ns / clock.read(plan.sketch(kept)).share - 1))
        errors[name] = float(np.median(off))
        assert plan.space.cost(plan.space.everything()).ns == clock.dense_ns
    assert errors["calibrated"] < 0.02 < 0.05 < errors["tables"], errors
    timed_plan(seconds=1e-9)
    assert fitted == [NETWORKS, 1]
