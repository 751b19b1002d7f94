"""int8 after pruning: ONNX Runtime's static quantisation, calibrated on training images."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from hybridprune.deployment.program import INPUT


def quantised(content: bytes, calibration: Iterable[Tensor]) -> bytes:
    """The ONNX model ``content`` with weights (per channel) and activations in int8, as QDQ nodes.

    ``calibration``: batches of normalised images ``[B, 3, H, W]``, of the training set. Layers whose operators ONNX
    Runtime has no int8 kernel for stay in fp32.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches: Iterator[Tensor] = iter(calibration)

        def get_next(self) -> dict[str, Any] | None:  # type: ignore[override]
            batch = next(self._batches, None)
            return None if batch is None else {INPUT: batch.cpu().numpy()}

    with tempfile.TemporaryDirectory() as folder:
        source, prepared, target = (Path(folder) / name for name in ("source.onnx", "prepared.onnx", "int8.onnx"))
        source.write_bytes(content)
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            target,
            Reader(),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            # Seven bits of weight: with eight, sums of two products saturate on processors with AVX2 but no VNNI.
            reduce_range=True,
        )
        return target.read_bytes()
