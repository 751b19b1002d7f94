"""Batches: none at all is refused."""

from __future__ import annotations

import pytest

from hybridprune.batch import at_least_one


def test_at_least_one() -> None:
    assert list(at_least_one(iter([3, 4]), "a score")) == [3, 4]
    with pytest.raises(ValueError, match="a score needs at least one batch"):
        list(at_least_one([], "a score"))
