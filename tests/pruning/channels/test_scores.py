"""Scores of channels: brute force, materialised curvature, and the minima that compensation promises."""

from __future__ import annotations

import copy
import dataclasses

import hypothesis
import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from hypothesis import strategies as st
from torch import Tensor, nn

from hybridprune.batch import Batch
from hybridprune.config.methods import METHOD_NAMES
from hybridprune.curvature import LayerFactors, collect_factors
from hybridprune.errors import UserError
from hybridprune.pruning.channels import ChannelGroup, Member, channel_groups
from hybridprune.pruning.channels.scores import Statistics
from hybridprune.pruning.channels.scores.taylor import collect_taylor, taylor_members
from hybridprune.pruning.method import ChannelMethod
from hybridprune.pruning.methods import find
from tests.networks_and_images import random_images, random_net

CHANNEL_METHODS = {name: found for name in METHOD_NAMES if isinstance(found := find(name), ChannelMethod)}

C_OUT, C_IN, K = 4, 3, 2
OFFSETS = K * K
POSITIONS = 7


def group_of(*members: tuple[str, str, list[list[int]]], channels: int = C_OUT) -> ChannelGroup:
    made = tuple(Member(layer, role, torch.tensor(index)) for layer, role, index in members)  # type: ignore[arg-type]
    return ChannelGroup("a", channels, coupled=False, members=made)


PLAIN = group_of(("a", "producer", [[i] for i in range(C_OUT)]))


def positive(size: int, draw: torch.Generator) -> Tensor:
    root = torch.randn(size, size + 2, generator=draw, dtype=torch.float64)
    return root @ root.T


def layer_of(seed: int, offset: bool, bias: bool = False) -> tuple[nn.Conv2d, LayerFactors]:
    """A small convolution in double precision and well-conditioned factors of it."""
    draw = torch.Generator().manual_seed(seed)
    conv = nn.Conv2d(C_IN, C_OUT, K, bias=bias, dtype=torch.float64).requires_grad_(False)
    conv.weight.copy_(torch.randn(conv.weight.shape, generator=draw, dtype=torch.float64))
    return conv, LayerFactors(
        input_factor=positive(C_IN, draw),
        gradient_factor=positive(C_OUT, draw),
        positions=POSITIONS,
        input_mean=torch.zeros(C_IN, dtype=torch.float64),
        offset_factor=positive(OFFSETS, draw) if offset else None,
    )


def fisher(factors: LayerFactors, regularization: float = 0.0) -> Tensor:
    """The curvature of the flat weight, materialised; all of its factors damped."""
    parts = [factors.gradient_factor, factors.input_factor]
    parts += [] if factors.offset_factor is None else [factors.offset_factor]
    share = regularization ** (1 / len(parts))
    g, a, *k = (p + share * p.trace() / len(p) * torch.eye(len(p), dtype=p.dtype) for p in parts)
    return factors.positions * torch.kron(g, torch.kron(a, k[0] if k else torch.eye(OFFSETS, dtype=torch.float64)))


def statistics_of(conv: nn.Module, factors: LayerFactors, regularization: float = 0.0) -> Statistics:
    return Statistics({"a": conv}, factors={"a": factors}, regularization=regularization)


def rows(filters: list[int]) -> list[int]:
    """The places of the filters' weights in the flat weight."""
    size = C_IN * OFFSETS
    return [p for i in filters for p in range(size * i, size * (i + 1))]


def constrained_minimum(form: Tensor, weight: Tensor, gone: list[int]) -> tuple[Tensor, Tensor]:
    """Least ``1/2 dw^T F dw`` with the places ``gone`` made zero, and dw: by solving the equations of the others."""
    free = [p for p in range(len(form)) if p not in gone]
    change = torch.zeros(len(form), dtype=torch.float64)
    change[gone] = -weight.flatten()[gone]
    change[free] = torch.linalg.lstsq(form[free][:, free], -form[free][:, gone] @ change[gone]).solution
    return 0.5 * change @ form @ change, change


