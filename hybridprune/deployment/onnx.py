"""The deployed network as an ONNX model, and whether ONNX Runtime computes the same with it.

Needs the packages of the extra ``deploy``: onnx, onnxscript and onnxruntime.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hybridprune.deployment.cascade import RoutedModule
from hybridprune.deployment.program import DECISIONS, INPUT, export_program
from hybridprune.errors import need_packages
from hybridprune.progress_bar import Steps, bar

LOGITS = "logits"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
CHANNEL_BLOCK = 8
"""Of depthwise convolutions of other multiples of channels ONNX Runtime computes each channel by itself."""
TOLERANCE = 1e-3
"""How far ONNX Runtime's logits may be off, relative to the largest of an image."""


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
        program = export_program(module, example_input, single=single, forced=forced, multiple=CHANNEL_BLOCK)
        shown.update()
        with _quiet():
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
    return converted.model_proto.SerializeToString()


@dataclass(frozen=True)
class Agreement:
    """ONNX Runtime beside the deployed network on the same images."""

    images: int
    difference: float
    """Largest difference of a logit relative to the largest logit of its image, where the decisions are the same."""
    classes: int
    """Images of another class."""
    flips: int
    """Decisions that differ: by rounding, where a gate's logit is next to 0."""

    @property
    def good(self) -> bool:
        """Whether it is the same network."""
        return self.difference <= TOLERANCE and self.classes <= self.flips <= self.images / 100

    def __str__(self) -> str:
        return (
            f"logits differ by {self.difference:.1e} (relative, largest image), {self.classes} images of another class,"
            f" {self.flips} other decisions"
        )


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


@torch.no_grad()
def compare(content: bytes, module: nn.Module, batches: Iterable[Tensor]) -> Agreement:
    """Run ONNX Runtime and ``module`` on the same batches of images ``[B, 3, H, W]``, both on the CPU.

    There, because GPUs may round to TF32, which is as far off as what is looked for.
    """
    runtime, module = session(content), copy.deepcopy(module).cpu()
    seen, worst, classes, flips = 0, 0.0, 0, 0
    for images in Steps(batches, "ONNX Runtime"):
        found = [torch.from_numpy(np.asarray(each)) for each in runtime.run(None, {INPUT: images.cpu().numpy()})]
        same = torch.ones(len(images), dtype=torch.bool)
        if isinstance(module, RoutedModule):
            routed = module.route(images.cpu())
            logits, differ = routed.logits, found[1] != routed.decisions
            same, flips = ~differ.any(1), flips + int(differ.sum())
        else:
            logits = module(images.cpu())
        difference = (found[0] - logits).abs().amax(1) / logits.abs().amax(1)
        worst = max(worst, float(difference[same].max())) if same.any() else worst
        classes += int((found[0].argmax(1) != logits.argmax(1)).sum())
        seen += len(images)
    return Agreement(seen, worst, classes, flips)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's talk, which is about its own future."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        names = ("torch.onnx", "onnxscript", "onnx_ir")
        levels = {name: logging.getLogger(name).level for name in names}
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
