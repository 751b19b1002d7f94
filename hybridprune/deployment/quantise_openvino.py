"""int8 after pruning in OpenVINO: NNCF's post-training quantisation, calibrated on training images.

Needs packages of the extra ``deploy``: those of `hybridprune.deployment.openvino`, and nncf.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from hybridprune.deployment.openvino import PACKAGES, model_of, openvino, serialised, without_telemetry
from hybridprune.deployment.program import INPUT
from hybridprune.deployment.quiet import quiet
from hybridprune.errors import need_packages


def need_nncf(flag: str) -> None:
    """UserError, naming ``flag``, if a package is missing."""
    need_packages(flag, "hybridprune[deploy]", (*PACKAGES, "nncf"))


def quantised_openvino(content: bytes, calibration: Iterable[Tensor]) -> tuple[bytes, bytes]:
    """The contents of an ``.xml`` and a ``.bin`` file: the ONNX model ``content`` with weights and activations in int8.

    ``calibration``: batches of normalised images ``[B, 3, H, W]``, of the training set. All of them are used. A gated
    block, or member of a cascade, is calibrated on the images that choose it and on the first one of each batch: NNCF
    can't take the mean of none.
    """
    batches = [{INPUT: images.contiguous().cpu().numpy()} for images in calibration]
    model = model_of(content)
    _with_the_first_image(model)
    with without_telemetry():
        import nncf
        from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix

        with quiet("nncf", "torch.utils.cpp_extension"):  # the latter where a compiler for CUDA is, but no GPU
            quantised: Any = nncf.quantize(
                model,
                nncf.Dataset(batches),
                # Weights symmetric, activations not: those behind no ReLU have both signs in unequal parts.
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(batches),
                # Seven bits of weight: with eight, sums of two products saturate on processors with AVX2 but no VNNI.
                advanced_parameters=AdvancedQuantizationParameters(overflow_fix=OverflowFix.ENABLE),
            )
    _as_the_gates_say(quantised)
    return serialised(quantised)


FIRST = "/first image too"
"""What the names end in of the nodes that send an image where no gate sends it."""


def _with_the_first_image(model: Any) -> None:
    """Let each gather (``NonZero`` of who goes ``[B]``) have at least the first image of the batch, in place."""
    ops, kinds = openvino().opset13, openvino().Type
    for node in _gathers(model):
        going = node.input_value(0)
        zero = ops.constant(0, kinds.i64)
        batch = ops.gather(ops.shape_of(going, "i64"), zero, zero)
        first = ops.equal(ops.range(zero, batch, ops.constant(1, kinds.i64), "i64"), zero)
        sent = ops.logical_or(going, first)
        sent.set_friendly_name(f"{node.get_friendly_name()}{FIRST}")
        node.input(0).replace_source_output(sent.output(0))
    model.validate_nodes_and_infer_types()


def _as_the_gates_say(model: Any) -> None:
    """Undo `_with_the_first_image`."""
    for node in _gathers(model):
        sent = node.input_value(0).get_node()
        assert sent.get_friendly_name().endswith(FIRST)
        node.input(0).replace_source_output(sent.input_value(0))
    model.validate_nodes_and_infer_types()


def _gathers(model: Any) -> list[Any]:
    return [node for node in model.get_ops() if node.get_type_name() == "NonZero"]
