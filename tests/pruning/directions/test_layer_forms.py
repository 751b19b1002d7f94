"""The formulas for cost against a real layer, counted by torch's own counter; the cheapest form by brute force."""

from __future__ import annotations

import math
from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hybridprune.measure.cost import module_macs
from hybridprune.models.factored import DENSE, FactoredConv2d, Ranks
from hybridprune.pruning.directions.layer_forms import ConvShape

SIZE = 9


@pytest.mark.parametrize("ranks", [DENSE, Ranks(3, None), Ranks(None, 4), Ranks(3, 4), Ranks(9, 9, separable=True)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 1), (1, 2)])
def test_cost_is_that_of_the_real_layer(kernel: int, stride: int, bias: bool, ranks: Ranks) -> None:
    conv = nn.Conv2d(5, 7, kernel, stride, kernel // 2, bias=bias)
    layer = conv if ranks == DENSE else FactoredConv2d(conv, *ranks)
    macs = module_macs(nn.Sequential(OrderedDict(stem=nn.Conv2d(3, 5, 1), layer=layer)), SIZE)
    out_positions = math.ceil(SIZE / stride) ** 2
    shape = ConvShape(5, 7, kernel**2, out_positions if kernel == 1 else SIZE**2, out_positions, bias)
    assert shape.macs(ranks) == sum(value for name, value in macs.items() if name.startswith("layer"))
    assert shape.params(ranks) == sum(parameter.numel() for parameter in layer.parameters())


@st.composite
def shapes_and_ranks(draw: st.DrawFn) -> tuple[ConvShape, Ranks]:
    channels = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    positions = draw(st.sampled_from([(16, 16), (64, 16), (16, 64)]))
    shape = ConvShape(*channels, draw(st.sampled_from([1, 9])), *positions, draw(st.booleans()))
    rank_in, rank_out = (draw(st.none() | st.integers(1, side)) for side in channels)
    return shape, Ranks(rank_in, rank_out)


@given(shapes_and_ranks(), st.integers(0, 4000))
def test_cheapest_is_the_best_of_all_allowed_forms(case: tuple[ConvShape, Ranks], slack: int) -> None:
    shape, kept = case
    every = [kept, Ranks(kept.rank_in, None), Ranks(None, kept.rank_out), DENSE]
    for most in (None, min(shape.params(ranks) for ranks in every) + slack):
        allowed = [ranks for ranks in every if most is None or shape.params(ranks) <= most]
        found = shape.cheapest(kept, most)
        assert found is not None and found in allowed
        assert shape.macs(found) == min(shape.macs(ranks) for ranks in allowed)
        equal = [ranks for ranks in allowed if shape.macs(ranks) == shape.macs(found)]
        assert found.count(None) == max(ranks.count(None) for ranks in equal)


def test_where_no_form_is_small_enough_there_is_none() -> None:
    shape = ConvShape(4, 6, 9, 16, 16, False)
    assert shape.cheapest(Ranks(3, 5), 10) is None and shape.cheapest(Ranks(3, 5), shape.params(DENSE)) is not None


def test_another_price_another_form() -> None:
    shape = ConvShape(16, 16, 9, 16, 16, False)
    assert shape.cheapest(Ranks(4, 4), None) == Ranks(4, 4)
    price = {DENSE: 3.0, Ranks(4, None): 1.0, Ranks(None, 4): 2.0, Ranks(4, 4): 2.0}
    assert shape.cheapest(Ranks(4, 4), None, price.__getitem__) == Ranks(4, None)


def test_equally_cheap_forms_are_chosen_between_by_a_fixed_rule() -> None:
    shape = ConvShape(64, 64, 9, 16, 16, False)
    assert (
        shape.macs(Ranks(57, None)) == shape.macs(Ranks(None, 57)) < min(shape.macs(Ranks(57, 57)), shape.macs(DENSE))
    )
    assert shape.cheapest(Ranks(57, 57), None) == Ranks(None, 57)
