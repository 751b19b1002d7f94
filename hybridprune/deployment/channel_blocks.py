"""Depthwise convolutions of ONNX models, with as many channels as processors compute at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

ELEMENTWISE = frozenset(
    {"Relu", "LeakyRelu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Gelu", "Mul", "Add"}
)
"""Operations on each channel by itself; what they make of zeros is finite."""


@dataclass
class Stretch:
    """The operations between full convolutions that hand the same channels on."""

    channels: int
    writers: dict[str, Any] = field(default_factory=dict)
    """Full convolutions that give the channels, by the name of their weight."""
    depthwise: dict[str, Any] = field(default_factory=dict)
    readers: dict[str, Any] = field(default_factory=dict)
    """Full convolutions that read the channels."""
    values: set[str] = field(default_factory=set)


def fill_blocks(model: Any, multiple: int) -> None:
    """Fill up the channels of the depthwise convolutions of an ``onnx.ModelProto`` to a ``multiple``, in place.

    The added filters are zeros, and so are the weights by which the next full convolution reads what comes of them: the
    model computes the same. Libraries that keep channels in blocks (ONNX Runtime's NCHWc layout: of 8 or 16) have a
    fast depthwise convolution for whole blocks only, and a slow one for all other numbers. Where the channels go
    elsewhere than through operations on each of them to full convolutions, they stay as many as they are.
    """
    graphs = list(_graphs(model.graph))
    weights = {tensor.name: tensor for graph in graphs for tensor in graph.initializer}
    uses = Counter(name for graph in graphs for node in graph.node for name in node.input)
    uses.update(value.name for graph in graphs for value in graph.output)
    changed: set[str] = set()
    for graph in graphs:
        for node in graph.node:
            channels = _depthwise(node, weights)
            if channels % multiple == 0:
                continue
            found = _stretch(graph, node, channels, weights)
            if found is not None and _changeable(found, weights, uses):
                changed |= found.values | _fill(found, -channels % multiple, weights)
    for graph in graphs:  # what is said of their shapes is true no more, and need not be said
        kept = [each for each in graph.value_info if each.name not in changed]
        del graph.value_info[:]
        graph.value_info.extend(kept)


def _graphs(graph: Any) -> Iterator[Any]:
    """The graph, and those in the branches of its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def _stretch(graph: Any, start: Any, channels: int, weights: dict[str, Any]) -> Stretch | None:
    """What hands on the channels of a depthwise convolution; None if they go elsewhere as well."""
    givers = {name: node for node in graph.node for name in node.output}
    outside = {value.name for value in graph.output}
    found, ahead = Stretch(channels), [start.input[0], start.output[0]]
    while ahead:
        value = ahead.pop()
        if value in found.values:
            continue
        found.values.add(value)
        if value not in givers or value in outside or _is_read_inside(graph, value):
            return None
        giver = givers[value]
        for node in (giver, *(each for each in graph.node if value in each.input)):
            handed = _handed(node, channels, weights)
            if handed:
                ahead.extend((*handed, node.output[0]))
                if node.op_type == "Conv":
                    found.depthwise[node.input[1]] = node
            elif node.op_type != "Conv" or _group(node) != 1 or node.input[1] not in weights:
                return None
            elif node is giver:
                found.writers[node.input[1]] = node
            else:
                found.readers[node.input[1]] = node
    return found


def _handed(node: Any, channels: int, weights: dict[str, Any]) -> Sequence[str]:
    """The inputs whose channels a node hands on; none if it does not."""
    if node.op_type in ELEMENTWISE:
        # Numbers that are the same for all channels are none of them.
        return [name for name in node.input if name and not (name in weights and _size(weights[name]) == 1)]
    return node.input[:1] if _is_spatial_mean(node, weights) or _depthwise(node, weights) == channels else []


def _is_spatial_mean(node: Any, weights: dict[str, Any]) -> bool:
    """Whether a node takes the mean over positions, of images, and leaves an image of one pixel."""
    if node.op_type != "ReduceMean" or len(node.input) < 2 or node.input[1] not in weights:
        return node.op_type == "GlobalAveragePool"
    kept = all(attribute.i for attribute in node.attribute if attribute.name == "keepdims")
    return kept and {axis % 4 for axis in _array(weights[node.input[1]]).tolist()} == {2, 3}


def _is_read_inside(graph: Any, value: str) -> bool:
    """Whether a branch of a node of the graph reads the value."""
    inner = (each for each in _graphs(graph) if each is not graph)
    return any(value in node.input for each in inner for node in each.node)


def _changeable(stretch: Stretch, weights: dict[str, Any], uses: Counter[str]) -> bool:
    """Whether all that give the channels give as many, and no weight is of another node."""
    nodes = [*stretch.writers.values(), *stretch.depthwise.values(), *stretch.readers.values()]
    names = {name for node in nodes for name in node.input[1:] if name}
    return all(name in weights and uses[name] == 1 for name in names) and all(
        weights[name].dims[0] == stretch.channels for name in stretch.writers
    )


def _fill(stretch: Stretch, more: int, weights: dict[str, Any]) -> set[str]:
    """Put so many zero channels behind those of the stretch; the names of the weights that have them."""
    giving = [
        name for node in (*stretch.writers.values(), *stretch.depthwise.values()) for name in node.input[1:] if name
    ]
    for name in giving:
        _extend(weights[name], 0, more)
    for name in stretch.readers:
        _extend(weights[name], 1, more)
    for node in stretch.depthwise.values():
        next(each for each in node.attribute if each.name == "group").i += more
    return {*giving, *stretch.readers}


def _extend(tensor: Any, axis: int, more: int) -> None:
    """Zeros behind the entries along an axis."""
    from onnx import numpy_helper

    array = _array(tensor)
    tensor.CopyFrom(
        numpy_helper.from_array(np.pad(array, [(0, more * (axis == i)) for i in range(array.ndim)]), tensor.name)
    )


def _array(tensor: Any) -> np.ndarray:
    from onnx import numpy_helper

    return numpy_helper.to_array(tensor)


def _depthwise(node: Any, weights: dict[str, Any]) -> int:
    """The channels of a depthwise convolution of images, of one filter each; 0 of any other node."""
    if node.op_type != "Conv" or _group(node) == 1 or node.input[1] not in weights:
        return 0
    outputs, inputs, *kernel = weights[node.input[1]].dims
    return outputs if inputs == 1 and len(kernel) == 2 else 0


def _group(node: Any) -> int:
    return next((each.i for each in node.attribute if each.name == "group"), 1)


def _size(tensor: Any) -> int:
    return int(np.prod(tensor.dims))
