"""The deployed network as an ONNX model, and ONNX Runtime, which runs it.

Needs the packages of the extra ``deploy``: onnx, onnxscript and onnxruntime.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hybridprune.deployment.agreement import Run
from hybridprune.deployment.cascade import RoutedModule
from hybridprune.deployment.channel_blocks import fill_blocks
from hybridprune.deployment.program import DECISIONS, INPUT, export_program
from hybridprune.deployment.quiet import quiet
from hybridprune.errors import need_packages
from hybridprune.progress_bar import bar

LOGITS = "logits"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
CHANNEL_BLOCK = 8
"""Of depthwise convolutions of other multiples of channels ONNX Runtime computes each channel by itself."""


def need_onnx(flag: str) -> None:
    """UserError, naming ``flag``, if a package is missing."""
    need_packages(flag, "hybridprune[deploy]", PACKAGES)


def onnx_bytes(
    module: nn.Module, example_input: Tensor, *, single: bool = False, forced: bool = False, metadata: str = ""
) -> bytes:
    """The content of an ``.onnx`` file; arguments as those of `export_program`.

    The inputs are ``images`` and, ``forced``, ``decisions``; the outputs are ``logits`` and, with gates, ``decisions``.
    ``metadata`` (JSON) is kept in the model's metadata under ``hybridprune``.
    """
    gated = isinstance(module, RoutedModule)
    inputs = [INPUT, DECISIONS] if forced else [INPUT]
    with bar(description="ONNX export", total=2) as shown:
        program = export_program(module, example_input, single=single, forced=forced)
        shown.update()
        with quiet("torch.onnx", "onnxscript", "onnx_ir"):  # the exporter talks about its own future
            converted = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                input_names=inputs,
                output_names=[LOGITS, "executed"] if gated else [LOGITS],
                dynamic_shapes=None if single else {name: {0: "batch"} for name in inputs},
            )
    assert converted is not None
    converted.model.metadata_props["hybridprune"] = metadata
    model = converted.model_proto
    fill_blocks(model, CHANNEL_BLOCK)
    return model.SerializeToString()


def session(content: bytes, threads: int | None = None, profile: str | None = None) -> Any:
    """An ``onnxruntime.InferenceSession`` on the CPU; ``profile`` is what the file that it leaves begins with."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or torch.get_num_threads()
    # Threads that wait for the next call by spinning would slow down whatever runs beside this session.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def opened(content: bytes, *, threads: int | None = None) -> Run:
    """ONNX Runtime on the CPU, running the model ``content``; with as many threads as torch has by default."""
    return partial(_run, session(content, threads))


def _run(runtime: Any, images: np.ndarray) -> list[np.ndarray]:
    return runtime.run(None, {INPUT: images})
