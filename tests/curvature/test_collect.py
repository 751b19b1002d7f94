from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridprune.batch import Batch
from hybridprune.curvature import LayerFactors, collect_factors, collect_second_moments, eigenbasis
from hybridprune.curvature.geometry import Geometry, geometry_of
from hybridprune.curvature.offsets import nearest_kronecker_product
from hybridprune.errors import UserError
from tests.curvature.oracles import (
    ResidualNet,
    inputs_and_output_gradients,
    leaves,
    per_image_gradients,
    random_batch,
    residual_net,
    unfolded,
)
from tests.curvature.test_factors import unfolded_input_factor


def factors_of(model: nn.Module, batches, fisher_type="exp", moving_average=0.0, seed=0, **options):
    return collect_factors(
        model,
        leaves(model),
        [Batch(*pair) for pair in batches],
        fisher_type=fisher_type,
        moving_average=moving_average,
        seed=seed,
        **options,
    )


def trace_of(factors: LayerFactors) -> float:
    assert factors.trace is not None
    return factors.trace.value


def moments_of(model: nn.Module, batches, bases, fisher_type="exp", seed=0, **options):
    return collect_second_moments(
        model,
        leaves(model),
        [Batch(*pair) for pair in batches],
        bases=bases,
        fisher_type=fisher_type,
        seed=seed,
        **options,
    )


def bases_of(model: nn.Module, batches) -> dict[str, tuple[Tensor, Tensor, Tensor | None]]:
    found = {}
    for name, layer in factors_of(model, batches).items():
        basis = eigenbasis(layer.input_factor, layer.gradient_factor)
        found[name] = basis.q_out, basis.q_in, None
    return found


def brute_force_gradient_factor(model: nn.Module, layer: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    _, g = inputs_and_output_gradients(model, layer, images, labels)
    vectors = g.movedim(1, -1).flatten(0, -2)
    return torch.einsum("nc,nd->cd", vectors, vectors) / len(vectors)


def windows_of(layer: nn.Module, x: Tensor) -> Tensor:
    """The layer's input at each output position and offset, ``[B, S, k^2, C]``."""
    return unfolded(x, geometry_of(layer)) if isinstance(layer, nn.Conv2d) else x[:, None, None]


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: layer.get_parameter("weight") for name, layer in leaves(model).items()}


LAYERS = list(leaves(ResidualNet()))


@pytest.mark.parametrize("name", LAYERS)
def test_factors_in_a_residual_network_equal_brute_force(name: str):
    model, (images, labels) = residual_net(), random_batch(10)
    layer = model.get_submodule(name)
    actual = factors_of(model, [(images[:6], labels[:6]), (images[6:], labels[6:])])[name]

    x, g = inputs_and_output_gradients(model, layer, images, labels)
    if isinstance(layer, nn.Conv2d):
        expected_a, positions = unfolded_input_factor(x, geometry_of(layer)), g.shape[2] * g.shape[3]
    else:
        expected_a, positions = x.T @ x / len(x), 1
    torch.testing.assert_close(actual.input_factor, expected_a)
    expected_g = brute_force_gradient_factor(model, layer, images, labels)
    torch.testing.assert_close(actual.gradient_factor, expected_g)
    assert actual.positions == positions
    windows = windows_of(layer, x)
    torch.testing.assert_close(actual.input_mean, windows.mean((0, 1, 2)))
    assert actual.offset_factor is None


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("use_full_cov_a", [False, True])
def test_offset_factors_in_a_residual_network_equal_brute_force(name: str, use_full_cov_a: bool):
    model, (images, labels) = residual_net(), random_batch(10)
    layer = model.get_submodule(name)
    batches = [(images[:6], labels[:6]), (images[6:], labels[6:])]
    actual = factors_of(model, batches, sua=False, use_full_cov_a=use_full_cov_a)[name]
    plain = factors_of(model, batches)[name]

    x, _ = inputs_and_output_gradients(model, layer, images, labels)
    windows = windows_of(layer, x).flatten(0, 1)
    offsets = windows.shape[1]
    torch.testing.assert_close(actual.gradient_factor, plain.gradient_factor)
    torch.testing.assert_close(actual.input_mean, plain.input_mean)
    if offsets == 1:
        torch.testing.assert_close(actual.input_factor, plain.input_factor)
        assert actual.offset_factor is None
        return
    assert actual.offset_factor is not None
    if use_full_cov_a:
        vectors = windows.transpose(1, 2).flatten(1)
        a, k = nearest_kronecker_product(vectors.T @ vectors / len(vectors), offsets)
        torch.testing.assert_close(actual.input_factor, a)
        torch.testing.assert_close(actual.offset_factor, k)
        assert not torch.allclose(actual.input_factor, plain.input_factor, rtol=1e-3)
    else:
        moment = torch.einsum("noc,npc->op", windows, windows)
        torch.testing.assert_close(actual.input_factor, plain.input_factor)
        torch.testing.assert_close(actual.offset_factor, moment * offsets / moment.trace())


