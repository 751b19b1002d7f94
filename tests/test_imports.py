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
    """The modules that a fresh interpreter has imported after ``program``."""
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport sys; print(*sys.modules)"],
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


@pytest.mark.full
def test_commands_that_do_not_train_do_not_wait_for_the_compiler(tmp_path: Path) -> None:
    found = imported_by("from hybridprune.commands import bench, evaluate, export, recommend", tmp_path)
    assert "torch" in found and "torch._dynamo" not in found


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
