"""The deployed network as an OpenVINO model, which is two files, and OpenVINO, which runs it on the CPU.

Needs packages of the extra ``deploy``: onnx and onnxscript, whose models OpenVINO reads, and openvino.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hybridprune.deployment.agreement import Run
from hybridprune.deployment.program import INPUT
from hybridprune.errors import need_packages

PACKAGES = ("onnx", "onnxscript", "openvino")
TELEMETRY = "openvino_telemetry"


def need_openvino(flag: str) -> None:
    """UserError, naming ``flag``, if a package is missing."""
    need_packages(flag, "hybridprune[deploy]", PACKAGES)


def converted(content: bytes, metadata: str = "") -> tuple[bytes, bytes]:
    """The contents of an ``.xml`` and of its ``.bin`` file: an ONNX model in OpenVINO's intermediate representation.

    Weights stay in fp32, and the batch size is as free as in the ONNX model. ``metadata`` (JSON) is kept in the runtime
    information of the model under ``hybridprune``.
    """
    model = model_of(content)
    model.set_rt_info(metadata, ["hybridprune"])
    return serialised(model)


def model_of(content: bytes) -> Any:
    """The ONNX model ``content`` as an ``openvino.Model``.

    What is constant is computed. ``Core.read_model`` leaves that undone: each bias is then given its shape in each
    call, and after a quantisation OpenVINO 2026.4 loses some of them.
    """
    with without_telemetry():
        return openvino().convert_model(io.BytesIO(content))


def serialised(model: Any) -> tuple[bytes, bytes]:
    """The contents of the ``.xml`` and the ``.bin`` file of an ``openvino.Model``."""
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "model.xml", Path(folder) / "model.bin"
        openvino().serialize(model, *files)
        xml, weights = (file.read_bytes() for file in files)
    return xml, weights


def opened(model: bytes, weights: bytes | None = None, *, threads: int | None = None) -> Run:
    """OpenVINO on the CPU, running an ONNX model, or an ``.xml`` with the ``weights`` of its ``.bin``.

    It computes in fp32, with as many threads as torch has by default.
    """
    how = {
        "PERFORMANCE_HINT": "LATENCY",
        # Processors that have bf16 would compute in it without being asked.
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(),
        # Threads bound to a core would stay there while another engine's take their turn.
        "ENABLE_CPU_PINNING": False,
    }
    read = model_of(model) if weights is None else core().read_model(model, weights)
    compiled = core().compile_model(read, "CPU", how)
    return partial(_run, compiled.create_infer_request())


def _run(request: Any, images: np.ndarray) -> list[np.ndarray]:
    return list(request.infer({INPUT: images}, share_inputs=True).values())


@cache
def core() -> Any:
    """The ``openvino.Core`` of this process."""
    return openvino().Core()


def openvino() -> Any:
    """The package openvino."""
    with without_telemetry():
        import openvino as found
    return found


@contextlib.contextmanager
def without_telemetry() -> Iterator[None]:
    """Inside, OpenVINO and NNCF are imported without what would send usage data to their makers.

    By default they send it from their import on, which nobody asked for who exports a network. Where the package that
    does it is imported already, whoever did it has decided.
    """
    if TELEMETRY in sys.modules:
        yield
        return
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]  # an import of it fails, and they go without
    try:
        yield
    finally:
        del sys.modules[TELEMETRY]