def test_full_covariance_is_of_no_account_without_an_offset_factor():
    model, batch = residual_net(), random_batch(4)
    plain, full = factors_of(model, [batch]), factors_of(model, [batch], use_full_cov_a=True)
    for name in LAYERS:
        assert torch.equal(full[name].input_factor, plain[name].input_factor)
        assert full[name].offset_factor is None


def test_factors_in_single_precision_keep_five_digits():
    model, (images, labels) = residual_net(), random_batch(16)
    exact = factors_of(model, [(images, labels)])
    channels_last = images.float().contiguous(memory_format=torch.channels_last)
    single = factors_of(model.float().to(memory_format=torch.channels_last), [(channels_last, labels)])
    for name, expected in exact.items():
        for field in ("input_factor", "gradient_factor"):
            actual, wanted = getattr(single[name], field), getattr(expected, field)
            assert actual.dtype == torch.float32
            assert (actual - wanted).norm() < 1e-5 * wanted.norm(), (name, field)


@pytest.mark.parametrize("name", LAYERS)
def test_second_moments_equal_per_image_gradients_in_the_eigenbasis(name: str):
    model, (images, labels) = residual_net(), random_batch(7)
    bases = bases_of(model, [(images, labels)])
    moments = moments_of(model, [(images[:5], labels[:5]), (images[5:], labels[5:])], bases, memory=5000)[name]

    (dw,) = per_image_gradients(model, [weights_of(model)[name]], images, labels)
    q_out, q_in, _ = bases[name]
    rotated = torch.einsum("po,npi...,iq->noq...", q_out, dw, q_in)
    torch.testing.assert_close(moments.entries, rotated.square().mean(0))
    assert moments.trace == pytest.approx(dw.square().sum().item() / len(images), rel=1e-10)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("with_offsets", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_second_moments_with_every_option_equal_per_image_gradients(name, centred: bool, with_offsets: bool, dtype):
    model, (images, labels) = residual_net(), random_batch(7)
    factors = factors_of(model, [(images, labels)], sua=False)
    layer = model.get_submodule(name)
    (dw,) = per_image_gradients(model, [layer.get_parameter("weight")], images, labels)
    if centred:
        _, g = inputs_and_output_gradients(model, layer, images, labels)
        shift = torch.einsum("no,i->noi", g.flatten(2).sum(2) if g.ndim == 4 else g, factors[name].input_mean)
        dw = dw - shift.view(*shift.shape, *[1] * (dw.ndim - 3))

    bases = {}
    for each, found in factors.items():
        basis = eigenbasis(found.input_factor, found.gradient_factor, found.offset_factor)
        bases[each] = (basis.q_out, basis.q_in, basis.q_offset if with_offsets else None)
    rotated = torch.einsum("po,npi...,iq->noq...", bases[name][0], dw, bases[name][1])
    if bases[name][2] is not None:
        rotated = (rotated.flatten(3) @ bases[name][2]).view_as(rotated)

    means = {each: found.input_mean for each, found in factors.items()} if centred else None
    batches = [(images[:5].to(dtype), labels[:5]), (images[5:].to(dtype), labels[5:])]
    moments = moments_of(model.to(dtype), batches, bases, memory=5000, means=means)[name]
    assert moments.entries is not None
    assert moments.entries.dtype == dtype
    assert moments.entries.shape == layer.get_parameter("weight").shape
    expected, digits = rotated.square().mean(0), 1e-5 if dtype == torch.float32 else 1e-12
    assert (moments.entries - expected).norm() < digits * expected.norm()
    assert moments.trace == pytest.approx(dw.square().sum().item() / len(images), rel=digits)


def test_second_moments_in_incomplete_bases_are_a_part_of_those_in_complete_ones():
    model, batch = residual_net(), random_batch(5)
    bases = bases_of(model, [batch])
    complete = moments_of(model, [batch], bases)
    narrow = {name: (q_out[:, :2], q_in[:, 1:3], None) for name, (q_out, q_in, _) in bases.items()}
    for name, moments in moments_of(model, [batch], narrow).items():
        entries = complete[name].entries
        assert entries is not None
        torch.testing.assert_close(moments.entries, entries[:2, 1:3])
        assert moments.trace == pytest.approx(entries[:2, 1:3].sum().item())


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
def test_factors_agree_with_curvlinops_where_its_factorisation_is_ours():
    # imported here because a dependency of it uses what torch deprecates
    from curvlinops import KFACLinearOperator

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1, bias=False), nn.Tanh(), nn.Conv2d(4, 5, 1, stride=2, bias=False), nn.Flatten()
    )
    model.append(nn.Linear(5 * 4 * 4, 6, bias=False)).double()
    images, labels = random_batch(9)
    kfac = KFACLinearOperator(
        model,
        nn.CrossEntropyLoss(),
        list(model.parameters()),
        [(images, labels)],
        fisher_type="empirical",
        check_deterministic=False,
    )
    kfac.compute_kronecker_factors()
    oracle = kfac.state_dict()
    actual = factors_of(model, [(images, labels)])
    assert len(actual) == 3
    for name, layer in actual.items():
        # curvlinops sums its gradient covariance over positions where ours is a mean
        torch.testing.assert_close(layer.input_factor, oracle["input_covariances"][name])
        expected = oracle["gradient_covariances"][name] / layer.positions
        torch.testing.assert_close(layer.gradient_factor, expected)


