"""One layer as an ONNX model, written node by node: torch's exporter would take a second for each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from hybridprune.deployment.channel_blocks import fill_blocks
from hybridprune.deployment.program import INPUT
from hybridprune.models.factored import FactoredLayer

OPSET = 18
OUTPUT = "output"


def layer_graph(layer: nn.Module, x: Tensor, multiple: int = 1) -> bytes:
    """The content of an ``.onnx`` file: ``layer``, dense or factored, on input of the shape of ``x``.

    The components of a separable layer are filled up to a ``multiple``, as in a whole network (`fill_blocks`).
    """
    from onnx import TensorProto, helper

    nodes: list[Any] = []
    weights: list[Any] = []
    last = INPUT
    for number, (kind, attributes, values) in enumerate(_operations(layer, x.ndim)):
        names = []
        for place, value in enumerate(values):
            names.append(f"w{number}_{place}")
            array = value.detach().cpu().contiguous().numpy()
            data = TensorProto.INT64 if array.dtype.kind == "i" else TensorProto.FLOAT
            weights.append(helper.make_tensor(names[-1], data, array.shape, array.tobytes(), raw=True))
        nodes.append(helper.make_node(kind, [last, *names], [f"x{number}"], **attributes))
        last = f"x{number}"
    nodes[-1].output[0] = OUTPUT
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, list(x.shape))],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, None)],
        weights,
    )
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    fill_blocks(model, multiple)
    return model.SerializeToString()


def _operations(layer: nn.Module, ndim: int) -> Iterator[tuple[str, dict[str, Any], list[Tensor]]]:
    """Kind, attributes and weights of each operation, in their order."""
    if isinstance(layer, FactoredLayer):
        rows, columns = getattr(layer, "subsample", (1, 1))
        if (rows, columns) != (1, 1):
            yield "Slice", {}, _steps(rows, columns)
        for part in (layer.rotate_in, layer.core, layer.rotate_out):
            if not isinstance(part, nn.Identity):
                yield from _operations(part, ndim)
    elif isinstance(layer, nn.Linear):
        if ndim == 2:
            yield "Gemm", {"transB": 1}, [layer.weight, *([] if layer.bias is None else [layer.bias])]
        else:
            yield "MatMul", {}, [layer.weight.T]
            if layer.bias is not None:
                yield "Add", {}, [layer.bias]
    else:
        conv = cast(nn.Conv2d, layer)
        attributes = {"strides": conv.stride, "dilations": conv.dilation, "group": conv.groups}
        values = [conv.weight, *([] if conv.bias is None else [conv.bias])]
        yield "Conv", {**attributes, **_padding(conv)}, values


def _padding(conv: nn.Conv2d) -> dict[str, Any]:
    """Rows before, columns before, rows behind, columns behind; of ``"same"`` the odd one is behind, as in torch."""
    if isinstance(conv.padding, str):
        sides = zip(conv.dilation, conv.kernel_size, strict=True)
        total = [dilation * (kernel - 1) if conv.padding == "same" else 0 for dilation, kernel in sides]
        before = [each // 2 for each in total]
        return {"pads": [*before, *(whole - each for whole, each in zip(total, before, strict=True))]}
    return {"pads": [*conv.padding, *conv.padding]}


def _steps(rows: int, columns: int) -> list[Tensor]:
    """Starts, ends, axes and steps of a slice."""
    return [torch.tensor(values) for values in ([0, 0], [2**31 - 1] * 2, [2, 3], [rows, columns])]
