"""Factored layers against the explicit layer by ``W = Q_out . core . Q_in^T``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from hybridprune.models.edits import FactorEdit, apply_edits, factor_edits
from hybridprune.models.factored import DENSE, FactoredConv2d, FactoredLinear, Ranks, form, form_name, is_pointwise
from hybridprune.models.factored import factored as factored_form
from hybridprune.models.factored_weights import build_layer, dense_form, fill, outline
from hybridprune.models.replace import replace_module


@dataclass(frozen=True)
class Case:
    """A convolution and its factors in float64; the rotations are None where the form has none."""

    conv: nn.Conv2d
    q_out: Tensor | None
    core: Tensor
    q_in: Tensor | None


@st.composite
def cases(draw: st.DrawFn) -> Case:
    c_in, c_out = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    rank_in, rank_out = draw(
        st.tuples(st.none() | st.integers(1, 6), st.none() | st.integers(1, 6)).filter(lambda r: r != (None, None))
    )
    height, width = draw(st.sampled_from([(1, 1), (3, 3), (3, 1)]))
    stride, bias = draw(st.sampled_from([1, 2])), draw(st.booleans())
    dilation = draw(st.sampled_from([1, 2]))
    torch.manual_seed(draw(st.integers(0, 99)))
    padding = (dilation * (height // 2), dilation * (width // 2))
    conv = nn.Conv2d(c_in, c_out, (height, width), stride, padding, dilation, bias=bias, dtype=torch.float64)
    q_out = None if rank_out is None else torch.randn(c_out, rank_out, dtype=torch.float64)
    q_in = None if rank_in is None else torch.randn(rank_in, c_in, dtype=torch.float64)
    core = torch.randn(rank_out or c_out, rank_in or c_in, height, width, dtype=torch.float64)
    return Case(conv, q_out, core, q_in)


def factored(case: Case) -> FactoredConv2d:
    """The case's layer, with the convolution's bias."""
    ranks = [None if case.q_in is None else len(case.q_in), None if case.q_out is None else case.q_out.shape[1]]
    layer = FactoredConv2d(case.conv, ranks[0], ranks[1])
    fill(layer, case.q_out, case.core, case.q_in)
    if case.conv.bias is not None:
        last = layer.core if case.q_out is None else layer.rotate_out
        assert isinstance(last, nn.Conv2d) and last.bias is not None
        last.bias.data.copy_(case.conv.bias.data)
    return layer


@given(cases())
def test_equals_the_convolution_by_the_product_of_its_factors(case: Case) -> None:
    weight = case.core
    if case.q_out is not None:
        weight = torch.einsum("or,rikl->oikl", case.q_out, weight)
    if case.q_in is not None:
        weight = torch.einsum("orkl,ri->oikl", weight, case.q_in)
    assert weight.shape == case.conv.weight.shape
    x = torch.randn(2, case.conv.in_channels, 7, 6, dtype=torch.float64)
    conv = case.conv
    assert isinstance(conv.padding, tuple)
    expected = F.conv2d(x, weight, conv.bias, conv.stride, conv.padding, conv.dilation)  # type: ignore[arg-type]
    torch.testing.assert_close(factored(case)(x), expected, rtol=1e-10, atol=1e-10)


@given(cases())
def test_has_the_parameters_of_its_form_and_one_bias(case: Case) -> None:
    expected = case.core.numel() + sum(q.numel() for q in (case.q_out, case.q_in) if q is not None)
    expected += 0 if case.conv.bias is None else case.conv.out_channels
    assert sum(p.numel() for p in factored(case).parameters()) == expected


def test_strided_1x1_subsamples_before_the_first_rotation() -> None:
    layer = FactoredConv2d(nn.Conv2d(4, 6, 1, 2), 2, None)
    seen: list[torch.Size] = []
    layer.rotate_in.register_forward_hook(lambda module, args, output: seen.append(args[0].shape))
    assert layer(torch.rand(1, 4, 7, 8)).shape == (1, 6, 4, 4)
    assert seen == [(1, 4, 4, 4)]


def test_strided_3x3_rotates_the_output_at_the_small_size() -> None:
    layer = FactoredConv2d(nn.Conv2d(4, 6, 3, 2, 1), 2, 3)
    seen: list[torch.Size] = []
    assert isinstance(layer.rotate_out, nn.Conv2d)
    layer.rotate_out.register_forward_hook(lambda module, args, output: seen.append(args[0].shape))
    layer(torch.rand(1, 4, 8, 8))
    assert seen == [(1, 3, 4, 4)]


def test_fill_refuses_factors_of_another_form_or_shape() -> None:
    layer = FactoredConv2d(nn.Conv2d(4, 6, 3), 2, None)
    core = torch.zeros(6, 2, 3, 3)
    with pytest.raises(AssertionError):
        fill(layer, torch.zeros(6, 6), core, torch.zeros(2, 4))
    with pytest.raises(AssertionError):
        fill(layer, None, core, torch.zeros(4, 2))
    with pytest.raises(AssertionError):
        fill(layer, None, core, None)


def test_edits_replace_the_named_layers_only() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 5, 1), nn.ReLU()))
    untouched = model[0]
    apply_edits(model, (FactorEdit("1.0", 2, 3),))
    assert model[0] is untouched
    layer = model.get_submodule("1.0")
    assert isinstance(layer, FactoredConv2d) and layer.core.weight.shape == (3, 2, 1, 1)
    for name in ("1.1", "2"):
        with pytest.raises(ValueError, match=rf"'{name}'.*no convolution or linear layer"):
            apply_edits(model, (FactorEdit(name, 2, 3),))


@given(st.integers(1, 6), st.integers(1, 6), st.booleans(), st.data())
def test_a_factored_linear_layer_is_the_product_of_its_factors(
    c_in: int, c_out: int, bias: bool, data: st.DataObject
) -> None:
    rank_in, rank_out = data.draw(
        st.tuples(st.none() | st.integers(1, 7), st.none() | st.integers(1, 7)).filter(lambda r: r != (None, None))
    )
    torch.manual_seed(0)
    linear = nn.Linear(c_in, c_out, bias=bias, dtype=torch.float64)
    layer = FactoredLinear(linear, rank_in, rank_out)
    assert form(layer) == Ranks(rank_in, rank_out)
    q_out = None if rank_out is None else torch.randn(c_out, rank_out, dtype=torch.float64)
    q_in = None if rank_in is None else torch.randn(rank_in, c_in, dtype=torch.float64)
    core = torch.randn(rank_out or c_out, rank_in or c_in, 1, 1, dtype=torch.float64)
    fill(layer, q_out, core, q_in)
    weight = core[:, :, 0, 0]
    weight = weight if q_out is None else q_out @ weight
    weight = weight if q_in is None else weight @ q_in
    last = layer.core if q_out is None else layer.rotate_out
    biases = [m.bias for m in layer.modules() if isinstance(m, nn.Linear) and m.bias is not None]
    assert len(biases) == bias
    if bias:
        assert isinstance(last, nn.Linear) and last.bias is biases[0]
        last.bias.data.normal_()
    for shape in ((3,), (2, 3), (2, 4, 3)):
        x = torch.randn(*shape[:-1], c_in, dtype=torch.float64)
        expected = F.linear(x, weight, biases[0] if bias else None)
        torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)


@given(cases(), st.booleans(), st.booleans())
def test_a_built_layer_is_the_same_map_in_every_form(case: Case, keep_in: bool, keep_out: bool) -> None:
    layer = factored(case)
    rank_in, rank_out, _ = form(layer)
    assume((rank_in or 0) <= case.conv.in_channels and (rank_out or 0) <= case.conv.out_channels)
    ranks = Ranks(rank_in if keep_in else None, rank_out if keep_out else None)
    state = torch.get_rng_state()
    built = build_layer(outline(layer, "meta"), ranks, (case.q_out, case.core, case.q_in), layer.bias)
    assert torch.equal(torch.get_rng_state(), state)  # nothing random was drawn
    assert (form(built) if isinstance(built, FactoredConv2d) else DENSE) == ranks
    x = torch.randn(2, case.conv.in_channels, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(built(x), layer(x), rtol=1e-10, atol=1e-10)


@given(cases())
def test_the_form_is_read_off_a_layer(case: Case) -> None:
    ranks = Ranks(None if case.q_in is None else len(case.q_in), None if case.q_out is None else case.q_out.shape[1])
    assert form(factored(case)) == ranks


def test_edits_are_read_off_a_network_in_its_order_and_make_it_again() -> None:
    def fresh() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 5, 1, 2), nn.Flatten()), nn.Linear(45, 6))

    model, edits = fresh(), (FactorEdit("1.0", 2, None), FactorEdit("2", 3, 4))
    assert factor_edits(model) == ()
    apply_edits(model, edits[::-1])
    assert factor_edits(model) == edits
    assert isinstance(model.get_submodule("2"), FactoredLinear)
    again = fresh()
    apply_edits(again, factor_edits(model))
    again.load_state_dict(model.state_dict(), strict=True)
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(again(x), model(x))


def test_only_plain_layers_have_a_factored_form() -> None:
    assert isinstance(factored_form(nn.Conv2d(3, 4, 3), 2, None), FactoredConv2d)
    assert isinstance(factored_form(nn.Linear(3, 4), None, 2), FactoredLinear)
    with pytest.raises(ValueError, match="a BatchNorm2d has no factored form"):
        factored_form(nn.BatchNorm2d(3), 2, 2)


def test_pointwise_layers_read_the_pixels_at_their_stride_only() -> None:
    for conv in (nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1, 2), nn.Conv2d(3, 4, 1, padding="same")):
        assert is_pointwise(conv)
    for conv in (nn.Conv2d(3, 4, 1, 2, padding=1), nn.Conv2d(3, 4, (1, 3)), nn.Conv2d(3, 4, 3, padding="valid")):
        assert not is_pointwise(conv)


def test_replace_module_at_the_top_level_and_below() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU()))
    replace_module(model, "0", nn.Tanh())
    replace_module(model, "1.0", nn.Sigmoid())
    assert isinstance(model.get_submodule("0"), nn.Tanh) and isinstance(model.get_submodule("1.0"), nn.Sigmoid)


@given(st.none() | st.integers(1, 9), st.none() | st.integers(1, 9))
def test_edit_round_trip(rank_in: int | None, rank_out: int | None) -> None:
    edit = FactorEdit("backbone.conv", rank_in, rank_out)
    assert FactorEdit.from_json(edit.to_json()) == edit


def test_incomplete_edit_is_refused() -> None:
    with pytest.raises(KeyError):
        FactorEdit.from_json({"layer": "backbone.conv", "rank_in": 2})


@pytest.mark.parametrize("options", [{"padding": 1}, {"stride": 2, "padding": (0, 1)}, {"dilation": 2, "bias": False}])
def test_a_separable_layer_is_the_sum_of_its_components(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 5, 3, **options).double()
    layer = FactoredConv2d(conv, 7, 7, separable=True)
    out, core, inside = (torch.randn(size, dtype=torch.float64) for size in ((5, 7), (7, 1, 3, 3), (7, 4)))
    fill(layer, out, core, inside)
    weight = torch.zeros(5, 4, 3, 3, dtype=torch.float64)
    for r in range(7):
        weight += out[:, r, None, None, None] * inside[r, None, :, None, None] * core[r, 0]
    torch.testing.assert_close(torch.as_tensor(layer.weight + 0), weight)
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    expected = F.conv2d(x, weight, layer.bias, layer.stride, layer.padding, layer.dilation)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(dense_form(layer)(x), expected)
    assert form(layer) == Ranks(7, 7, separable=True) and form_name(form(layer)) == "separable"
    assert layer.channels == (4, 5) and layer.groups == 1