def test_moving_average_is_the_bias_corrected_average_of_the_batches():
    model, decay = residual_net(), 0.8
    batches = [random_batch(4, seed) for seed in range(3)]
    single = [factors_of(model, [batch]) for batch in batches]
    averaged = factors_of(model, batches, moving_average=decay)
    weights = [decay**2, decay, 1.0]
    for name in LAYERS:
        for field in ("input_factor", "gradient_factor"):
            terms = [w * getattr(each[name], field) for w, each in zip(weights, single, strict=True)]
            torch.testing.assert_close(getattr(averaged[name], field), torch.stack(terms).sum(0) / sum(weights))


@pytest.mark.parametrize("use_full_cov_a", [False, True])
def test_moving_average_of_offset_factors_weighs_the_batches_moments(use_full_cov_a: bool):
    layer, decay = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Flatten(), nn.LazyLinear(4)).double(), 0.6
    images = torch.randn(2, 3, 2, 5, 4, dtype=torch.float64) * torch.tensor([1.0, 3.0]).view(2, 1, 1, 1, 1)
    labels = torch.randint(4, (2, 3))
    layer(images[0])
    actual = factors_of(
        layer, list(zip(images, labels, strict=True)), moving_average=decay, sua=False, use_full_cov_a=use_full_cov_a
    )["0"]
    windows = [unfolded(each, Geometry(3, 1, 1)).flatten(0, 1) for each in images]
    vectors = torch.cat([windows[0] * decay**0.5, windows[1]]).transpose(1, 2).flatten(1)
    covariance = vectors.T @ vectors / (len(windows[0]) * (1 + decay))
    if use_full_cov_a:
        expected = nearest_kronecker_product(covariance, 9)
    else:
        blocks = covariance.view(2, 9, 2, 9)
        k = torch.einsum("cpcq->pq", blocks)
        expected = torch.einsum("cpdp->cd", blocks) / 9, k * 9 / k.trace()
    torch.testing.assert_close(actual.input_factor, expected[0])
    torch.testing.assert_close(actual.offset_factor, expected[1])


