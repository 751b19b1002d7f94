"""Budgets of time from end to end, by a clock without noise."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hybridprune
from hybridprune.config import CurvatureOptions, CutOptions, LatencyTarget
from hybridprune.errors import UserError
from hybridprune.latency import network_clock
from hybridprune.models.edits import FactorEdit
from hybridprune.models.factored import FactoredLayer, form, form_name
from hybridprune.models.spec import NetworkSpec
from hybridprune.pruning.calibrate import NETWORKS as FITTED
from hybridprune.pruning.clock import Reading
from tests.latency.machine import Machine, machine, settle

__all__ = ["machine"]
QUICK: dict[str, Any] = {"curvature": CurvatureOptions(curvature_images=16, moment_images=16)}


class Shortcuts(nn.Module):
    """A stem, two blocks with shortcuts, one of them strided and projected, and a classifier."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.first, self.second = _Block(width, width, 1), _Block(width, 2 * width, 2)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(self.stem(x))).mean((2, 3)))


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def factored_parent() -> nn.Module:
    """A ResNet some of whose layers are factored already."""
    edits = (
        FactorEdit("backbone.blocks.0.conv1", 5, 6),
        FactorEdit("backbone.blocks.1.conv2", 10, None),
        FactorEdit("backbone.blocks.2.conv1", 12, 12, separable=True),
    )
    return NetworkSpec("resnet", 8, 8, 10, edits).build().backbone


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def plain() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((3, 16, 1), (16, 32, 2), (32, 32, 1)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "shortcuts": Shortcuts,
    "factored parent": factored_parent,
    "linear": linear,
    "plain": plain,
}


def batches() -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 3, 8, 8, generator=draw), torch.randint(10, (8,), generator=draw)) for _ in range(2)]


def cut(
    network: str, target: float | None = 0.6, batch: int = 4, engine: str = "eager", **options: Any
) -> hybridprune.Pruned:
    torch.manual_seed(0)
    data = batches()
    model = settle(NETWORKS[network](), data[0][0])
    cut = CutOptions(**{"refit_images": 0, **options.pop("cut", {})})
    how = {} if target is None else {"latency": LatencyTarget(batch=batch, seconds=1e9, engine=engine)}
    return hybridprune.prune(model, data, target_latency=target, cut=cut, progress=False, **how, **QUICK, **options)


def realised(machine: Machine, module: nn.Module, batch: int = 4) -> float:
    """Milliseconds of the module as it is deployed in the end."""
    images = torch.randn(batch, 3, 8, 8).to(memory_format=torch.channels_last)
    found = hybridprune.deploy(module, images, time=machine, progress=False).module
    with torch.no_grad():
        return machine.ms(lambda: found(images))


FULL = pytest.mark.full
CASES = [
    ("shortcuts", "fisher-tucker"),
    ("linear", "fisher-tucker"),
    ("shortcuts", "l1"),
    ("plain", "taylor"),
    pytest.param("shortcuts", "eigendamage", marks=FULL),
    pytest.param("factored parent", "fisher-tucker", marks=FULL),
    pytest.param("factored parent", "eigendamage", marks=pytest.mark.exhaustive),
    pytest.param("plain", "fisher-tucker", marks=FULL),
    pytest.param("linear", "l1", marks=FULL),
    pytest.param("plain", "l1", marks=FULL),
]


@pytest.mark.full
@pytest.mark.parametrize(("network", "method"), CASES)
def test_the_budget_is_met(network: str, method: str, machine: Machine) -> None:
    machine.wholes = 1.3  # which no table of layers knows
    pruned = cut(network, 0.7, method=method)
    record = pruned.spec.latency
    assert record is not None and record["met"] and record["rounds"] <= 6
    assert 0.65 <= record["realised_ms"] / record["dense_ms"] <= 0.735
    assert realised(machine, pruned.module) == pytest.approx(record["realised_ms"], rel=1e-6)
    assert f"{record['realised_ms']:.4g} ms deployed" in str(pruned)


