"""The trace of the second moments against per-image gradients by autograd, with and without the inputs' mean."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hybridprune.batch import Batch
from hybridprune.curvature import LayerFactors, collect_factors
from hybridprune.curvature.geometry import Geometry, geometry_of
from hybridprune.curvature.gradients import weight_gradients
from hybridprune.curvature.layer import FactorSums
from hybridprune.curvature.offsets import offset_moment
from hybridprune.curvature.passes import Seen
from hybridprune.curvature.trace import GradientTrace, TraceSums, _is_cheaper_by_positions, trace_terms
from tests.curvature.oracles import (
    GEOMETRIES,
    inputs_and_output_gradients,
    leaves,
    per_image_gradients,
    random_batch,
    residual_net,
)
from tests.curvature.test_collect import trace_of
from tests.curvature.test_gradients import Largest


def traced(model: nn.Module, images: Tensor, labels: Tensor, sizes: list[int], count: int) -> dict[str, LayerFactors]:
    pairs = zip(images.split(sizes), labels.split(sizes), strict=True)
    batches = [Batch(*pair) for pair in pairs]
    return collect_factors(
        model, leaves(model), batches, fisher_type="exp", moving_average=0.0, seed=0, sua=False, traced_images=count
    )


@pytest.mark.parametrize("name", leaves(residual_net()))
def test_traces_equal_per_image_gradients_plain_and_centred(name: str) -> None:
    model, (images, labels) = residual_net(), random_batch(7)
    layer, found = model.get_submodule(name), traced(model, images, labels, [5, 2], 7)[name]
    (dw,) = per_image_gradients(model, [layer.get_parameter("weight")], images, labels)
    assert trace_of(found) == pytest.approx(dw.square().sum().item() / 7, rel=1e-10)

    _, g = inputs_and_output_gradients(model, layer, images, labels)
    shift = torch.einsum("no,i->noi", g.flatten(2).sum(2) if g.ndim == 4 else g, found.input_mean)
    centred = dw - shift.view(*shift.shape, *[1] * (dw.ndim - 3))
    assert trace_of(found.centred()) == pytest.approx(centred.square().sum().item() / 7, rel=1e-10)
    assert trace_of(found.centred().centred()) == trace_of(found.centred())


def test_traces_are_of_the_first_images_in_whole_batches_and_change_no_factor() -> None:
    model, (images, labels) = residual_net(), random_batch(9)
    plain = traced(model, images, labels, [2, 3, 4], 0)
    for count, images_of in ((1, 2), (2, 2), (3, 5), (6, 9), (99, 9)):
        some = traced(model, images, labels, [2, 3, 4], count)
        alone = traced(model, images[:images_of], labels[:images_of], [images_of], images_of)
        for name, layer in some.items():
            assert plain[name].trace is None
            assert trace_of(layer) == pytest.approx(trace_of(alone[name]), rel=1e-10), (name, count)
            torch.testing.assert_close(layer.input_factor, plain[name].input_factor, rtol=0, atol=0)


def test_offset_factors_are_of_the_first_images_in_whole_batches() -> None:
    model, (images, labels) = residual_net(), random_batch(9)
    pairs = [Batch(*pair) for pair in zip(images.split([2, 3, 4]), labels.split([2, 3, 4]), strict=True)]

    def factors(batches: list[Batch], **options: Any) -> dict[str, LayerFactors]:
        return collect_factors(
            model, leaves(model), batches, fisher_type="exp", moving_average=0.0, seed=0, sua=False, **options
        )

    whole = factors(pairs)
    for count, batches in ((1, 1), (2, 1), (3, 2), (9, 3), (None, 3)):
        some, alone = factors(pairs, offset_images=count), factors(pairs[:batches])
        for name, layer in some.items():
            assert (layer.offset_factor is None) == (whole[name].offset_factor is None)
            torch.testing.assert_close(layer.offset_factor, alone[name].offset_factor)
            torch.testing.assert_close(layer.input_factor, whole[name].input_factor, rtol=0, atol=0)
            torch.testing.assert_close(layer.gradient_factor, whole[name].gradient_factor, rtol=0, atol=0)


def test_a_layer_that_later_images_run_through_has_an_offset_factor_as_well() -> None:
    """As a gated block may, that few images use."""
    layer, (x, g) = nn.Conv2d(3, 2, 3, padding=1), (torch.randn(6, 3, 5, 5), torch.randn(6, 2, 5, 5))
    sums = FactorSums.zeros_for(layer, sua=False, use_full_cov_a=False, traced=False)
    for rows in ([0, 1, 2], [3, 4, 5]):
        sums.add(Seen(x[rows], g[rows], geometry_of(layer), 1, 3), with_offsets=False, traced=False)
        sums.count(3, False)
    moment = offset_moment(x[:3], geometry_of(layer))
    torch.testing.assert_close(sums.factors().offset_factor, moment * 9 / moment.trace())


def test_an_image_that_did_not_run_through_the_layer_counts_as_nothing() -> None:
    """Half of a batch went through, and of another batch nothing did."""
    x, g = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 4, 4)
    sums = TraceSums.zeros_for(torch.zeros(5, 3, 1, 1))
    sums.add(Seen(x, g, Geometry(), 1, 4))
    sums.images += 4 + 6
    whole = weight_gradients(x.double(), g.double(), Geometry(), batch_size=4).square().sum().item()
    assert sums.mean().value == pytest.approx(whole / 10, rel=1e-5)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("outputs", [1, 40], ids=["by gradients", "by positions"])
def test_both_ways_give_the_terms_of_the_formula(geometry: Geometry, outputs: int) -> None:
    """Few outputs are cheaper by gradients, many by positions; the formula with a mean of its own."""
    layer = nn.Conv2d(30, outputs, *geometry).double()
    x = torch.randn(6, 30, 5, 4, dtype=torch.float64)
    g = torch.randn_like(layer(x))
    dw = weight_gradients(x, g, geometry, batch_size=1).flatten(3)
    sums, offsets = g.flatten(2).sum(2), geometry.offsets()
    squares, cross, lengths = trace_terms(x, g, geometry)
    torch.testing.assert_close(squares, dw.square().sum())
    torch.testing.assert_close(cross, torch.einsum("noik,no->i", dw, sums))
    torch.testing.assert_close(lengths, offsets * sums.square().sum())


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))
def test_frames_of_an_image_are_one_gradient(images: int, frames: int, inputs: int, outputs: int, length: int) -> None:
    geometry = Geometry((2, 1), 1, (1, 0))
    x = torch.randn(images * frames, inputs, length, 2, dtype=torch.float64)
    g = torch.randn(images * frames, outputs, length + 1, 2, dtype=torch.float64)
    each = weight_gradients(x, g, geometry, batch_size=1)
    whole = each.unflatten(0, (images, frames)).sum(1)
    squares, cross, _ = trace_terms(x, g, geometry, frames)
    assert squares.item() == pytest.approx(whole.square().sum().item(), rel=1e-10)
    sums = g.unflatten(0, (images, frames)).sum((1, 3, 4))
    torch.testing.assert_close(cross, torch.einsum("noihw,no->i", whole, sums))


def test_little_memory_changes_nothing() -> None:
    x, g = torch.randn(6, 3, 5, 4), torch.randn(6, 2, 5, 4)
    found = []
    for memory in (1, 2**28):
        sums = TraceSums.zeros_for(torch.zeros(2, 3, 1, 1))
        sums.add(Seen(x, g, Geometry(), 2, 3), memory)
        sums.images += 3
        found.append(sums.mean())
    assert found[0].value == pytest.approx(found[1].value, rel=1e-6)
    torch.testing.assert_close(found[0].cross, found[1].cross, rtol=1e-5, atol=1e-6)


def test_many_entries_are_added_up_without_losing_digits() -> None:
    x, g = torch.randn(8, 1024, 40, 40) + 1, torch.zeros(8, 600, 40, 40)
    g[:, :, 3, 4] = torch.randn(8, 600) + 1
    assert not _is_cheaper_by_positions(1600, 600, 1024, 1)
    squares, *_ = trace_terms(x, g, Geometry())
    expected = (x[:, :, 3, 4].double().square().sum(1) * g[:, :, 3, 4].double().square().sum(1)).sum()
    assert squares.item() == pytest.approx(expected.item(), rel=1e-6)


def test_gradients_that_are_larger_than_an_images_positions_are_never_made() -> None:
    x, g = torch.randn(8, 48, 2, 1, dtype=torch.float64), torch.randn(8, 40, 2, 1, dtype=torch.float64)
    with Largest() as largest:
        squares, *_ = trace_terms(x, g, Geometry())
    assert largest.elements < 40 * 48
    torch.testing.assert_close(squares, weight_gradients(x, g, Geometry(), batch_size=1).square().sum())


def test_means_are_taken_away_one_after_the_other_or_at_once() -> None:
    trace = GradientTrace(5.0, torch.tensor([0.5, -0.25], dtype=torch.float64), 2.0)
    one, other = torch.tensor([0.5, 1.0]), torch.tensor([-0.25, 0.75])
    once, twice = trace.centred(one + other), trace.centred(one).centred(other)
    assert once.value == pytest.approx(twice.value) == pytest.approx(5 - 2 * (0.125 - 0.4375) + 2 * (0.0625 + 1.75**2))
    torch.testing.assert_close(once.cross, twice.cross)


def test_what_is_left_without_a_mean_is_never_less_than_nothing() -> None:
    """Constant inputs, in single precision: all of their gradient is that of a bias."""
    x, g = torch.full((8, 3, 4, 4), 1.7), torch.randn(8, 5, 4, 4)
    sums = TraceSums.zeros_for(torch.zeros(5, 3, 1, 1))
    sums.add(Seen(x, g, Geometry(), 1, 8))
    sums.images += 8
    trace = sums.mean()
    assert 0 <= trace.centred(torch.full((3,), 1.7)).value < 1e-6 * trace.value
    assert GradientTrace(0.999, torch.ones(1, dtype=torch.float64), 1.0).centred(torch.ones(1)).value == 0
