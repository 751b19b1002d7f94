"""Effective sparsity against searches for paths in explicit graphs, plain counts, and autograd at positive weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hybridprune.measure.effective import count_weights, effective_sparsity, live_weights
from hybridprune.models.edits import FactorEdit, apply_edits
from hybridprune.models.spec import NetworkSpec
from tests.networks_and_images import random_images, randomise

SIZE = 6
EXAMPLE = random_images(1, SIZE)
Channel = tuple[str, int]


class Small(nn.Module):
    """A branch beside a shortcut, a concatenation, a depthwise and a grouped convolution, squeeze-excite, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.branch, self.bn_branch = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.side = nn.Conv2d(3, 2, 1)
        self.depthwise = nn.Conv2d(6, 6, 3, groups=6)
        self.grouped, self.bn_grouped = nn.Conv2d(6, 4, 1, groups=2), nn.BatchNorm2d(4)
        self.squeeze, self.excite = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)
        self.classifier = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.stem(x)).relu()
        y = (y + self.bn_branch(self.branch(y))).relu_()
        y = torch.cat([y, self.side(x)], 1)
        y = self.bn_grouped(self.grouped(self.depthwise(y))).relu()
        y = nn.functional.max_pool2d(y, 2)
        y = y * self.excite(self.squeeze(nn.functional.adaptive_avg_pool2d(y, 1)).relu()).sigmoid()
        return self.classifier(y.mean((2, 3)))


def small_edges(net: Small, scaled: Tensor) -> Iterable[tuple[Channel, Channel, str, int]]:
    """From which channel to which, by which layer (or none), and how many weights that are not 0 make the edge.

    ``scaled [4]``: what the excitation scales that is not 0.
    """
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            groups = getattr(layer, "groups", 1)
            outputs, inputs = layer.weight.shape[0], layer.weight.shape[1]
            for o in range(outputs):
                for i in range(inputs):
                    entries = int((layer.weight[o, i] != 0).sum())
                    if entries:
                        yield (f"{name}.in", o // (outputs // groups) * inputs + i), (name, o), name, entries
        elif isinstance(layer, nn.BatchNorm2d):
            yield from (((f"{name}.in", c), (name, c), "", 0) for c in range(4) if float(layer.weight[c]) != 0)

    def wires(source: str, target: str, channels: int, shift: int = 0) -> Iterable[tuple[Channel, Channel, str, int]]:
        return (((source, c), (target, c + shift), "", 0) for c in range(channels))

    yield from wires("image", "stem.in", 3)
    yield from wires("image", "side.in", 3)
    for source, target in [("stem", "bn.in"), ("bn", "sum"), ("bn", "branch.in"), ("branch", "bn_branch.in")]:
        yield from wires(source, target, 4)
    yield from wires("bn_branch", "sum", 4)
    yield from wires("sum", "depthwise.in", 4)
    yield from wires("side", "depthwise.in", 2, shift=4)
    yield from wires("depthwise", "grouped.in", 6)
    yield from wires("grouped", "bn_grouped.in", 4)
    yield from wires("bn_grouped", "squeeze.in", 4)
    yield from wires("squeeze", "excite.in", 2)
    yield from wires("bn_grouped", "product", 4)
    for c in range(4):
        if bool(scaled[c]):
            yield ("excite", c), ("product", c), "", 0
    yield from wires("product", "classifier.in", 4)


def lives_by_search(net: Small) -> dict[str, int]:
    """Live weights of each layer, by a search for paths from the images and from the outputs."""
    start = [("image", c) for c in range(3)]
    edges = list(small_edges(net, torch.zeros(4, dtype=torch.bool)))
    variable = search(start, lambda node: [b for a, b, _, _ in edges if a == node])
    # The excitation scales constants too, which a ReLU may have made 0 for good.
    seen: list[Tensor] = []
    hook = net.bn_grouped.register_forward_hook(lambda module, args, y: seen.append(y.relu().amax((0, 2, 3))))
    net(random_images(2, SIZE))
    hook.remove()
    scaled = torch.tensor([("bn_grouped", c) in variable or float(seen[0][c]) > 0 for c in range(4)])
    edges = list(small_edges(net, scaled))
    reached = search(start, lambda node: [b for a, b, _, _ in edges if a == node])
    needed = search([("classifier", c) for c in range(3)], lambda node: [a for a, b, _, _ in edges if b == node])
    live = {name: 0 for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    for source, target, layer, entries in edges:
        if layer and source in reached and target in needed:
            live[layer] += entries
    return live


def search(start: list[Channel], following: Callable[[Channel], list[Channel]]) -> set[Channel]:
    found, left = set(start), list(start)
    while left:
        new = [node for node in following(left.pop()) if node not in found]
        found.update(new)
        left += new
    return found


@torch.no_grad()
def thinned(seed: int, share: float) -> Small:
    """Kernels and scales set to 0 at random, and single entries of the rest; shifts of either sign, some 0."""
    torch.manual_seed(seed)
    net = Small()
    randomise(net)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            kernels = torch.rand(*module.weight.shape[:2]) >= share
            module.weight *= kernels.view(*kernels.shape, *(1,) * (module.weight.ndim - 2))
            module.weight *= torch.rand(module.weight.shape) >= 0.3
        elif isinstance(module, nn.BatchNorm2d):
            module.weight.mul_(torch.rand(4) >= share)
            module.bias.mul_(torch.rand(4) >= 0.3)
    return net.requires_grad_(False)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), share=st.sampled_from([0.0, 0.2, 0.4, 0.6, 0.8]))