def test_sampled_labels_follow_the_seed_and_the_number_of_the_batch():
    model, batch = residual_net(), random_batch(16)

    def gradients(seed: int, *batches) -> Tensor:
        return factors_of(model, batches, "true", seed=seed)["classifier"].gradient_factor

    first = gradients(3, batch)
    assert torch.equal(first, gradients(3, batch))
    assert not torch.equal(first, gradients(4, batch))
    second = 2 * gradients(3, batch, batch) - first
    assert not torch.allclose(second, first), "every batch has the same labels"
    # labels of the second batch do not depend on what was drawn for the first
    other = random_batch(9, seed=7)
    after_another = (25 * gradients(3, other, batch) - 9 * gradients(3, other)) / 16
    torch.testing.assert_close(after_another, second)
    assert not torch.allclose(second, gradients(4, batch)), "seeds and numbers are interchangeable"


def test_sampled_labels_approach_the_expectation_over_the_softmax():
    model, (images, labels) = residual_net(), random_batch(3)
    copies = 3000
    actual = factors_of(model, [(images.repeat(copies, 1, 1, 1), labels.repeat(copies))], "true")
    probabilities = model(images).softmax(1).detach()
    for name in ("stem.0", "block2.conv1", "classifier"):
        expected = torch.zeros_like(actual[name].gradient_factor)
        for n in range(len(images)):
            for label, probability in enumerate(probabilities[n]):
                image = images[n : n + 1]
                g = brute_force_gradient_factor(model, model.get_submodule(name), image, torch.tensor([label]))
                expected += probability * g / len(images)
        assert (actual[name].gradient_factor - expected).norm() < 0.06 * expected.norm(), name
        given = factors_of(model, [(images, labels)])[name].gradient_factor
        assert (given - expected).norm() > 0.1 * expected.norm(), "the oracle does not tell the types apart"


def test_masked_images_add_no_gradient():
    model, (images, labels) = residual_net(), random_batch(8)
    kept = torch.tensor([1, 0, 0, 1, 0, 1, 0, 0], dtype=torch.float64)
    model.block2.mask = kept
    masked = factors_of(model, [(images, labels)], traced_images=8)
    rows = kept.bool()
    model.block2.mask = None
    alone = factors_of(model, [(images[rows], labels[rows])], traced_images=3)
    for name in ("block2.conv1", "block2.conv2"):
        expected = alone[name].gradient_factor * 3 / 8
        torch.testing.assert_close(masked[name].gradient_factor, expected)
        assert trace_of(masked[name]) == pytest.approx(trace_of(alone[name]) * 3 / 8)


def test_a_block_that_executes_on_a_subset_has_the_gradients_of_the_masked_one():
    model, (images, labels) = residual_net(), random_batch(6)
    kept = torch.tensor([True, False, True, True, False, True])
    alone = factors_of(model, [(images[kept], labels[kept])])
    model.block2.mask = kept.double()
    masked = factors_of(model, [(images, labels)], traced_images=6)
    model.block2.mask, model.block2.execute = None, kept
    executed = factors_of(model, [(images, labels)], traced_images=6)
    for name in LAYERS:
        torch.testing.assert_close(executed[name].gradient_factor, masked[name].gradient_factor)
        assert trace_of(executed[name]) == pytest.approx(trace_of(masked[name]))
    for name in ("block2.conv1", "block2.conv2"):
        # the inputs are averaged over the images that have one
        torch.testing.assert_close(executed[name].input_factor, alone[name].input_factor)


