"""Models with zero channels beside their own compute the same, and ONNX Runtime gets whole blocks of them."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from hybridprune.deployment import deploy
from hybridprune.deployment.agreement import compare
from hybridprune.deployment.channel_blocks import fill_blocks
from hybridprune.deployment.onnx import CHANNEL_BLOCK, onnx_bytes, opened, session
from hybridprune.deployment.quantise import quantised
from hybridprune.latency.layer_graph import layer_graph
from hybridprune.models.factored import FactoredConv2d
from tests.deployment.networks import preferring

WIDTH = 13


class Excited(nn.Module):
    """Expanded, depthwise, squeezed and excited, projected, and a sum around: a cut mobile network."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.expand, self.depthwise = nn.Conv2d(6, WIDTH, 1), nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
        self.squeeze, self.excite = nn.Conv2d(WIDTH, 5, 1), nn.Conv2d(5, WIDTH, 1)
        self.project = nn.Conv2d(WIDTH, 6, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = nn.functional.silu(self.expand(x))
        hidden = nn.functional.hardswish(self.depthwise(hidden) + 0.5) + hidden
        scale = nn.functional.relu(self.squeeze(hidden.mean((2, 3), keepdim=True)))
        return x + self.project(hidden * self.excite(scale).sigmoid())


class Elsewhere(Excited):
    """Its depthwise channels are put beside others, so that each has its place."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.depthwise(self.expand(x))], 1)


class Answered(Excited):
    """Its depthwise channels are the answer."""

    def forward(self, x: Tensor) -> Tensor:
        return self.depthwise(self.expand(x)).relu()


class Averaged(Excited):
    """The mean over channels: with more of them it would be another one."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.depthwise(self.expand(x))
        return self.project(hidden * hidden.mean(1, keepdim=True))


class Attended(Excited):
    """One number a pixel weighs all channels: what gives it must not be filled up."""

    def __init__(self) -> None:
        super().__init__()
        self.weigh = nn.Conv2d(6, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.depthwise(self.expand(x)) * self.weigh(x).sigmoid())


class Doubled(Excited):
    """Two filters for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(WIDTH, 2 * WIDTH, 3, padding=1, groups=WIDTH)
        self.project = nn.Conv2d(2 * WIDTH, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.depthwise(self.expand(x)))


class Grouped(Excited):
    """Groups of two channels, each of which reads both."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(6, 2 * WIDTH, 1)
        self.depthwise = nn.Conv2d(2 * WIDTH, 2 * WIDTH, 3, padding=1, groups=WIDTH)
        self.project = nn.Conv2d(2 * WIDTH, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.depthwise(self.expand(x)))


class Twice(Excited):
    """The same convolution expands two inputs."""

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.depthwise(self.expand(x)) + self.expand(x.relu()))