def test_what_lives_is_on_a_path(seed: int, share: float) -> None:
    net = thinned(seed, share)
    assert live_weights(net, EXAMPLE) == lives_by_search(net)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31), share=st.floats(0, 0.7))
def test_what_lives_has_a_gradient_at_positive_weights(seed: int, share: float) -> None:
    """In a chain of layers without constants: d output / d weight is what flows in times what flows on."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 5, 3, bias=False), nn.ReLU(), nn.Conv2d(5, 4, 3, groups=1, bias=False), nn.ReLU6(),
        nn.ConvTranspose2d(4, 6, 2, groups=2, bias=False), nn.Hardswish(), nn.Flatten(), nn.Linear(54, 7, bias=False),
        nn.GELU(), nn.Linear(7, 2, bias=False),
    ).double()  # fmt: skip
    for parameter in net.parameters():
        # Whole kernels: a part of one may leave a path at some positions only, which are not told apart.
        keep = torch.rand(parameter.shape[:2]) >= share
        parameter.data.abs_().mul_(0.1).mul_(keep.view(*keep.shape, *(1,) * (parameter.ndim - 2)))
    outputs = net(torch.rand(1, 3, SIZE, SIZE, dtype=torch.float64))
    outputs.sum().backward()
    live = live_weights(net, EXAMPLE.double())
    for name, module in net.named_modules():
        if name in live:
            weight = module.get_parameter("weight")
            assert weight.grad is not None
            flows = weight.grad.flatten(2).any(2) if weight.ndim > 2 else weight.grad != 0
            kernels = weight.flatten(2) if weight.ndim > 2 else weight[..., None]
            assert live[name] == int(((kernels != 0) & flows[..., None]).sum()), name


def test_negative_weights_and_shifts_carry_as_positive_ones_do() -> None:
    net = thinned(3, 0.3)
    expected = live_weights(net, EXAMPLE)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data.neg_()
    assert live_weights(net, EXAMPLE) == expected
    assert 0 < sum(expected.values()) < count_weights(net)


def tiny_transformer(num_classes: int) -> nn.Module:
    return torchvision.models.VisionTransformer(32, 16, 2, 2, 8, 16, num_classes=num_classes)


@pytest.mark.parametrize(
    "build",
    [
        torchvision.models.resnet18,
        torchvision.models.mobilenet_v3_small,
        torchvision.models.shufflenet_v2_x0_5,
        torchvision.models.squeezenet1_1,
        tiny_transformer,
    ],
)
def test_without_zeros_all_of_a_torchvision_network_lives(build: Callable[..., nn.Module]) -> None:
    with torch.device("meta"):
        net = build(num_classes=5)
    net.to_empty(device="cpu")
    for tensor in [*net.parameters(), *net.buffers()]:
        tensor.data.fill_(0.5)
    # Large enough for no kernel to see nothing but padding in one of its corners.
    live = live_weights(net, torch.zeros(1, 3, *(32, 32) if build is tiny_transformer else (96, 96)))
    assert live == {
        layer: module.weight.numel()
        for layer, module in net.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }
    assert sum(live.values()) == count_weights(net)


@pytest.mark.parametrize("network", ["resnet", "preresnet", "pyramidnet"])
def test_no_depth_is_too_deep(network: str) -> None:
    """The product of all layers' weights is far out of the range of floating-point numbers either way."""
    net = NetworkSpec(network, 56, 2, 5).build().backbone
    assert isinstance(net, nn.Module)
    for scale in (1e-30, 1e30):
        for parameter in net.parameters():
            nn.init.constant_(parameter, scale)
        assert sum(live_weights(net, random_images(1, 8)).values()) == count_weights(net)


