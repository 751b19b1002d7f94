"""Under bf16 nothing but a network's own passes is computed in half precision, in all objectives and estimators."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hybridprune.config import GatingOptions, LossOptions, RoutingOptions
from hybridprune.data import Batch
from hybridprune.engine.distill import Distillation, plainly
from hybridprune.engine.draws import Draws
from hybridprune.engine.objective import Objective, Supervised
from hybridprune.measure.cost import NetworkCost, count
from hybridprune.models.gates import Gate
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.precision import Precision
from hybridprune.routing.gumbel import GumbelRouting
from hybridprune.routing.loss import RoutingTerms
from hybridprune.routing.policy_gradient import PolicyGradient
from hybridprune.routing.price import Price
from tests.routing.three_gates import SIZE, labelled, three_gates

CPU = torch.device("cpu")
BF16 = Precision("cpu", torch.bfloat16)
HALVES = torch.bfloat16, torch.float16
IMAGES = 12


class Halves(TorchDispatchMode):
    """The operators that compute half-precision numbers outside of what is allowed to; views compute nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.passes: set[torch.dtype] = set()
        self._allowed = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        half = any(isinstance(leaf, Tensor) and leaf.dtype in HALVES for leaf in tree_leaves(result))
        if half and not self._allowed and not func.is_view:
            self.found.append(str(func))
        return result

    @contextmanager
    def allowed(self, allowed: bool) -> Iterator[None]:
        before, self._allowed = self._allowed, allowed
        try:
            yield
        finally:
            self._allowed = before

    def around(self, run: Callable[..., Any], allowed: bool) -> Callable[..., Any]:
        def marked(*args: Any, **kwargs: Any) -> Any:
            with self.allowed(allowed):
                found = run(*args, **kwargs)
            if allowed:
                self.passes |= {leaf.dtype for leaf in tree_leaves(found) if isinstance(leaf, Tensor)}
            return found

        return marked


@pytest.fixture
def halves(monkeypatch: pytest.MonkeyPatch) -> Halves:
    """A network's own steps may be computed in half precision, its gates may not."""
    halves = Halves()
    for step in ("start", "advance", "finish"):
        monkeypatch.setattr(GatedNetwork, step, halves.around(getattr(GatedNetwork, step), True))
    monkeypatch.setattr(Gate, "forward", halves.around(Gate.forward, False))
    return halves


def teacher(halves: Halves | None) -> Distillation:
    found = Distillation.of(three_gates(1), 0.3, 2.0, forward=BF16(plainly))
    assert found is not None
    if halves is not None:
        object.__setattr__(found.teacher, "forward", halves.around(found.teacher.forward, True))
    return found


def supervised(cost: NetworkCost, distillation: Distillation, gating: str, noise: float) -> Objective:
    draws = Draws(IMAGES, len(cost.block_macs), 0, "noise")
    return Supervised.of(cost, 1.0, CPU, distillation, GatingOptions(gating, noise), draws, LossOptions(0.1))


def routed(cost: NetworkCost, net: GatedNetwork, distillation: Distillation, **changes: Any) -> Objective:
    options = RoutingOptions(**{"rl_warmup": 0.0, "rate_bound": 0.45, "entropy_bonus": 0.1, **changes})
    price = Price(options.reward_scale, options.target_flops, options.price_step, CPU)
    terms = RoutingTerms.of(cost, options, price, CPU, distillation, BF16)
    if options.estimator == "gumbel":
        return GumbelRouting(terms, images=IMAGES, seed=0)
    return PolicyGradient(net, terms, images=IMAGES, seed=0)


ESTIMATORS: dict[str, dict[str, Any]] = {
    "gumbel": {"estimator": "gumbel"},
    "gumbel to a budget": {"estimator": "gumbel", "target_flops": 0.5},
    "no baseline": {"baseline": "none"},
    "moving average": {"baseline": "moving_average", "target_flops": 0.5, "temperature": 2.0, "exploration": 0.1},
    "self-critical": {"baseline": "self_critical"},
    "self-critical, norms trained": {"baseline": "self_critical", "batchnorm": "trained"},
    "counterfactual": {"baseline": "counterfactual", "target_flops": 0.5},
    "counterfactual, sampled": {"baseline": "counterfactual", "flip_from": "sampled"},
    "counterfactual, norms trained": {"baseline": "counterfactual", "batchnorm": "trained"},
    "gates alone": {"baseline": "counterfactual", "train": "gates"},
}
OBJECTIVES = ["hard", "soft", "noisy", *ESTIMATORS]


def objective_of(name: str, net: GatedNetwork, halves: Halves | None) -> Objective:
    cost, distillation = count(net, SIZE), teacher(halves)
    if name in ESTIMATORS:
        return routed(cost, net, distillation, **ESTIMATORS[name])
    return supervised(cost, distillation, "soft" if name == "soft" else "hard", 1.0 if name == "noisy" else 0.0)