def score(method: str, conv: nn.Module, factors: LayerFactors, regularization: float = 0.0) -> Tensor:
    return CHANNEL_METHODS[method].score(PLAIN, statistics_of(conv, factors, regularization))


@pytest.mark.parametrize("offset", [False, True])
def test_obd_scores_are_parts_of_the_materialised_form(offset: bool) -> None:
    conv, factors = layer_of(0, offset)
    form, weight = fisher(factors), conv.weight.flatten()
    blocks = [0.5 * weight[rows([i])] @ form[rows([i])][:, rows([i])] @ weight[rows([i])] for i in range(C_OUT)]
    torch.testing.assert_close(score("kron-obd", conv, factors), torch.stack(blocks))
    diagonal = (0.5 * form.diag() * weight**2).view(C_OUT, -1).sum(1)
    torch.testing.assert_close(score("c-obd", conv, factors), diagonal)


@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("regularization", [0.0, 0.3])
def test_c_obs_adds_up_what_each_weight_costs_alone(offset: bool, regularization: float) -> None:
    conv, factors = layer_of(1, offset)
    form = fisher(factors, regularization)
    alone = torch.stack([constrained_minimum(form, conv.weight, [p])[0] for p in range(len(form))])
    torch.testing.assert_close(score("c-obs", conv, factors, regularization), alone.view(C_OUT, -1).sum(1))


@pytest.mark.parametrize("offset", [False, True])
def test_kron_obs_is_the_constrained_minimum(offset: bool) -> None:
    conv, factors = layer_of(2, offset)
    least = [constrained_minimum(fisher(factors), conv.weight, rows([i]))[0] for i in range(C_OUT)]
    torch.testing.assert_close(score("kron-obs", conv, factors), torch.stack(least))


def test_kron_obs_damps_the_gradient_factor_alone() -> None:
    conv, factors = layer_of(2, offset=False)
    g = factors.gradient_factor
    damped = LayerFactors(
        factors.input_factor,
        g + 0.3**0.5 * g.trace() / C_OUT * torch.eye(C_OUT, dtype=torch.float64),
        POSITIONS,
        factors.input_mean,
    )
    torch.testing.assert_close(score("kron-obs", conv, factors, 0.3), score("kron-obs", conv, damped))
    for method in ("kron-obd", "c-obd"):
        assert torch.equal(score(method, conv, factors, 0.3), score(method, conv, factors))


@hypothesis.settings(max_examples=15)
@hypothesis.given(
    seed=st.integers(0, 100),
    gone=st.lists(st.integers(0, C_OUT - 1), min_size=1, max_size=C_OUT - 1, unique=True),
    offset=st.booleans(),
)
def test_the_kron_obs_update_attains_the_minimum(seed: int, gone: list[int], offset: bool) -> None:
    conv, factors = layer_of(seed, offset)
    before = conv.weight.clone()
    least, change = constrained_minimum(fisher(factors), before, rows(gone))
    update = CHANNEL_METHODS["kron-obs"].update
    assert update is not None
    update(statistics_of(conv, factors))(PLAIN, torch.tensor(gone))
    torch.testing.assert_close((conv.weight - before).flatten(), change, rtol=1e-6, atol=1e-7)
    if len(gone) == 1:
        torch.testing.assert_close(score_of(before, factors)[gone[0]], least, rtol=1e-6, atol=1e-9)


def score_of(weight: Tensor, factors: LayerFactors) -> Tensor:
    conv, _ = layer_of(0, offset=False)
    conv.weight.copy_(weight)
    return score("kron-obs", conv, factors)


@pytest.mark.parametrize("regularization", [0.0, 0.2])
@pytest.mark.parametrize("offset", [False, True])
def test_the_c_obs_update_adds_up_those_of_the_weights(offset: bool, regularization: float) -> None:
    conv, factors = layer_of(3, offset)
    before, form, gone = conv.weight.clone(), fisher(factors, regularization), [3, 1]
    expected = sum(constrained_minimum(form, before, [p])[1] for p in rows(gone))
    update = CHANNEL_METHODS["c-obs"].update
    assert update is not None
    update(statistics_of(conv, factors, regularization))(PLAIN, torch.tensor(gone))
    torch.testing.assert_close((conv.weight - before).flatten(), expected)


