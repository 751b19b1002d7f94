"""The package's face: what it exports, and how it is typed."""

from __future__ import annotations

from importlib import resources

import hybridprune
import hybridprune.api.bn_scale
import hybridprune.bn_scale


def test_what_is_exported_is_there_and_told_in_the_docstring() -> None:
    assert len(set(hybridprune.__all__)) == len(hybridprune.__all__)
    for name in hybridprune.__all__:
        assert hasattr(hybridprune, name)
        assert name == "__version__" or f"``{name}``" in (hybridprune.__doc__ or "")


def test_the_notebook_pair_has_a_module_of_its_own() -> None:
    assert hybridprune.bn_scale.train is hybridprune.train is hybridprune.api.bn_scale.train
    assert hybridprune.bn_scale.prune_finetune is hybridprune.prune_finetune


def test_type_checkers_are_told_that_there_are_types() -> None:
    assert resources.files(hybridprune).joinpath("py.typed").is_file()


def test_the_public_surface_is_checked_strictly() -> None:
    package = resources.files(hybridprune)
    files = [package / "__init__.py", package / "bn_scale.py", *(package / "api").iterdir()]
    for file in files:
        if file.name.endswith(".py"):
            assert file.read_text(encoding="utf-8").startswith("# pyright: strict"), file
