"""The deployed network compiled ahead of time by AOTInductor, in a package that runs without the Python of a model.

Making one needs a C++ compiler, running it does not. It is for processors as the one that it was made on.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hybridprune.deployment.agreement import Run
from hybridprune.deployment.quiet import quiet


def package_bytes(program: torch.export.ExportedProgram, metadata: str = "") -> bytes:
    """The content of a ``.pt2`` file with the compiled ``program``; ``metadata`` is kept in it under ``hybridprune``.

    Whatever the compiler raises, or the lack of one.
    """
    about = {"aot_inductor.metadata": {"hybridprune": metadata}}
    with tempfile.TemporaryDirectory() as folder, quiet("torch.utils.cpp_extension"):
        path = str(Path(folder) / "model.pt2")
        torch._inductor.aoti_compile_and_package(program, package_path=path, inductor_configs=about)
        return Path(path).read_bytes()


def opened(content: bytes) -> Run:
    """A package, ready to run. Its code is native: load none that you would not run."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt2"
        path.write_bytes(content)
        return partial(_run, torch._inductor.aoti_load_package(str(path)))


@torch.no_grad()
def _run(package: Any, images: np.ndarray) -> list[np.ndarray]:
    found = package(torch.from_numpy(images))
    return [each.numpy() for each in (found if isinstance(found, list | tuple) else [found])]
