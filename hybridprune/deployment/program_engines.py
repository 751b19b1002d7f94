"""The engines that ``torch.export`` programs are compiled for: what each needs, writes and reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from hybridprune.deployment import aotinductor, executorch
from hybridprune.deployment.agreement import Run


@dataclass(frozen=True)
class ProgramEngine:
    """An engine with a file format of its own, made of a program."""

    title: str
    suffix: str
    one_image: bool
    """Whether its files take one image at a time, and no other number."""
    need: Callable[[str], None]
    """UserError, naming the flag, if a package is missing."""
    content: Callable[[torch.export.ExportedProgram, str], bytes]
    """The content of its file, made of a program and metadata (JSON)."""
    opened: Callable[[bytes], Run]


PROGRAM_ENGINES = {
    "aotinductor": ProgramEngine(
        "AOTInductor", ".pt2", False, lambda flag: None, aotinductor.package_bytes, aotinductor.opened
    ),
    "executorch": ProgramEngine(
        "ExecuTorch", ".pte", True, executorch.need_executorch, executorch.pte_bytes, executorch.opened
    ),
}
"""The engines by the flag of export."""
