"""Nothing measured does not mean that it costs nothing: such layers are left alone, and named."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hybridprune
from hybridprune.config import CurvatureOptions, CutOptions
from hybridprune.curvature import LayerFactors, SecondMoments
from hybridprune.errors import UserError
from hybridprune.pruning.channels.group import ChannelGroup, Member
from hybridprune.pruning.channels.scores import Statistics
from hybridprune.pruning.left_alone import NO_GRADIENT, NO_INPUT, NOT_FINITE, UNSEEN
from hybridprune.pruning.measured import unmeasured_groups, unmeasured_layers

QUICK = CurvatureOptions(curvature_images=12, moment_images=12)
DATA = [(torch.randn(6, 3, 6, 6, generator=torch.Generator().manual_seed(n)), torch.arange(6) % 3) for n in range(2)]


class Backbone(nn.Module):
    """Two convolutions in front, of which the features reach two more layers by ``link``."""

    def __init__(self, link: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.third, self.head = nn.Conv2d(8, 16, 3, padding=1), nn.Linear(16, 3)
        self.link = link

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.third(self.link(self, x))).mean((2, 3)))


def without_gradient(net: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return net.features(x)


LINKS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "under no_grad": without_gradient,
    "detached": lambda net, x: net.features(x).detach(),
    "times nothing": lambda net, x: net.features(x) * 0.0 + 1.0,
    "in the clamp": lambda net, x: net.features(x).clamp(-2.0, -1.0),
}


def pruned(model: nn.Module, target: float = 0.7, **options: Any) -> tuple[hybridprune.Pruned, str]:
    """And what was said."""
    common: dict[str, Any] = {"curvature": QUICK, "cut": CutOptions(refit_images=0, use_out_dependencies=True)}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = hybridprune.prune(model, DATA, target_flops=target, **{**common, **options})
    return found, " ".join(str(each.message) for each in said)


@pytest.mark.parametrize("method", ["fisher-tucker", "eigendamage", "taylor", "kron-obd", "kron-obs", "c-obs"])
@pytest.mark.parametrize("link", LINKS)
def test_what_no_gradient_reaches_is_left_alone_and_named(link: str, method: str) -> None:
    found, said = pruned(Backbone(LINKS[link]), method=method)
    if method in ("fisher-tucker", "eigendamage") or link in ("times nothing", "in the clamp"):
        # The dependency graph of channels follows gradients, and does not see these layers in the other cases.
        assert found.left_alone["first"] == found.left_alone["second"] == NO_GRADIENT
        assert "first (no gradient reached it)" in said and "second (no gradient" in said
    assert isinstance(found.module, Backbone)
    assert tuple(found.module.first.weight.shape) == (8, 3, 3, 3)
    assert {edit.layer for edit in found.spec.edits} <= {"third", "head"}
    assert 0.6 * found.spec.dense_macs < found.spec.macs <= 0.7 * found.spec.dense_macs


def test_the_same_network_with_a_gradient_is_cut_in_front_as_well() -> None:
    found, said = pruned(Backbone(lambda net, x: net.features(x)), 0.4)  # type: ignore[operator]
    assert not said and "second" in {edit.layer for edit in found.spec.edits}


class Still(nn.Module):
    """Whose outputs are constant."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Backbone(lambda net, x: net.features(x))  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * 0.0


@pytest.mark.parametrize("method", ["fisher-tucker", "taylor", "kron-obd"])
def test_a_network_that_no_gradient_reaches_at_all_is_refused(method: str) -> None:
    with pytest.raises(UserError, match=r"nothing was measured \(.*no gradient reached it\)") as refused:
        pruned(Still(), method=method)
    assert "\n" not in str(refused.value)
    found, _ = pruned(Still(), method="l1")  # which reads nothing but the weights
    assert found.spec.macs <= 0.7 * found.spec.dense_macs


def test_a_budget_that_needs_what_was_not_measured_names_its_floor() -> None:
    with pytest.raises(UserError, match=r"target_flops 0\.05.*the floor is 0\.[3-9]"):
        pruned(Backbone(LINKS["detached"]), 0.05)


def factors(a: float = 1.0, g: float = 1.0, positions: int = 4) -> LayerFactors:
    return LayerFactors(a * torch.eye(3), g * torch.eye(2), positions, torch.zeros(3))


