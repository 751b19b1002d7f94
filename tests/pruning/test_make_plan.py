"""From a gated network to a cut one: scores are those of the routes that its images take."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridprune.batch import Batch
from hybridprune.config import CurvatureOptions, CutOptions
from hybridprune.curvature import collect_factors, eigenbasis
from hybridprune.errors import UserError
from hybridprune.models.edits import factor_edits
from hybridprune.models.factored import DENSE
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.pruning.budget.space import Budget, Cost, UnitSet
from hybridprune.pruning.make_plan import make_plan
from hybridprune.pruning.plan import DirectionPlan, Plan
from tests.networks_and_images import random_images, random_net
from tests.pruning.random_curvature import SIZE, PlainNetwork, cost_of, forms, layers_of

COPIES = 10
DISTINCT = 4


def batch() -> tuple[Tensor, Tensor]:
    """A few images, each of them ten times in a row of equals."""
    return random_images(DISTINCT, SIZE).repeat(COPIES, 1, 1, 1), (torch.arange(DISTINCT) % 5).repeat(COPIES)


@dataclass(frozen=True)
class RoutedNetwork(PlainNetwork):
    """A gated network that decides as it is told, pruned on one batch."""

    model: GatedNetwork
    decisions: Tensor | None = None
    exclude: tuple[str, ...] = ("gate.*",)

    def logits(self, images: Tensor) -> Tensor:
        return self.model(images, self.decisions, mode="executed").logits

    def run(self, model: nn.Module, images: Tensor) -> Tensor:
        return model.get_submodule("backbone")(images)

    def sample(self, images: int, purpose: str) -> Iterable[Batch]:
        assert images > 0 and purpose in ("factors", "moments", "refit")
        return [Batch(*batch())]

    def measure(self, model: nn.Module) -> Cost:
        return cost_of(cast(GatedNetwork, model))

    def counts(self, name: str) -> bool:
        return name.startswith("backbone.")


def network_of(net: GatedNetwork, decisions: Tensor | None = None) -> RoutedNetwork:
    return RoutedNetwork(net, torch.zeros(1, 3, SIZE, SIZE), decisions=decisions)


def plan_of(
    net: GatedNetwork, decisions: Tensor | None = None, cut: dict[str, Any] | None = None, **curvature: Any
) -> Plan:
    options = CurvatureOptions(**{"fisher_type": "exp", **curvature})
    return make_plan(network_of(net, decisions), CutOptions(**{"refit_images": 0, **(cut or {})}), options)


def sets_of(plan: Plan) -> dict[str, UnitSet]:
    return {units.name: units for units in plan.space.sets}


@pytest.mark.parametrize("sua", [True, False])
@pytest.mark.parametrize(
    ("method", "correct"), [("fisher-tucker", False), ("eigendamage", False), ("eigendamage", True)]
)
def test_a_block_that_a_tenth_of_the_images_use_is_worth_a_tenth(method: str, correct: bool, sua: bool) -> None:
    net = random_net(14, 4)
    gate, scores = 2, {}  # gate 2 decides block 3
    for copies in (COPIES, 1, 0):
        decisions = torch.ones(COPIES * DISTINCT, net.num_gates)
        decisions[copies * DISTINCT :, gate] = 0
        plan = plan_of(net, decisions, {"method": method}, correct_eigenvalues=correct, sua=sua)
        scores[copies] = {name: units.scores for name, units in sets_of(plan).items()}
    for name in ("backbone.blocks.3.conv1", "backbone.blocks.3.conv2"):
        for side in ("in", "out"):
            always, tenth = (scores[copies][f"{name}:{side}"] for copies in (COPIES, 1))
            assert float(always[0]) > 0
            torch.testing.assert_close(tenth, always / COPIES, rtol=1e-3, atol=1e-6 * float(always[0]))
            # One that no image uses has not been measured, which does not mean that it costs nothing.
            assert f"{name}:{side}" not in scores[0]
        assert plan.left_alone[name] == "no gradient reached it"
    # The block behind it does run.
    assert float(scores[0]["backbone.blocks.4.conv1:out"][0]) > 0


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("sua", [True, False])
def test_corrected_scores_are_those_of_the_images_own_gradients(sua: bool, use_bias: bool) -> None:
    """With ``use_bias``, of the gradients that are left when a bias absorbs the mean input."""
    net = random_net(8, 4)
    images, labels = (each[:DISTINCT] for each in batch())
    options = {"method": "eigendamage"}
    found = sets_of(plan_of(net, None, options, correct_eigenvalues=True, sua=sua, use_bias=use_bias))
    layers = {layer.name: layer for layer in layers_of(net)}
    decisions = net(images).decisions
    factors = collect_factors(
        lambda images: net(images, mode="executed").logits,
        {name: layer.leaf for name, layer in layers.items()},
        [Batch(*batch())],
        fisher_type="exp",
        moving_average=0.0,
        seed=0,
        sua=sua,
    )
    for name, layer in layers.items():
        parts = factors[name].centred() if use_bias else factors[name]
        mean = factors[name].input_mean
        basis = eigenbasis(parts.input_factor, parts.gradient_factor, parts.offset_factor)
        area = layer.weight[0, 0].numel()
        q_offset = torch.eye(area, dtype=torch.float64) if basis.q_offset is None else basis.q_offset

        def turned(weight: Tensor, basis=basis, q_offset=q_offset) -> Tensor:
            return torch.einsum("op,oik,iq,kl->pql", basis.q_out, weight.double(), basis.q_in, q_offset)

        squares = torch.zeros(layer.weight.flatten(2).shape, dtype=torch.float64)
        for i in range(DISTINCT):
            seen: list[Tensor] = []
            handle = layer.leaf.register_forward_hook(lambda m, args, y, seen=seen: seen.append(y))
            logits = net(images[i : i + 1], decisions[i : i + 1]).logits
            handle.remove()
            loss = F.cross_entropy(logits, labels[i : i + 1])
            gradient, g = torch.autograd.grad(loss, [layer.leaf.weight, seen[0]])
            gradient = gradient.reshape(layer.weight.flatten(2).shape)
            if use_bias:
                total = g.sum((0, 2, 3)) if g.ndim == 4 else g.sum(0)
                gradient = gradient - (total[:, None] * mean)[:, :, None]
            squares += turned(gradient) ** 2 / DISTINCT
        worth = 0.5 * (squares * turned(layer.weight.flatten(2)) ** 2).sum(2)
        if f"{name}:out" not in found:
            assert not worth.any() and not decisions.all()  # a block that no image uses
            continue
        for side, expected in (("out", worth.sum(1)), ("in", worth.sum(0))):
            scores = found[f"{name}:{side}"].scores
            torch.testing.assert_close(
                scores, expected.sort(descending=True).values, rtol=1e-3, atol=1e-5 * float(scores[0]) + 1e-12
            )


def test_sampled_labels_are_repeatable_and_leave_no_trace() -> None:
    net = random_net(8, 4).train()
    net.backbone.bn.eval()
    modes = [module.training for module in net.modules()]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    one, two = (sets_of(plan_of(net, fisher_type="true")) for _ in range(2))
    assert one.keys() == two.keys()
    assert all(torch.equal(units.scores, two[name].scores) for name, units in one.items())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert [module.training for module in net.modules()] == modes


@pytest.mark.parametrize(
    ("method", "decomp_method", "refit_images"),
    [("fisher-tucker", "usual", 0), ("fisher-tucker", "tucker", 16), ("eigendamage", "usual", 16)],
)
def test_a_plan_is_carried_out_within_its_budget_again_and_again(
    method: str, decomp_method: str, refit_images: int
) -> None:
    net = random_net(8, 8)
    options = {"method": method, "decomp_method": decomp_method, "refit_images": refit_images}
    for share in (0.7, 0.6):  # the second time on factored layers
        decisions = torch.ones(COPIES * DISTINCT, net.num_gates)
        decisions[:, 0] = 0  # a block that no image uses has no metric
        plan = plan_of(net, decisions, options)
        budget = Budget(macs=share * cost_of(net).macs)
        kept = plan.allocate(0.5, budget)
        before = copy.deepcopy(net.state_dict())
        wanted = forms(plan.space, kept)
        assert len(plan.describe(kept)) == len(wanted)
        torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)  # nothing has changed yet
        plan.apply(kept)
        assert budget.allows(cost_of(net)) and cost_of(net) == plan.space.cost(kept)
        assert {edit.layer: edit.ranks for edit in factor_edits(net)} == {
            name: ranks for name, ranks in wanted.items() if ranks != DENSE
        }
        assert torch.isfinite(net(batch()[0]).logits).all()


def test_auto_is_the_methods_own_allocation() -> None:
    net = random_net(8, 4)
    for method, allocation in (("fisher-tucker", "rate_distortion"), ("eigendamage", "importance")):
        assert plan_of(net, cut={"method": method}).allocation == allocation
        other = plan_of(net, cut={"method": method, "allocation": "importance_per_flop"})
        assert other.allocation == "importance_per_flop"


def test_a_network_without_layers_to_prune_is_refused() -> None:
    network = dataclasses.replace(network_of(random_net(8, 4)), exclude=("gate.*", "backbone.*"))
    with pytest.raises(UserError, match=r"--exclude: .*gate\.\*, backbone\.\*"):
        make_plan(network, CutOptions(), CurvatureOptions())


def test_expected_losses_are_those_of_the_ranks_that_layers_keep() -> None:
    net = random_net(8, 8)
    plan = plan_of(net, cut={"method": "eigendamage"})
    assert isinstance(plan, DirectionPlan)
    assert set((plan.expected_losses(plan.space.everything()) or {"": 1.0}).values()) == {0.0}
    kept = plan.allocate(0.5, None)
    found = plan.expected_losses(kept)
    assert found is not None and max(found.values()) > 0
    for name, ranks in forms(plan.space, kept).items():
        importance = plan.decompositions[name].importance.clone()
        rank_out, rank_in = (None if r is None else int(r) for r in (ranks.rank_out, ranks.rank_in))
        whole = importance.sum()
        assert found[name] == pytest.approx(float(whole - importance[:rank_out, :rank_in].sum()), abs=1e-12)
    assert plan_of(net, cut={"method": "eigendamage", "normalize": True}).expected_losses(kept) is None


def test_expected_losses_of_channels_are_the_scores_of_those_that_go() -> None:
    net = random_net(8, 4)
    plan = plan_of(net, cut={"method": "kron-obd"})
    kept = [units.least for units in plan.space.sets]
    found = plan.expected_losses(kept)
    assert found is not None and max(found.values()) > 0
    assert found == {units.name: float(units.scores[units.least :].sum()) for units in plan.space.sets}
    plan = plan_of(net, cut={"method": "l1"})
    assert plan.expected_losses([units.least for units in plan.space.sets]) is None
