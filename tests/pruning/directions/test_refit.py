"""Least-squares refit of cores: against numpy, on a network that lost nothing, and on one that did."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hybridprune.batch import Batch
from hybridprune.models.edits import FactorEdit, apply_edits
from hybridprune.models.factored import FactoredConv2d, FactoredLinear, Ranks
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.pruning.directions import refit as refitting
from hybridprune.pruning.directions.layers import PrunableLayer, prunable_layers
from hybridprune.pruning.directions.refit import METRIC_DAMPING, RIDGE, ROWS_PER_INPUT, refit
from hybridprune.pruning.directions.surgery import apply_ranks
from tests.networks_and_images import random_images, random_net
from tests.pruning.random_curvature import layers_of, random_decompositions, random_factor, source


def run(model: nn.Module, images: Tensor) -> object:
    return model(images)


def run_blocks(model: nn.Module, images: Tensor) -> object:
    assert isinstance(model, GatedNetwork)
    return model.backbone(images)


def inputs_of(*batches: Tensor) -> list[Batch]:
    """Batches without labels, which nobody reads."""
    return [Batch(images, None) for images in batches]


def columns(layer: nn.Module, x: Tensor) -> np.ndarray:
    """What a layer multiplies at every position, ``[M, D]``."""
    if isinstance(layer, nn.Conv2d):
        assert not isinstance(layer.padding, str)
        found = nn.functional.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        return found.transpose(1, 2).flatten(0, 1).numpy()
    return x.flatten(0, -2).numpy()


def outputs(y: Tensor) -> np.ndarray:
    """A layer's output at every position, ``[M, C_out]``."""
    return (y.flatten(2).transpose(1, 2).flatten(0, 1) if y.ndim == 4 else y.flatten(0, -2)).numpy()


LAYERS = [
    (nn.Conv2d(4, 5, 3, 1, 1, bias=True), (4, 6, 5)),
    (nn.Conv2d(4, 5, 3, 2, 1, bias=True), (4, 7, 6)),
    (nn.Conv2d(4, 5, 1, 2, bias=True), (4, 7, 6)),
    (nn.Linear(6, 5), (6,)),
    (nn.Linear(6, 5), (3, 6)),
]


