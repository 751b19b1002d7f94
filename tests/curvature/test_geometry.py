from __future__ import annotations

import pytest
from torch import nn

from hybridprune.curvature.geometry import Geometry, geometry_of


def test_reads_are_padded_coordinates_by_offset_and_output_position():
    geometry = Geometry((2, 1), (3, 1), (1, 0), (2, 1))
    assert geometry.reads(0, length=6) == [[0, 3], [2, 5]]
    assert geometry.reads(1, length=3) == [[0, 1, 2]]


def test_geometry_of_reads_symmetric_named_paddings():
    same = nn.Conv2d(2, 2, (3, 7), padding="same", dilation=(2, 1))
    assert geometry_of(same) == Geometry((3, 7), (1, 1), (2, 3), (2, 1))
    assert geometry_of(nn.Conv2d(2, 2, 3, padding="valid")).padding == (0, 0)
    assert geometry_of(nn.Linear(2, 3)) == Geometry(1, 1, 0, 1)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 2, 3, groups=2),
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(2, 2, 2, padding="same"),
        nn.BatchNorm2d(2),
    ],
    ids=["grouped", "reflecting", "asymmetric", "batch norm"],
)
def test_geometry_of_refuses_layers_without_a_rule(layer: nn.Module):
    with pytest.raises(ValueError, match="no curvature rule"):
        geometry_of(layer)