@pytest.mark.exhaustive
@pytest.mark.full
def test_another_clock_another_plan(machine: Machine) -> None:
    """Where rotations are dear layers stay dense, or lose what saves them; a budget of FLOPs does not see it."""
    plans = {}
    for name, (depthwise, pointwise) in {"even": (1.0, 1.0), "depthwise": (60.0, 1.0), "pointwise": (1.0, 8.0)}.items():
        machine.depthwise, machine.pointwise = depthwise, pointwise
        pruned = cut("shortcuts", 0.6)
        plans[name] = _forms(pruned)
        assert pruned.spec.latency is not None and pruned.spec.latency["met"]
        _forget_cache(machine)
    flops = _forms(cut("shortcuts", None, target_flops=0.6))
    assert "separable" in flops.values() and "separable" in plans["even"].values()
    assert "separable" not in plans["depthwise"].values() and plans["depthwise"] != plans["even"] != plans["pointwise"]


def _forget_cache(machine: Machine) -> None:
    """Another machine of the same name: the cache cannot know."""
    for file in network_clock.default_folder().glob("*.json"):
        file.unlink()
    machine.timed.clear()


def _forms(pruned: hybridprune.Pruned) -> dict[str, str]:
    return {
        name: form_name(form(layer))
        for name, layer in pruned.module.named_modules()
        if isinstance(layer, FactoredLayer)
    }


@pytest.mark.full
def test_two_budgets_are_both_kept(machine: Machine) -> None:
    pruned = cut("shortcuts", 0.8, target_flops=0.4)
    assert pruned.spec.latency is not None and pruned.spec.macs <= 0.4 * pruned.spec.dense_macs
    assert pruned.spec.latency["realised_ms"] <= 1.05 * 0.8 * pruned.spec.latency["dense_ms"]


def test_milliseconds(machine: Machine) -> None:
    dense = cut("plain", 0.9, method="l1").spec.latency
    assert dense is not None
    wanted = 0.6 * dense["dense_ms"]
    assert wanted < 1  # a number up to 1 is a share
    machine.each, machine.start = 1000 * machine.each, 1000 * machine.start
    _forget_cache(machine)
    found = cut("plain", 1000 * wanted, method="l1").spec.latency
    assert found is not None and found["met"] and found["target_ms"] == pytest.approx(1000 * wanted)
    assert found["realised_ms"] == pytest.approx(1000 * wanted, rel=0.05)


def test_nothing_is_cut_where_the_network_is_fast_enough(machine: Machine) -> None:
    pruned = cut("plain", 1.0, method="l1")
    assert pruned.spec.latency is not None and pruned.spec.latency["met"] and not pruned.spec.edits


def test_a_budget_below_the_floor_is_refused_with_the_floor_by_the_clock(machine: Machine) -> None:
    """The floor is that of the network that was timed, not of the tables."""
    machine.wholes = 1.5
    with pytest.raises(UserError, match=r"^target_latency 0.01: below what cut.prune_ratio_limit 0.9 allow") as error:
        cut("plain", 0.01, method="l1")
    assert re.search(r"the floor is 0\.\d{4} of the time \([\d.]+ ms\), 0\.\d{4} of the FLOPs", str(error.value))
    share = float(re.findall(r"is (0\.\d+) of the time", str(error.value))[0])
    found = cut("plain", share, method="l1").spec.latency  # which can be reached, as it says
    assert found is not None and found["met"]


def test_percent_is_told_from_milliseconds(machine: Machine) -> None:
    machine.each, machine.start = 1e6, 1e6
    with pytest.raises(UserError, match=r"^target_latency 5.0: 5 is taken as 5 ms, for 5 % give target_latency 0.05"):
        cut("plain", 5, method="l1")


