"""The engines that ONNX models are run in, or converted for: what each needs, reads and writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from hybridprune.deployment import onnx, openvino
from hybridprune.deployment.agreement import Run
from hybridprune.deployment.quantise import quantised
from hybridprune.deployment.quantise_openvino import need_nncf, quantised_openvino


@dataclass(frozen=True)
class ExportedEngine:
    """An engine for exported models on the CPU."""

    title: str
    package: str
    suffixes: tuple[str, ...]
    """Of the files of a model; the first one is what a user names."""
    need: Callable[[str], None]
    """UserError, naming the flag, if a package is missing."""
    need_int8: Callable[[str], None]
    files: Callable[[bytes, str], tuple[bytes, ...]]
    """The contents of its files, made of an ONNX model; and metadata (JSON), which the ONNX model has already."""
    opened: Callable[..., Run]
    """Takes the contents of its files, or of an ``.onnx`` file, and ``threads``; by default as many as torch has."""
    quantised: Callable[[bytes, Iterable[Tensor]], tuple[bytes, ...]]
    """The contents of its files in int8, made of an ONNX model and of batches of training images."""


ENGINES = {
    "onnx": ExportedEngine(
        "ONNX Runtime",
        "onnxruntime",
        (".onnx",),
        onnx.need_onnx,
        onnx.need_onnx,
        lambda content, metadata: (content,),
        onnx.opened,
        lambda content, calibration: (quantised(content, calibration),),
    ),
    "openvino": ExportedEngine(
        "OpenVINO",
        "openvino",
        (".xml", ".bin"),
        openvino.need_openvino,
        need_nncf,
        openvino.converted,
        openvino.opened,
        quantised_openvino,
    ),
}
"""The engines by the flag of export and the form of bench."""
