"""The names that the configuration accepts are those of the methods."""

from hybridprune.config.options import METHOD_NAMES
from hybridprune.pruning.methods import METHODS


def test_every_name_has_a_method_and_every_method_a_name() -> None:
    assert tuple(METHODS) == METHOD_NAMES