def separable() -> nn.Module:
    torch.manual_seed(0)
    first = FactoredConv2d(nn.Conv2d(6, 7, 3, stride=2, padding=1), 5, 5, separable=True)
    two_sided = FactoredConv2d(nn.Conv2d(7, 6, 3), 3, 5)
    whole = FactoredConv2d(nn.Conv2d(6, 4, 3, padding=1, bias=False), 8, 8, separable=True)
    return nn.Sequential(first, nn.ReLU(), two_sided, whole, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


def groups(content: bytes) -> list[int]:
    """Of the convolutions that have some."""
    attributes = (a for node in onnx.load_from_string(content).graph.node for a in node.attribute)
    return [each.i for each in attributes if each.name == "group" and each.i > 1]


@torch.no_grad()
def test_zero_channels_change_nothing() -> None:
    net, images = Excited().eval(), torch.randn(3, 6, 12, 12)
    content = onnx_bytes(net, images)
    assert groups(content) == [16]
    shapes = [list(x.dims) for x in onnx.load_from_string(content).graph.initializer if len(x.dims) == 4]
    assert sorted(shapes) == [[5, 16, 1, 1], [6, 16, 1, 1], [16, 1, 3, 3], [16, 5, 1, 1], [16, 6, 1, 1]]
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    assert compare(opened(content), net, [images]).difference < 1e-5


@pytest.mark.parametrize("kind", [Elsewhere, Answered, Averaged, Attended, Doubled, Grouped, Twice])
@torch.no_grad()
def test_channels_that_go_elsewhere_stay_as_many(kind: type[nn.Module]) -> None:
    net, images = kind().eval(), torch.randn(3, 6, 12, 12)
    content = onnx_bytes(net, images)
    assert groups(content) == [WIDTH]
    (found,) = opened(content)(images.numpy())
    torch.testing.assert_close(torch.from_numpy(found), net(images), rtol=1e-4, atol=1e-5)


def branching() -> onnx.ModelProto:
    """Expanded and depthwise; one branch reads that, the other expands anew and goes on depthwise in itself."""
    shapes = {"up": (WIDTH, 6, 1, 1), "each": (WIDTH, 1, 3, 3), "down": (6, WIDTH, 1, 1)}
    torch.manual_seed(0)
    weights = [
        numpy_helper.from_array(torch.randn(shape).numpy(), f"{name}{part}")
        for part in range(3)
        for name, shape in shapes.items()
    ]
    conv, value = partial(helper.make_node, "Conv"), helper.make_tensor_value_info
    depthwise = partial(conv, group=WIDTH, pads=[1, 1, 1, 1])
    before = [conv(["images", "up0"], ["wide"]), depthwise(["wide", "each0"], ["outer"])]
    reading = [conv(["outer", "down1"], ["read"])]
    anew = [conv(["images", "up2"], ["wide2"]), depthwise(["wide2", "each2"], ["own"]), conv(["own", "down2"], ["new"])]
    branches = [
        helper.make_graph(nodes, name, [], [value(name, onnx.TensorProto.FLOAT, None)])
        for nodes, name in ((reading, "read"), (anew, "new"))
    ]
    choice = helper.make_node("If", ["first"], ["chosen"], then_branch=branches[0], else_branch=branches[1])
    inputs = [
        value("images", onnx.TensorProto.FLOAT, ["n", 6, 8, 8]),
        value("first", onnx.TensorProto.BOOL, []),
    ]
    outputs = [value(name, onnx.TensorProto.FLOAT, None) for name in ("chosen", "down")]
    nodes = [*before, conv(["outer", "down0"], ["down"]), choice]
    graph = helper.make_graph(nodes, "branching", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_a_branch_is_filled_up_in_itself_and_what_it_reads_is_not() -> None:
    model = branching()
    images = torch.randn(3, 6, 8, 8).numpy()
    asked = [{"images": images, "first": np.array(first)} for first in (True, False)]
    expected = [session(model.SerializeToString()).run(None, each) for each in asked]
    fill_blocks(model, 8)
    sizes = {each.name: each.dims[0] for each in model.graph.initializer if each.name.startswith("each")}
    assert sizes == {"each0": WIDTH, "each1": WIDTH, "each2": 16}
    filled = session(model.SerializeToString())
    for each, wanted in zip(asked, expected, strict=True):
        np.testing.assert_allclose(filled.run(None, each), wanted, rtol=1e-4, atol=1e-4)


def averaging(shape: tuple[int, ...], axes: list[int], keepdims: int) -> onnx.ModelProto:
    """A depthwise convolution whose mean along some axes weighs it, for inputs of this shape."""
    kernel, channels = (3,) * (len(shape) - 2), shape[1]
    torch.manual_seed(0)
    shapes = {"up": (5, channels, *(1 for _ in kernel)), "each": (5, 1, *kernel), "down": (2, 5, *(1 for _ in kernel))}
    weights = [numpy_helper.from_array(torch.randn(each).numpy(), name) for name, each in shapes.items()]
    weights.append(numpy_helper.from_array(np.array(axes), "axes"))
    nodes = [
        helper.make_node("Conv", ["images", "up"], ["wide"]),
        helper.make_node("Conv", ["wide", "each"], ["hidden"], group=5, pads=[1] * 2 * len(kernel)),
        helper.make_node("ReduceMean", ["hidden", "axes"], ["mean"], keepdims=keepdims),
        helper.make_node("Mul", ["hidden", "mean"], ["weighed"]),
        helper.make_node("Conv", ["weighed", "down"], ["logits"]),
    ]
    value, kind = helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    graph = helper.make_graph(nodes, "g", [value("images", kind, shape)], [value("logits", kind, None)], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize(
    ("shape", "axes", "keepdims", "filled"),
    [
        ((2, 3, 4, 4), [2, 3], 1, True),
        ((2, 3, 4, 4), [-1, -2], 1, True),
        ((2, 3, 4, 4), [1, 2], 1, False),
        ((2, 3, 2, 5), [2, 3], 0, False),  # images of the mean's shape: it is no number for each channel
        ((2, 3, 4), [-2, -1], 1, False),  # of sequences that is the mean over channels
    ],
)
def test_a_mean_weighs_channels_only_if_each_has_its_own(
    shape: tuple[int, ...], axes: list[int], keepdims: int, filled: bool
) -> None:
    model, images = averaging(shape, axes, keepdims), torch.randn(shape).numpy()
    expected = session(model.SerializeToString()).run(None, {"images": images})
    fill_blocks(model, 8)
    (size,) = (each.dims[0] for each in model.graph.initializer if each.name == "each")
    assert size == (8 if filled else 5)
    np.testing.assert_allclose(session(model.SerializeToString()).run(None, {"images": images}), expected, rtol=1e-4)


def test_a_weight_that_is_an_output_keeps_its_shape() -> None:
    model = averaging((2, 3, 4, 4), [2, 3], 1)
    model.graph.output.append(helper.make_tensor_value_info("each", onnx.TensorProto.FLOAT, None))
    fill_blocks(model, 8)
    assert all(each.dims[0] <= 5 for each in model.graph.initializer)


@torch.no_grad()
def test_the_components_of_a_layer_are_filled_up_to_any_multiple() -> None:
    layer, x = separable()[0], torch.randn(2, 6, 9, 9)  # type: ignore[index]
    for multiple, components in ((1, 5), (3, 6), (8, 8)):
        content = layer_graph(layer, x, multiple)
        assert groups(content) == [components]
        (found,) = opened(content)(x.numpy())
        torch.testing.assert_close(torch.from_numpy(found), layer(x), rtol=1e-4, atol=1e-5)
    weights = [numpy_helper.to_array(each) for each in onnx.load_from_string(content).graph.initializer]
    assert all(not each[5:].any() for each in weights if each.shape[0] == 8)


@pytest.mark.full
@torch.no_grad()
def test_onnx_models_have_whole_blocks_of_components() -> None:
    images = torch.randn(4, 6, 12, 12)
    deployed = deploy(separable(), images, time=preferring("separable")).module
    before = {name: tuple(value.shape) for name, value in deployed.state_dict().items()}
    content = onnx_bytes(deployed, images)
    assert groups(content) == [CHANNEL_BLOCK, CHANNEL_BLOCK]
    assert compare(opened(content), deployed, [images]).difference < 1e-4
    assert {name: tuple(value.shape) for name, value in deployed.state_dict().items()} == before


@pytest.mark.full
@torch.no_grad()
def test_filters_of_zeros_do_no_harm_in_int8() -> None:
    net, images = Excited().eval(), torch.randn(16, 6, 12, 12)
    content = onnx_bytes(net, images)
    (found,) = opened(quantised(content, [images]))(images.numpy())
    expected = net(images)
    assert (torch.from_numpy(found) - expected).abs().mean() < 0.02 * expected.abs().mean()


def test_a_model_is_filled_up_once() -> None:
    model = onnx.load_from_string(layer_graph(separable()[0], torch.randn(2, 6, 9, 9)))  # type: ignore[index]
    fill_blocks(model, 8)
    once = model.SerializeToString()
    fill_blocks(model, 8)
    assert model.SerializeToString() == once != layer_graph(separable()[0], torch.randn(2, 6, 9, 9))  # type: ignore[index]