def test_factored_layers_count_as_their_convolutions() -> None:
    net = NetworkSpec("resnet", 8, 4, 5).build().backbone
    assert isinstance(net, nn.Module)
    randomise(net)
    apply_edits(net, (FactorEdit("blocks.1.conv1", 3, 2), FactorEdit("classifier", 6, None)))
    for parameter in net.parameters():
        nn.init.uniform_(parameter, 0.1, 1)
    live = live_weights(net, random_images(1, 8))
    assert (live["blocks.1.conv1.rotate_in"], live["blocks.1.conv1.core"], live["blocks.1.conv1.rotate_out"]) == (
        4 * 3,
        3 * 2 * 9,
        2 * 8,
    )
    assert (live["classifier.rotate_in"], live["classifier.core"]) == (16 * 6, 6 * 5)
    assert sum(live.values()) == count_weights(net)
    net.get_submodule("blocks.1.conv1.core").get_parameter("weight").data[:, 1] = 0
    fewer = live_weights(net, random_images(1, 8))
    assert fewer["blocks.1.conv1.rotate_in"] == 4 * 2 and fewer["blocks.1.conv1.core"] == 2 * 2 * 9


def test_a_dead_channel_takes_its_filter_and_its_readers_along() -> None:
    norm = nn.BatchNorm2d(4)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Conv2d(4, 5, 1), nn.Flatten())
    norm.weight.data[2] = 0
    norm.bias.data[2] = 7  # a constant: it reaches the output, but carries nothing of the input
    assert live_weights(net, EXAMPLE) == {"0": 3 * 27, "3": 3 * 5}
    assert effective_sparsity(net, EXAMPLE, dense_weights=200) == pytest.approx(1 - 96 / 200)


def test_a_layer_that_runs_twice_lives_by_either_run() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x.mean((2, 3))))[:, :1]

    net = Twice()
    # The second run reads 0 <- 1 only, the first 1 <- 2; nothing leads from 0 or to 2.
    net.layer.weight.data = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    assert live_weights(net, EXAMPLE) == {"layer": 2}


class Nothing(nn.Module):
    """A mask that takes all."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight * 0


def test_masks_of_torch_are_seen_and_nothing_is_changed() -> None:
    net = Small().train()
    parametrize.register_parametrization(net.branch, "weight", Nothing())
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    live = live_weights(net, EXAMPLE)
    assert live["branch"] == 0 and live["stem"] == net.stem.weight.numel()
    assert net.training and "forward" not in vars(net.stem)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_nothing_lives_where_no_path_is_left() -> None:
    net = Small()
    nn.init.zeros_(net.classifier.weight)
    assert set(live_weights(net, EXAMPLE).values()) == {0}
    net = Small()
    for layer in (net.stem, net.side):
        nn.init.zeros_(layer.weight)
    assert set(live_weights(net, EXAMPLE).values()) == {0}
