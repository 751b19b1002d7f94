"""``import hybridprune`` brings nothing along that was not asked for."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hybridprune
from tests import ROOT

OPTIONAL = {
    "executorch", "gymnasium", "matplotlib", "nncf", "onnx", "onnxruntime", "onnxscript", "openvino", "ray", "scipy",
    "sklearn", "tensorboardX", "torch_pruning", "torchvision",
}  # fmt: skip


def imported_by(program: str, cwd: Path) -> set[str]:
    """The packages that a fresh interpreter has imported after ``program``."""
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport sys; print(*{{name.split('.')[0] for name in sys.modules}})"],
        cwd=cwd, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(done.stdout.split())


def test_importing_the_package_imports_neither_torch_nor_what_only_some_commands_need(tmp_path: Path) -> None:
    assert not imported_by("import hybridprune, hybridprune.commands.door", tmp_path) & {"torch", "numpy", *OPTIONAL}


@pytest.mark.full
def test_the_whole_api_imports_no_optional_package(tmp_path: Path) -> None:
    names = ", ".join(name for name in hybridprune.__all__ if name != "__version__")
    found = imported_by(f"from hybridprune import {names}", tmp_path)
    assert "torch" in found and not found & OPTIONAL


def test_what_is_listed_is_what_type_checkers_see() -> None:
    tree = ast.parse((ROOT / "hybridprune/__init__.py").read_text())
    seen = {
        node.module: tuple(alias.name for alias in node.names)
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
    }
    assert seen == hybridprune._HOMES
    listed = {name for names in seen.values() for name in names} | {"__version__"}
    assert listed == set(hybridprune.__all__) <= set(dir(hybridprune))
    assert all(getattr(hybridprune, name) is not None for name in listed)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'prume'"):
        _ = hybridprune.prume  # type: ignore[attr-defined]