def batch() -> Batch:
    images, labels = labelled(IMAGES)
    return Batch(images, labels, torch.arange(IMAGES))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_nothing_but_the_networks_passes_is_half(name: str, halves: Halves) -> None:
    net = three_gates().train()
    objective = objective_of(name, net, halves)
    halves.passes.clear()  # those that were counted
    with halves:
        objective(BF16(net), batch(), 0.0)
        loss, metrics = objective(BF16(net), batch(), 0.0)  # finds running means of the first
    assert halves.found == []
    assert halves.passes == {torch.bfloat16}  # all of them, the teacher's as well
    assert all(value.dtype in (torch.float32, torch.float64) for value in (loss, *metrics.values()))


def test_what_is_looked_for_is_seen(halves: Halves) -> None:
    net, images = three_gates(), batch().images
    with halves, torch.autocast("cpu", torch.bfloat16):
        net(images)
        torch.matmul(torch.ones(2, 3), torch.ones(3))
    assert "aten.mv.default" in halves.found and halves.passes == {torch.bfloat16}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_shares_of_flops_are_exact(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the decisions that were taken, in float64."""
    net = three_gates()
    cost = count(net, SIZE)
    taken: list[Tensor] = []
    advance = GatedNetwork.advance

    def noted(self: GatedNetwork, state: Any, decision: Tensor, mode: Any) -> Any:
        taken.append(decision.detach().double())
        return advance(self, state, decision, mode)

    monkeypatch.setattr(GatedNetwork, "advance", noted)
    objective = objective_of(name, net, None)
    loss, metrics = objective(BF16(net), batch(), 0.0)
    decisions = torch.stack(taken[: net.num_gates], 1)
    avoidable = (decisions @ torch.tensor(cost.block_shares, dtype=torch.float64)).mean()
    fixed = (cost.fixed_macs + sum(cost.gate_macs)) / cost.backbone_macs
    if name not in ESTIMATORS:
        assert isinstance(objective, Supervised)
        without = Supervised(objective.block_shares, 0.0, objective.distillation, objective.decide)
        again = Supervised(objective.block_shares, 1.0, objective.distillation, objective.decide)
        if name != "noisy":  # whose decisions the other two do not make
            share = again(BF16(net), batch(), 0.0)[0] - without(BF16(net), batch(), 0.0)[0]
            assert share.item() == pytest.approx(avoidable.item(), abs=1e-6)
        assert metrics["rate"].item() == pytest.approx(decisions.mean().item(), abs=1e-6)
    elif name.startswith("gumbel"):
        assert metrics["flops_share"].item() == pytest.approx((fixed + avoidable).item(), abs=1e-6)
    assert loss.isfinite()


@pytest.mark.parametrize("baseline", ["none", "self_critical", "counterfactual", "moving_average"])
def test_the_price_pays_the_share_of_the_greedy_routes(baseline: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = three_gates()
    cost = count(net, SIZE)
    objective = routed(cost, net, teacher(None), baseline=baseline, target_flops=0.5)
    logits: list[Tensor] = []
    decide = Gate.forward

    def noted(self: Gate, *args: Any) -> Any:
        found = decide(self, *args)
        logits.append(found[0].detach())
        return found

    spent: list[float] = []
    monkeypatch.setattr(Gate, "forward", noted)
    monkeypatch.setattr(Price, "spend", lambda self, share: spent.append(share.item()))
    objective(BF16(net), batch(), 0.0)
    greedy = (torch.stack(logits[: net.num_gates], 1) > 0).double()
    fixed = (cost.fixed_macs + sum(cost.gate_macs)) / cost.backbone_macs
    oracle = fixed + (greedy @ torch.tensor(cost.block_shares, dtype=torch.float64)).mean().item()
    assert spent == pytest.approx([oracle], abs=1e-6)


@pytest.mark.full
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_parameter_that_learns_gets_a_gradient_in_bf16(name: str) -> None:
    """Weights that a pass without gradients has cast are not reused by one with them."""
    found: dict[str, set[str]] = {}
    for precision in (Precision(), BF16):
        net = three_gates().train()
        objective = objective_of(name, net, None)
        loss, _ = objective(precision(net), batch(), 0.0)
        loss.backward()
        found[str(precision.dtype)] = {key for key, p in net.named_parameters() if p.grad is not None}
    assert found["torch.bfloat16"] == found["torch.float32"] and found["torch.float32"]


def test_gates_of_a_network_in_half_precision_decide_on_exact_means() -> None:
    """The features are bf16; their mean is not rounded to it again."""
    net = three_gates()
    features = torch.randn(4, net.backbone.block_channels[0], 8, 8).bfloat16()
    exact = net.gate.decide(0, features.double().float(), None)[0]
    with torch.autocast("cpu", torch.bfloat16):
        logit, _ = net.gate(0, features, None)
    assert logit.dtype == torch.float32
    torch.testing.assert_close(logit, exact, rtol=1e-5, atol=1e-6)