@pytest.mark.parametrize("method", ["kron-obs", "c-obs"])
def test_biases_follow_the_weights(method: str) -> None:
    conv, factors = layer_of(4, offset=False, bias=True)
    assert conv.bias is not None
    conv.weight.copy_(conv.bias[:, None, None, None].expand_as(conv.weight))
    # With A diagonal both methods do to every column of the weight what they do to the bias.
    factors = LayerFactors(torch.eye(C_IN, dtype=torch.float64), factors.gradient_factor, POSITIONS, torch.zeros(C_IN))
    before = conv.bias.clone()
    update = CHANNEL_METHODS[method].update
    assert update is not None
    update(statistics_of(conv, factors))(PLAIN, torch.tensor([2]))
    assert float((conv.bias - before).abs().min()) > 1e-6
    torch.testing.assert_close(conv.weight, conv.bias[:, None, None, None].expand_as(conv.weight))
    torch.testing.assert_close(conv.bias[2], torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize("method", [m for m, spec in CHANNEL_METHODS.items() if spec.needs == "factors"])
def test_a_layer_without_gradient_costs_nothing_and_stays(method: str) -> None:
    conv, factors = layer_of(5, offset=False)
    dead = LayerFactors(factors.input_factor * 0, factors.gradient_factor * 0, POSITIONS, factors.input_mean)
    assert torch.equal(score(method, conv, dead, 1e-6), torch.zeros(C_OUT, dtype=torch.float64))
    make = CHANNEL_METHODS[method].update
    if make is not None:
        before = conv.weight.clone()
        make(statistics_of(conv, dead, 1e-6))(PLAIN, torch.tensor([1]))
        assert torch.equal(conv.weight, before)


def test_scores_are_in_nats_with_measured_factors() -> None:
    """One linear layer, one output: the curvature of each weight is E[g^2] E[x^2] by hand."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 1), nn.Tanh(), nn.Linear(1, 3)).double().eval()
    images, labels = torch.randn(64, 3, 2, 2, dtype=torch.float64), torch.randint(3, (64,))
    names = {"a": net[1]}
    factors = collect_factors(net, names, [Batch(images, labels)], fisher_type="exp", moving_average=0.0, seed=0)
    group = group_of(("a", "producer", [[0]]), channels=1)
    found = CHANNEL_METHODS["c-obd"].score(group, Statistics(names, factors=factors))
    bias, weight = net[1].get_parameter("bias"), net[1].get_parameter("weight").detach()
    g = [torch.autograd.grad(F.cross_entropy(net(images[n : n + 1]), labels[n : n + 1]), bias)[0] for n in range(64)]
    expected = 0.5 * (weight**2 * (images.flatten(1) ** 2).mean(0)).sum() * (torch.stack(g) ** 2).mean()
    torch.testing.assert_close(found[0], expected)


class Mixed(nn.Module):
    """One convolution with a BatchNorm behind it, one without, and one that no gradient reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.b = nn.Conv2d(4, 5, 3)
        self.idle = nn.Conv2d(3, 2, 1)
        self.classifier = nn.Linear(5, 3, bias=False)
        self.gates = nn.ParameterDict({"bn": torch.ones(4), "b": torch.ones(5)}).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = (self.bn(self.a(x)) * self.gates["bn"][:, None, None]).relu()
        x = (self.b(x) * self.gates["b"][:, None, None]).relu()
        return self.classifier(x.mean((2, 3)))


def test_taylor_is_the_squared_derivative_in_explicit_gates() -> None:
    torch.manual_seed(0)
    net = Mixed()
    net(torch.randn(8, 3, 8, 8))
    nn.init.uniform_(net.bn.weight, 0.5, 1.5)
    nn.init.normal_(net.bn.bias)
    net = net.eval().double()
    net.b.requires_grad_(False)
    batches = [(torch.randn(n, 3, 8, 8, dtype=torch.float64), torch.randint(3, (n,))) for n in (6, 3, 5)]
    modules = {name: net.get_submodule(name) for name in ("bn", "b", "idle")}
    found = collect_taylor(net, modules, [Batch(*pair) for pair in batches])
    assert all(p.grad is None for p in net.parameters())
    assert [n for n, p in net.named_parameters() if not p.requires_grad] == [
        "b.weight",
        "b.bias",
        "gates.b",
        "gates.bn",
    ]
    assert torch.equal(found["idle"], torch.zeros(2, dtype=torch.float64))
    net.requires_grad_(False)
    for name in ("bn", "b"):
        gate = net.gates[name].requires_grad_(True)
        squares = [torch.autograd.grad(F.cross_entropy(net(x), y), gate)[0] ** 2 for x, y in batches]
        torch.testing.assert_close(found[name], torch.stack(squares).mean(0))


def test_taylor_refuses_what_it_cannot_do() -> None:
    net = Mixed().eval()
    batch = [Batch(torch.randn(2, 3, 8, 8), torch.tensor([0, 1]))]
    with pytest.raises(ValueError, match="eval mode"):
        collect_taylor(net, {"bn": nn.BatchNorm2d(4)}, batch)
    with pytest.raises(ValueError, match="weights"):
        collect_taylor(net, {"bn": nn.BatchNorm2d(4, affine=False).eval()}, batch)
    with pytest.raises(ValueError, match="batch"):
        collect_taylor(net, {"bn": net.bn}, [])


def test_the_gates_of_a_group_are_its_batchnorms_if_it_has_any() -> None:
    every = [[i] for i in range(4)]
    group = group_of(("a", "producer", every), ("bn", "norm", every))
    assert [m.layer for m in taylor_members(group)] == ["bn"]
    assert [m.layer for m in taylor_members(PLAIN)] == ["a"]
    statistics = Statistics({}, taylor={"bn": torch.arange(4.0), "a": torch.full((4,), 9.0)})
    assert CHANNEL_METHODS["taylor"].score(group, statistics).tolist() == [0, 1, 2, 3]
    assert CHANNEL_METHODS["taylor"].score(PLAIN, statistics).tolist() == [9, 9, 9, 9]


def two_layers() -> tuple[ChannelGroup, Statistics]:
    """Two producers, the second in other places, and two BatchNorms, one of which has a channel twice."""
    a, b = nn.Linear(2, 3, bias=False), nn.Linear(1, 4, bias=False)
    with torch.no_grad():
        a.weight.copy_(torch.tensor([[1.0, -2.0], [0.0, 3.0], [-4.0, 2.0]]))  # norms 3, 3, 6
        b.weight.copy_(torch.tensor([[2.0], [-1.0], [0.0], [1.0]]))  # norms 2, 1, 0, 1
        norms = {"n": nn.BatchNorm2d(3), "m": nn.BatchNorm2d(6)}
        norms["n"].weight.copy_(torch.tensor([0.5, -1.5, 2.0]))
        norms["m"].weight.copy_(torch.tensor([1.0, -10.0, 100.0, 0.0, 0.1, -0.01]))
    group = group_of(
        ("a", "producer", [[0], [1], [2]]),
        ("b", "producer", [[3], [2], [0]]),
        ("n", "norm", [[0], [1], [2]]),
        ("m", "norm", [[0, 3], [1, 4], [2, 5]]),
        channels=3,
    )
    return group, Statistics({"a": a, "b": b, **norms})


def test_magnitudes_by_hand() -> None:
    group, statistics = two_layers()

    def scores(method: str) -> list[float]:
        return CHANNEL_METHODS[method].score(group, statistics).tolist()

    assert scores("l1") == pytest.approx([3 / 4 + 1 / 1, 3 / 4 + 0, 6 / 4 + 2 / 1])
    assert scores("uniform") == pytest.approx([2 / 3, 1 / 3, 3 / 3])
    assert scores("bn-scale") == pytest.approx([0.5 + 1 + 0, 1.5 + 10 + 0.1, 2 + 100 + 0.01])
    assert scores("rni") == scores("slimming") == scores("bn-scale")
    assert scores("ucs") == pytest.approx([1 / 3, 2 / 3, 3 / 3])


def test_ranks_of_scales_in_any_order() -> None:
    norm = nn.BatchNorm2d(C_OUT)
    norm.weight.data = torch.tensor([0.2, -0.4, 0.3, 0.1])
    every = [[i] for i in range(C_OUT)]
    found = CHANNEL_METHODS["ucs"].score(group_of(("bn", "norm", every)), Statistics({"bn": norm}))
    assert found.tolist() == [2 / 4, 4 / 4, 3 / 4, 1 / 4]


def with_consumer() -> tuple[ChannelGroup, Statistics]:
    """The same with a consumer that reads each channel twice."""
    group, statistics = two_layers()
    reader = nn.Linear(6, 2, bias=False)
    with torch.no_grad():
        reader.weight.copy_(torch.tensor([[1.0, 0, 2, 0, 0, 1], [0, 3, 0, 1, 0, 0]]))  # squares 1 + 1, 9 + 0, 4 + 1
    member = Member("r", "consumer", torch.tensor([[0, 3], [1, 4], [2, 5]]))
    return dataclasses.replace(group, members=(*group.members, member)), Statistics({**statistics.layers, "r": reader})


def test_products_and_sums_of_squares_by_hand() -> None:
    group, statistics = with_consumer()
    # Squared: a's filters 5, 9, 20 and b's 1, 0, 4; the scales.
    filters, columns = torch.tensor([6.0, 9, 24]), torch.tensor([2.0, 9, 5])
    scales = torch.tensor([0.25 + 1 + 0, 2.25 + 100 + 0.01, 4 + 10000 + 0.0001])

    def found(method: str) -> Tensor:
        return CHANNEL_METHODS[method].score(group, statistics).float()

    product, total = filters * columns * scales, filters + columns + scales
    torch.testing.assert_close(found("lookahead"), product / product.mean())
    torch.testing.assert_close(found("group-l2"), total / total.mean())


@pytest.mark.parametrize("method", ["lookahead", "group-l2"])
def test_what_has_no_scale_counts_by_its_weights(method: str) -> None:
    group = group_of(("a", "producer", [[i] for i in range(3)]), ("n", "norm", [[i] for i in range(3)]), channels=3)
    plain = nn.Linear(1, 3, bias=False)
    plain.weight.data = torch.tensor([[1.0], [-2.0], [3.0]])
    found = CHANNEL_METHODS[method].score(group, Statistics({"a": plain, "n": nn.BatchNorm2d(3, affine=False)}))
    torch.testing.assert_close(found, torch.tensor([1.0, 4, 9], dtype=torch.float64) * 3 / 14)


def test_depthwise_kernels_are_weights_of_the_channel_too() -> None:
    plain, deep = nn.Linear(1, 2, bias=False), nn.Conv2d(2, 2, 1, groups=2, bias=False)
    plain.weight.data, deep.weight.data = torch.tensor([[1.0], [2.0]]), torch.tensor([3.0, -1.0])[:, None, None, None]
    group = group_of(("a", "producer", [[0], [1]]), ("d", "depthwise", [[0], [1]]), channels=2)
    statistics = Statistics({"a": plain, "d": deep})
    for method, expected in (("group-l2", [10.0, 5.0]), ("lookahead", [9.0, 4.0])):
        found = CHANNEL_METHODS[method].score(group, statistics)
        torch.testing.assert_close(found, torch.tensor(expected).double() * 2 / sum(expected))


def test_lookahead_is_what_the_joint_map_of_two_layers_loses() -> None:
    """Frobenius norms of the materialised product of the two maps, with and without the channel."""
    torch.manual_seed(0)
    first, norm, second = nn.Linear(3, 4, bias=False), nn.BatchNorm2d(4), nn.Linear(4, 5, bias=False)
    nn.init.uniform_(norm.weight, -1, 1)
    every = [[i] for i in range(4)]
    group = group_of(("a", "producer", every), ("n", "norm", every), ("r", "consumer", every))
    maps = [second.weight[:, [i]] @ (norm.weight[i, None, None] * first.weight[[i]]) for i in range(4)]
    lost = torch.stack([part.square().sum() for part in maps]).detach().double()
    found = CHANNEL_METHODS["lookahead"].score(group, Statistics({"a": first, "n": norm, "r": second}))
    torch.testing.assert_close(found, lost / lost.mean(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("depth", [8, 14])
def test_group_l2_is_that_of_torch_pruning(depth: int) -> None:
    """In a network of residual stages, without depthwise convolutions, which torch-pruning leaves out."""
    net = random_net(depth).backbone.train(False).requires_grad_(True)
    example = random_images(1)
    groups = channel_groups(net, lambda model, images: model(images), example, exclude=(), coupled=True)
    graph = tp.DependencyGraph().build_dependency(net, example, verbose=False)
    oracle = tp.importance.GroupMagnitudeImportance(p=2)
    modules = dict(net.named_modules())
    assert any(group.coupled for group in groups) and any(not group.coupled for group in groups)
    for group in groups:
        layer = modules[group.name]
        pruner = graph.get_pruner_of_module(layer)
        assert pruner is not None
        expected = oracle(graph.get_pruning_group(layer, pruner.prune_out_channels, list(range(group.channels))))
        found = CHANNEL_METHODS["group-l2"].score(group, Statistics(modules))
        torch.testing.assert_close(found.float(), expected)


def test_bn_scale_needs_a_scale() -> None:
    with pytest.raises(UserError, match=r"no BatchNorm scales the channels of a, .*; add it to --exclude"):
        CHANNEL_METHODS["bn-scale"].score(PLAIN, Statistics({}))
    every = [[i] for i in range(C_OUT)]
    group = group_of(("a", "producer", every), ("bn", "norm", every))
    with pytest.raises(UserError, match="no BatchNorm scales"):
        CHANNEL_METHODS["bn-scale"].score(group, Statistics({"bn": nn.BatchNorm2d(4, affine=False)}))


def test_random_scores_depend_on_seed_and_name_alone() -> None:
    def draw(seed: int, name: str) -> Tensor:
        group = ChannelGroup(name, 50, False, ())
        return CHANNEL_METHODS["random"].score(group, Statistics({}, seed=seed))

    assert torch.equal(draw(1, "x"), draw(1, "x"))
    assert len({tuple(draw(seed, name).tolist()) for seed in (1, 2) for name in ("x", "y")}) == 4


def test_scores_of_a_dead_layer_are_finite() -> None:
    conv = nn.Conv2d(3, 4, 1)
    nn.init.zeros_(conv.weight)
    for method in ("l1", "lookahead", "group-l2"):
        found = CHANNEL_METHODS[method].score(PLAIN, Statistics({"a": conv}))
        assert torch.equal(found, torch.zeros(4, dtype=torch.float64))


def test_scores_leave_the_network_as_it_is() -> None:
    conv, factors = layer_of(7, offset=True)
    before = copy.deepcopy(conv.state_dict())
    for method in ("kron-obd", "kron-obs", "c-obd", "c-obs", "l1", "uniform", "lookahead", "group-l2"):
        found = CHANNEL_METHODS[method].score(PLAIN, statistics_of(conv, factors, 1e-3))
        assert found.dtype == torch.float64 and found.shape == (C_OUT,) and bool((found > 0).all())
    assert all(torch.equal(tensor, before[name]) for name, tensor in conv.state_dict().items())


def test_taylor_of_a_gated_network() -> None:
    """Blocks that do not run collect nothing."""
    net = random_net(8)
    net.gate.score.bias.data.fill_(-1e4)  # nothing but block 0 runs
    modules = {f"backbone.blocks.{i}.bn1": net.get_submodule(f"backbone.blocks.{i}.bn1") for i in range(3)}
    batch = (random_images(4), torch.tensor([0, 1, 2, 3]))
    found = collect_taylor(lambda images: net(images, mode="executed").logits, modules, [Batch(*batch)])
    assert [bool((v > 0).any()) for v in found.values()] == [True, False, False]
