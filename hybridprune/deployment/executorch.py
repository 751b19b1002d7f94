"""The deployed network as an ExecuTorch program, for phones: one image at a time, computed by XNNPACK.

Needs the package of the extra ``mobile``: executorch.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from hybridprune.deployment.agreement import Run
from hybridprune.deployment.quiet import quiet
from hybridprune.errors import need_packages

LOGGERS = ("root", "torch.utils._pytree", "executorch")


def need_executorch(flag: str) -> None:
    """UserError, naming ``flag``, if the package is missing."""
    need_packages(flag, "hybridprune[mobile]", ("executorch",))


def pte_bytes(program: torch.export.ExportedProgram, metadata: str = "") -> bytes:
    """The content of a ``.pte`` file; its method ``hybridprune`` gives ``metadata``.

    Convolutions and linear layers are XNNPACK's, in fp32. Whatever the exporter raises on what it cannot express.
    """
    with quiet(*LOGGERS):
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner  # pyright: ignore[reportMissingImports]
        from executorch.exir import to_edge_transform_and_lower  # pyright: ignore[reportMissingImports]

        methods = {"hybridprune": metadata}
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()], constant_methods=methods)
        return bytes(lowered.to_executorch().buffer)


def opened(content: bytes) -> Run:
    """A program in ExecuTorch's Python runtime."""
    with quiet(*LOGGERS):
        from executorch.runtime import Runtime  # pyright: ignore[reportMissingImports]

        program = Runtime.get().load_program(content)
    return partial(_run, program, program.load_method("forward"))


def _run(program: Any, method: Any, images: np.ndarray) -> list[np.ndarray]:
    del program  # what holds the method's memory
    return [each.numpy().copy() for each in method.execute([torch.from_numpy(images)])]