def test_a_budget_that_is_missed_is_told_and_recorded(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes wild after the plan: every network takes as long as the dense one, or no time."""
    calls = iter(range(1000))

    def read(*_: object, anew: bool = False) -> Reading:
        return Reading(*((1.2e6, 1e6), (0.2e6, 1e6))[next(calls) % 2])

    monkeypatch.setattr(network_clock.DeployedClock, "read", read)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        pruned = cut("plain", 0.6, method="l1")
    assert pruned.spec.latency is not None and not pruned.spec.latency["met"]
    assert any("budget of time missed: a batch of 4 takes" in str(each.message) for each in told)


def test_the_record_is_saved_and_read(machine: Machine, tmp_path: Path) -> None:
    pruned = cut("plain", 0.7, method="l1")
    hybridprune.save(pruned, tmp_path / "saved")
    assert hybridprune.PrunedSpec.read(tmp_path / "saved" / "spec.json") == pruned.spec
    fresh = hybridprune.restore(tmp_path / "saved", into=plain()).eval()
    assert fresh(batches()[0][0]).equal(pruned.module(batches()[0][0]))
    path = tmp_path / "saved" / "spec.json"
    path.write_text(path.read_text().replace('"met": true', '"met": 3'))
    with pytest.raises(UserError, match="met is 3, which is no bool"):
        hybridprune.PrunedSpec.read(path)


def test_pruned_again_shares_are_those_of_what_is_given(machine: Machine) -> None:
    once = cut("plain", 0.7, method="l1")
    data = batches()
    twice = hybridprune.prune(
        once, data, target_latency=0.8, latency=LatencyTarget(batch=4), method="l1", progress=False, **QUICK
    )
    assert twice.spec.latency is not None and twice.spec.latency["met"]
    assert realised(machine, twice.module) == pytest.approx(0.8 * realised(machine, once.module), rel=0.06)


def layers_in(timed: list[str]) -> list[str]:
    """The numbered layers of tables; other names are those of whole networks and of forms to deploy."""
    return [name for name in timed if name[0].isdigit()]


def test_whole_networks_are_compiled_and_layers_are_not(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are those of PyTorch: what was timed for one engine is there for the other."""
    seen: list[int] = []

    def compiled(run: Callable[..., Any]) -> Callable[..., Any]:
        seen.append(1)
        return run

    monkeypatch.setattr(torch, "compile", compiled)
    found = cut("plain", 0.7, engine="compiled").spec.latency
    assert found is not None and found["met"] and found["engine"] == "compiled"
    assert len(seen) > 1 + FITTED  # the probe, the dense network, those by which times are fitted, and plans
    compilations, timed = len(seen), len(layers_in(machine.timed))
    eager = cut("plain", 0.7).spec.latency
    assert eager is not None and eager["points"] == found["points"] and len(seen) == compilations
    assert len(layers_in(machine.timed)) == timed > 0


@pytest.mark.full
@pytest.mark.parametrize(
    ("engine", "times"),
    [
        ("eager", 2),
        pytest.param("onnxruntime", 2, marks=pytest.mark.exhaustive),
        ("openvino", 1),
        pytest.param("compiled", 1, marks=pytest.mark.exhaustive),
    ],
)
def test_by_a_real_clock(engine: str, times: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Loose, for machines that do other work: it runs, and says what it came to. The second time tables are there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data = batches()
    model = settle(plain(), data[0][0])
    how = LatencyTarget(batch=2, threads=1, engine=engine, seconds=2)
    for _ in range(times):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is missed
            try:
                pruned = hybridprune.prune(
                    model, data, target_latency=0.8, latency=how, method="l1", progress=False, **QUICK
                )
            except UserError as error:
                assert "the floor is" in str(error)
                continue
        record = pruned.spec.latency
        assert record is not None and record["realised_ms"] > 0 and record["points"] > 10
        assert (record["engine"], record["batch"], record["threads"]) == (engine, 2, 1)
    assert list((tmp_path / "hybridprune" / "latency").glob("*.json"))


def test_a_cut_that_gains_no_time_is_refused_and_told_so(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock by which every network takes as long as the dense one."""
    monkeypatch.setattr(network_clock.DeployedClock, "read", lambda self, model, *, anew=False: Reading(1e6, 1e6))
    with pytest.raises(UserError, match=r"^target_latency 0.8: no cut that was timed is faster .* takes 1.000 of its"):
        cut("plain", 0.8, method="l1")