NAN = float("nan")
REASONS = [
    (factors(), 1.0, None),
    (factors(g=1e-30), 1e-30, None),
    (factors(g=0), 0.0, NO_GRADIENT),
    (factors(g=1e-40), 1e-40, NO_GRADIENT),  # no digits are left of it
    (factors(a=1e-40), 1e-40, NO_INPUT),
    (factors(), 0.0, NO_GRADIENT),
    (factors(a=0), 0.0, NO_INPUT),
    (factors(0, 0, 0), 0.0, NO_GRADIENT),
    (factors(a=NAN), 1.0, NOT_FINITE),
    (factors(g=float("inf")), 1.0, NOT_FINITE),
    (factors(), NAN, NOT_FINITE),
    (factors(), float("inf"), NOT_FINITE),
]


@pytest.mark.parametrize(("layer", "trace", "reason"), REASONS)
def test_reasons(layer: LayerFactors, trace: float, reason: str | None) -> None:
    expected = {} if reason is None else {"a": reason}
    assert unmeasured_layers({"a": layer}, {"a": SecondMoments(trace, None)}) == expected
    entries = torch.full((2, 3), trace)
    assert unmeasured_layers({"a": layer}, {"a": SecondMoments(float(entries.sum()), entries)}) == expected


def test_a_group_counts_as_measured_where_one_of_its_layers_is() -> None:
    index = torch.arange(2)[:, None]
    group = ChannelGroup("a", 2, True, (Member("a", "producer", index), Member("b", "producer", index)))

    def reason(one: LayerFactors, other: LayerFactors) -> str | None:
        return unmeasured_groups([group], Statistics({}, {"a": one, "b": other}), "factors").get("a")

    assert reason(factors(), factors(g=0)) is None and reason(factors(g=0), factors()) is None
    assert reason(factors(g=0), factors(0, 0, 0)) == NO_GRADIENT
    assert reason(factors(), factors(g=NAN)) == NOT_FINITE
    taylor = {"a": torch.zeros(2), "b": torch.ones(2)}
    assert unmeasured_groups([group], Statistics({}, taylor=taylor), "taylor") == {}
    nothing = {**taylor, "b": torch.zeros(2)}
    assert unmeasured_groups([group], Statistics({}, taylor=nothing), "taylor") == {"a": NO_GRADIENT}
    assert unmeasured_groups([group], Statistics({}), None) == {}
    unknown = Statistics({}, {"a": factors()}, missing={"b": UNSEEN})
    assert unmeasured_groups([group], unknown, "factors") == {"a": UNSEEN}


class Overwritten(nn.Module):
    """Changes what ``second`` has read before the gradient comes back, and calls ``third`` image by image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(108, 32), nn.Linear(32, 32)
        self.third, self.head = nn.Linear(32, 32), nn.Linear(32, 3)
        self.second.requires_grad_(False)  # or autograd would refuse the change

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x.flatten(1))
        z = self.second(y)
        y.add_(1.0)
        y = F.relu(y + z)
        return self.head(torch.cat([self.third(image[None]) for image in y]))


@pytest.mark.parametrize("method", ["fisher-tucker", "eigendamage"])
def test_what_cannot_be_seen_when_its_gradient_comes_is_left_alone(method: str) -> None:
    curvature = CurvatureOptions(curvature_images=12, moment_images=12, correct_eigenvalues=True)
    found, said = pruned(Overwritten(), 0.9, method=method, curvature=curvature)
    assert found.left_alone["second"] == UNSEEN and "second (what it reads is overwritten" in said
    assert "third" in found.left_alone and {edit.layer for edit in found.spec.edits} <= {"first", "head"}
    assert found.spec.macs <= 0.9 * found.spec.dense_macs


@pytest.mark.parametrize(("pass_number", "method", "target"), [(1, "fisher-tucker", 0.7), (2, "eigendamage", 0.9)])
def test_a_layer_that_is_found_to_be_unobservable_late_is_left_out_of_the_rest(
    pass_number: int, method: str, target: float
) -> None:
    """The factors may be there before a batch comes for which it runs twice."""
    batches = 0

    class Sometimes(Overwritten):
        def forward(self, x: Tensor) -> Tensor:
            nonlocal batches
            y, measuring = F.relu(self.first(x.flatten(1))), torch.is_grad_enabled() and len(x) == 6
            batches += measuring
            if measuring and batches >= 2 * pass_number:
                y = self.second(y)
            return self.head(F.relu(self.third(self.second(y))))

    curvature = CurvatureOptions(curvature_images=12, moment_images=12, correct_eigenvalues=True)
    found, _ = pruned(Sometimes(), target, method=method, curvature=curvature)  # eigendamage has a pass of moments
    assert batches > 2 * pass_number
    assert found.left_alone["second"] == UNSEEN
    assert found.spec.macs <= target * found.spec.dense_macs