@pytest.mark.parametrize("executed", [True, False])
def test_an_unused_layer_has_zero_factors(executed: bool):
    model, batch = residual_net(), random_batch(4)
    if executed:
        model.block2.execute = torch.zeros(4, dtype=torch.bool)
    else:
        model.add_module("spare", nn.Conv2d(3, 5, 3).double())
    name = "block2.conv2" if executed else "spare"
    factors, moments = (
        factors_of(model, [batch, batch]),
        moments_of(model, [batch], bases_of(model, [batch])),
    )
    assert not factors[name].gradient_factor.any()
    assert not factors[name].input_factor.any()
    assert (factors[name].positions, moments[name].trace) == (0, 0.0)
    for full in (False, True):
        three_way = factors_of(model, [batch], sua=False, use_full_cov_a=full)[name]
        assert three_way.offset_factor is not None
        assert not any(each.any() for each in (three_way.input_factor, three_way.offset_factor))
    assert factors["block1.conv1"].gradient_factor.any()


def test_a_layer_behind_a_detached_input_still_has_its_gradient():
    model, (images, labels) = residual_net(), random_batch(5)
    expected = factors_of(model, [(images, labels)])["classifier"]

    def forward(x: Tensor) -> Tensor:
        return model.classifier(model.block2(model.block1(model.stem(x))).mean((2, 3)).detach())

    only = {"classifier": model.classifier, "stem": model.stem[0]}
    actual = collect_factors(forward, only, [Batch(images, labels)], fisher_type="exp", moving_average=0, seed=0)
    torch.testing.assert_close(actual["classifier"].gradient_factor, expected.gradient_factor)
    assert not actual["stem"].gradient_factor.any()


def test_autocast_and_no_grad_of_the_caller_do_not_reach_the_pass():
    model, batch = residual_net().float(), random_batch(4)
    batches = [(batch[0].float(), batch[1])]
    expected = factors_of(model, batches)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        actual = factors_of(model, batches)
    for name in LAYERS:
        assert torch.equal(actual[name].gradient_factor, expected[name].gradient_factor)


def test_a_shared_layer_is_refused():
    layer = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="more than once"):
        factors_of(nn.Sequential(layer, nn.ReLU(), layer), [(torch.randn(2, 3), torch.tensor([0, 1]))])


def test_only_the_bias_s_share_is_taken_by_centring():
    model, batch = residual_net(), random_batch(6)
    layer = factors_of(model, [batch], sua=False)["block1.conv1"]
    centred = layer.centred()
    x, _ = inputs_and_output_gradients(model, model.block1.conv1, *batch)
    inputs = windows_of(model.block1.conv1, x).flatten(0, 2)
    torch.testing.assert_close(centred.input_factor, torch.cov(inputs.T, correction=0))
    assert not centred.input_mean.any()
    torch.testing.assert_close(centred.centred().input_factor, centred.input_factor)
    assert centred.offset_factor is layer.offset_factor
    assert centred.gradient_factor is layer.gradient_factor


@pytest.mark.parametrize(
    ("options", "message"), [({"fisher_type": "mc"}, "'mc'"), ({"moving_average": 1.0}, "1.0: choose 0")]
)
def test_unknown_options_are_a_users_mistake(options, message: str):
    with pytest.raises(UserError, match=message):
        factors_of(residual_net(), [random_batch(2)], **options)


def test_no_batches_are_refused():
    with pytest.raises(ValueError, match="at least one batch"):
        factors_of(residual_net(), [])


def test_cross_entropy_of_the_pass_is_a_mean_over_the_full_batch():
    images, labels = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 1])
    layer = nn.Linear(3, 3).double()
    residuals = layer(images).softmax(1) - F.one_hot(labels, 3)
    actual = factors_of(nn.Sequential(layer), [(images, labels)])["0"].gradient_factor
    torch.testing.assert_close(actual, (residuals.T @ residuals / 4).detach())