@torch.no_grad()
@pytest.mark.parametrize(("layer", "shape"), LAYERS[:2])
def test_the_last_part_of_a_separable_layer_is_the_least_squares_solution(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    reference = nn.Sequential(copy.deepcopy(layer)).double()
    model = copy.deepcopy(reference)
    apply_edits(model, (FactorEdit("0", 7, 7, separable=True),))
    for parameter in model.parameters():
        parameter.normal_()
    cut = model[0]
    assert isinstance(cut, FactoredConv2d)
    before = copy.deepcopy(cut)
    images = torch.randn(40, *shape, dtype=torch.float64)
    # The metric is of no account: nothing behind what is refitted limits the outputs.
    refit(model, reference, ["0"], inputs_of(*images.split(20)), run, {"0": random_factor(5, 8, 1)})
    u = outputs(cut.core(cut.rotate_in(images)))
    y = outputs(reference(images))
    old = before.rotate_out.get_parameter("weight").flatten(1).numpy()
    mean_u, mean_y = u.mean(0), y.mean(0)
    moment = (u - mean_u).T @ (u - mean_u) / len(u)
    ridge = RIDGE * np.trace(moment) / len(moment)
    right = (y - mean_y).T @ (u - mean_u) / len(u) + ridge * old
    expected = np.linalg.solve(moment + ridge * np.eye(len(moment)), right.T).T
    np.testing.assert_allclose(cut.rotate_out.get_parameter("weight").flatten(1).numpy(), expected, atol=1e-8)
    assert cut.bias is not None
    np.testing.assert_allclose(cut.bias.numpy(), mean_y - expected @ mean_u, atol=1e-8)
    for side in ("core", "rotate_in"):
        assert torch.equal(
            cut.get_submodule(side).get_parameter("weight"), before.get_submodule(side).get_parameter("weight")
        )


@torch.no_grad()
@pytest.mark.parametrize("metric", [False, True])
@pytest.mark.parametrize("ranks", [Ranks(3, 2), Ranks(3, None), Ranks(None, 2)])
@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_core_and_bias_are_the_least_squares_solution(
    layer: nn.Module, shape: tuple[int, ...], ranks: Ranks, metric: bool
) -> None:
    torch.manual_seed(0)
    reference = nn.Sequential(copy.deepcopy(layer)).double()
    model = copy.deepcopy(reference)
    apply_edits(model, (FactorEdit("0", *ranks),))
    for parameter in model.parameters():
        parameter.normal_()
    cut = model[0]
    assert isinstance(cut, FactoredConv2d | FactoredLinear)
    before = cut.core.weight.clone()
    batches = [torch.randn(40, *shape, dtype=torch.float64) for _ in range(3)]
    g = random_factor(5, 7, 1)
    refit(model, reference, ["0"], inputs_of(*batches), run, {"0": g} if metric else {})

    stride = getattr(cut, "subsample", (1, 1))
    inside = [cut.rotate_in(x[:, :, :: stride[0], :: stride[1]] if x.ndim == 4 else x) for x in batches]
    u = np.concatenate([columns(cut.core, x) for x in inside])
    y = np.concatenate([outputs(reference(x)) for x in batches])
    u_mean, y_mean = u.mean(0), y.mean(0)
    u, y = u - u_mean, y - y_mean
    start = before.flatten(1).numpy()
    # The ridge as further rows that ask for the core as it was.
    ridge = np.sqrt(RIDGE * (u**2).sum(0).mean())
    rows = np.concatenate([u, ridge * np.eye(u.shape[1])])
    if ranks.rank_out is None:
        expected = np.linalg.lstsq(rows, np.concatenate([y, ridge * start.T]), rcond=None)[0].T
        bias = y_mean - expected @ u_mean
    else:
        turn = cut.rotate_out.get_parameter("weight").flatten(1).numpy()
        damped = g + METRIC_DAMPING * g.trace() / 5 * torch.eye(5, dtype=g.dtype)
        root = np.linalg.cholesky(damped.numpy()).T if metric else np.eye(5)
        coordinates = np.linalg.lstsq(root @ turn, root @ y.T, rcond=None)[0].T
        expected = np.linalg.lstsq(rows, np.concatenate([coordinates, ridge * start.T]), rcond=None)[0].T
        bias = y_mean - turn @ expected @ u_mean
    np.testing.assert_allclose(cut.core.weight.flatten(1).numpy(), expected, rtol=1e-7, atol=1e-8)
    last = cut.core if ranks.rank_out is None else cut.rotate_out
    np.testing.assert_allclose(last.get_parameter("bias").numpy(), bias, rtol=1e-7, atol=1e-8)


@torch.no_grad()
def settle(net: GatedNetwork, images: Tensor) -> None:
    """Give every BatchNorm the statistics of these images, layer by layer."""
    for module in net.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            seen: list[Tensor] = []
            handle = module.register_forward_hook(lambda m, args, y, seen=seen: seen.append(args[0]))
            net.backbone(images)
            handle.remove()
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.copy_(seen[0].mean((0, 2, 3)))
            module.running_var.copy_(seen[0].var((0, 2, 3), correction=0))


def cut_network(ratio: float, images: Tensor) -> tuple[GatedNetwork, GatedNetwork, list[PrunableLayer]]:
    """A network, the same with all layers but the first cut to this share of their directions, and these layers."""
    reference = random_net(8, 8)
    settle(reference, images)
    model = copy.deepcopy(reference)
    layers = layers_of(model)[1:]
    ranks = {}
    for layer in layers:
        rank_in, rank_out = (max(1, round(ratio * (rank or 1))) for rank in layer.directions)
        ranks[layer.name] = Ranks(rank_in, rank_out)
    apply_ranks(model, layers, random_decompositions(layers), ranks)
    return reference, model, layers


def test_a_network_that_lost_nothing_stays_as_it_is() -> None:
    images = random_images(480)
    reference, model, layers = cut_network(1.0, images)
    expected = reference.backbone(images).detach()
    refit(model, reference, [x.name for x in layers], inputs_of(images), run_blocks, {})
    error = (model.backbone(images) - expected).detach().abs().max() / expected.abs().max()
    assert float(error) < 1e-4


def keep(seen: list[Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    """A hook that keeps the output."""
    return lambda module, args, y: seen.append(y)


@torch.no_grad()
def test_every_cut_layer_comes_nearer_to_the_uncut_one() -> None:
    images = random_images(480)
    reference, model, layers = cut_network(0.6, images)
    names = [x.name for x in layers]

    def distances(net: GatedNetwork) -> dict[str, float]:
        """Of each layer's centred output, when all layers in front of it are as they are."""
        settle(net, images)
        seen: dict[str, list[Tensor]] = {name: [] for name in names}
        for each in (reference, net):
            handles = [each.get_submodule(name).register_forward_hook(keep(seen[name])) for name in names]
            each.backbone(images)
            for handle in handles:
                handle.remove()
        found = {}
        for name, (right, ours) in seen.items():
            dims = tuple(i for i in range(right.ndim) if i != 1)
            right, ours = (y - y.mean(dims, keepdim=True) for y in (right, ours))
            found[name] = float((ours - right).square().sum() / right.square().sum())
        return found

    before = distances(copy.deepcopy(model))
    refit(model, reference, names, inputs_of(images), run_blocks, {})
    after = distances(model)
    assert all(after[name] < before[name] for name in names), (before, after)
    assert after[names[-1]] < 0.8 * before[names[-1]]


def state_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def modes_of(net: nn.Module) -> list[tuple[bool, bool | None]]:
    return [(m.training, getattr(m, "track_running_stats", None)) for m in net.modules()]


@pytest.mark.parametrize("training", [False, True])
def test_nothing_but_the_cores_and_biases_behind_them_changes(training: bool) -> None:
    images = random_images(480)
    reference, model, layers = cut_network(0.6, images)
    for net in (reference, model):
        net.train(training)
        net.backbone.bn.eval()
    before, uncut = state_of(model), state_of(reference)
    modes = [modes_of(net) for net in (reference, model)]
    names = [x.name for x in layers]
    refit(model, reference, names, inputs_of(*images.split(240)), run_blocks, {})
    cores = {f"{name}.core.weight" for name in names}
    changed = {name for name, value in state_of(model).items() if not torch.equal(value, before[name])}
    assert changed == cores | {"backbone.classifier.rotate_out.bias"}
    assert all(torch.equal(value, uncut[name]) for name, value in reference.state_dict().items())
    assert modes == [modes_of(net) for net in (reference, model)]
    assert not any(m._forward_hooks for net in (reference, model) for m in net.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


class Dropping(nn.Sequential):
    """Random in training mode."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 7), nn.Linear(7, 4))


def test_the_same_images_give_the_same_cores_whatever_the_mode() -> None:
    torch.manual_seed(0)
    reference = Dropping()
    inputs = torch.randn(64, 6)
    results = []
    for training in (False, True, True):
        uncut, model = (copy.deepcopy(reference).train(training) for _ in range(2))
        layers = prunable_layers(model, lambda model=model: model(inputs[:1]))
        ranks = {layer.name: Ranks(3, 3) for layer in layers}
        apply_ranks(model, layers, random_decompositions(layers), ranks)
        refit(model, uncut, [layer.name for layer in layers], inputs_of(inputs), run, {})
        results.append(state_of(model))
    for other in results[1:]:
        assert all(torch.equal(value, results[0][name]) for name, value in other.items())


@pytest.mark.parametrize("metric", [torch.zeros(5, 5), torch.diag(torch.tensor([1.0, 0, 0, 0, 0]))])
def test_a_metric_that_sees_little_or_nothing_is_no_harm(metric: Tensor) -> None:
    """That of a block that no image uses, or of outputs that no gradient reaches."""
    torch.manual_seed(0)
    reference = nn.Sequential(nn.Linear(6, 5))
    model = copy.deepcopy(reference)
    layers = prunable_layers(model, lambda: model(torch.zeros(1, 6)))
    apply_ranks(model, layers, random_decompositions(layers), {"0": Ranks(4, 3)})
    x = torch.randn(100, 6, generator=source(1))
    refit(model, reference, ["0"], inputs_of(x), run, {"0": metric})
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    expected, found = reference(x).detach(), model(x).detach()
    assert float((found - expected).square().mean()) < 2 * float(expected.var())
    if metric.any():  # what it does see is met by the three directions that there are
        assert float((found - expected)[:, 0].square().mean()) < 0.5 * float(expected[:, 0].var())


def test_inputs_that_are_all_zero_leave_the_core_alone() -> None:
    torch.manual_seed(0)
    reference = nn.Sequential(nn.Linear(6, 5))
    model = copy.deepcopy(reference)
    layers = prunable_layers(model, lambda: model(torch.zeros(1, 6)))
    apply_ranks(model, layers, random_decompositions(layers), {"0": Ranks(4, 3)})
    cut = model[0]
    assert isinstance(cut, FactoredLinear)
    before = cut.core.weight.clone()
    refit(model, reference, ["0"], inputs_of(torch.zeros(100, 6)), run, {})
    assert torch.equal(cut.core.weight, before)


@pytest.mark.parametrize("enough", [False, True])
def test_a_core_is_left_alone_until_it_has_seen_enough(enough: bool) -> None:
    """Positions count, over all batches: here three for each image."""
    torch.manual_seed(0)
    reference = nn.Sequential(nn.Linear(6, 5))
    model = copy.deepcopy(reference)
    layers = prunable_layers(model, lambda: model(torch.zeros(1, 3, 6)))
    apply_ranks(model, layers, random_decompositions(layers), {"0": Ranks(3, None)})
    before = state_of(model)
    batches = inputs_of(torch.randn(ROWS_PER_INPUT - 2, 3, 6), torch.randn(2 if enough else 1, 3, 6))
    refit(model, reference, ["0"], batches, run, {})
    changed = {name for name, value in state_of(model).items() if not torch.equal(value, before[name])}
    assert changed == ({"0.core.weight", "0.core.bias"} if enough else set())


def cut_pair(reference: nn.Module, example: Tensor) -> tuple[nn.Module, list[str]]:
    """The network with all layers cut to three directions a side, and their names."""
    model = copy.deepcopy(reference)
    layers = prunable_layers(model, lambda: model(example))
    apply_ranks(model, layers, random_decompositions(layers), {layer.name: Ranks(3, 3) for layer in layers})
    return model, [layer.name for layer in layers]


def test_a_rest_of_one_image_is_one_image_more() -> None:
    torch.manual_seed(0)
    reference, inputs = Dropping().eval(), torch.randn(64, 6)
    model, names = cut_pair(reference, inputs[:1])
    refit(model, reference, names, inputs_of(*inputs.split(63)), run, {})
    whole, _ = cut_pair(reference, inputs[:1])
    refit(whole, reference, names, inputs_of(inputs), run, {})
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, whole.state_dict()[name], rtol=0.05, atol=0.02)


@torch.no_grad()
def test_unfolded_images_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    reference = nn.Sequential(nn.Conv2d(4, 5, 3, padding=1), nn.Flatten(1, 2), nn.Linear(6, 5)).double()
    images = torch.randn(40, 4, 6, 6, dtype=torch.float64)
    found = []
    for size in (refitting.COLUMN_BYTES, 1):
        monkeypatch.setattr(refitting, "COLUMN_BYTES", size)
        model, names = cut_pair(reference, images[:1])
        refit(model, reference, names, inputs_of(images), run, {})
        found.append(state_of(model))
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name])


class Counted:
    """Batches that tell how often they are gone through."""

    def __init__(self, batches: tuple[Tensor, ...]) -> None:
        self.batches, self.passes = batches, 0

    def __iter__(self) -> Iterator[Batch]:
        self.passes += 1
        yield from (Batch(batch, None) for batch in self.batches)


def test_batches_are_gone_through_once_and_for_an_example() -> None:
    torch.manual_seed(0)
    reference, inputs = Dropping().eval(), torch.randn(64, 6)
    model, names = cut_pair(reference, inputs[:1])
    batches = Counted(inputs.split(8))
    refit(model, reference, names, batches, run, {})
    assert batches.passes == 2


def test_images_too_few_for_statistics_join_the_batch_before_them() -> None:
    batches = inputs_of(*torch.arange(16.0).split([2, 1, 3, 5, 1, 4]))
    assert [batch.tolist() for batch in refitting._mixed(batches)] == [
        [0, 1, 2, 3, 4, 5],
        [6, 7, 8, 9, 10, 11],
        [12, 13, 14, 15],
    ]
