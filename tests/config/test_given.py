"""Options remember what their maker gave."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from collections.abc import Callable

import pytest

from hybridprune.config import CutOptions, OptimOptions, given


def test_what_was_given_is_known_even_if_it_is_as_by_default() -> None:
    assert given(CutOptions()) == frozenset()
    assert given(CutOptions(method="fisher-tucker", prune_ratio=None)) == {"method", "prune_ratio"}
    assert given(CutOptions("l1", "auto")) == {"method", "allocation"}
    assert CutOptions(method="fisher-tucker") == CutOptions()
    assert repr(CutOptions(method="fisher-tucker")) == repr(CutOptions())


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, dataclasses.replace, lambda options: pickle.loads(pickle.dumps(options))],
    ids=["copy", "deepcopy", "replace", "pickle"],
)
def test_copies_know_it_too(copied: Callable[[CutOptions], CutOptions]) -> None:
    options = CutOptions(method="fisher-tucker", refit_images=0)
    assert copied(options) == options and given(copied(options)) == {"method", "refit_images"}


def test_changes_are_given_in_addition() -> None:
    assert given(dataclasses.replace(CutOptions(normalize=False), prune_ratio=0.5)) == {"normalize", "prune_ratio"}


def test_signatures_show_the_fields() -> None:
    assert list(inspect.signature(OptimOptions).parameters) == [f.name for f in dataclasses.fields(OptimOptions)]
    with pytest.raises(TypeError, match="metod"):
        CutOptions(metod="l1")  # type: ignore[call-arg]
