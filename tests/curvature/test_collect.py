from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridprune.curvature import collect_factors, collect_second_moments, eigenbasis
from hybridprune.curvature.factors import geometry_of
from hybridprune.errors import UserError

from .nets import (
    ResidualNet,
    inputs_and_output_gradients,
    leaves,
    per_image_gradients,
    random_batch,
    residual_net,
)
from .test_factors import unfolded_input_factor


def factors_of(model: nn.Module, batches, fisher_type="exp", moving_average=0.0, seed=0):
    return collect_factors(
        model,
        leaves(model),
        batches,
        fisher_type=fisher_type,
        moving_average=moving_average,
        generator=torch.Generator().manual_seed(seed),
    )


def moments_of(model: nn.Module, batches, bases=None, fisher_type="exp", seed=0, chunk=32):
    return collect_second_moments(
        model,
        leaves(model),
        batches,
        bases=bases,
        fisher_type=fisher_type,
        generator=torch.Generator().manual_seed(seed),
        chunk=chunk,
    )


def bases_of(model: nn.Module, batches) -> dict[str, tuple[Tensor, Tensor]]:
    found = {}
    for name, layer in factors_of(model, batches).items():
        basis = eigenbasis(layer.input_factor, layer.gradient_factor)
        found[name] = basis.q_out, basis.q_in
    return found


def brute_force_gradient_factor(model: nn.Module, layer: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    _, g = inputs_and_output_gradients(model, layer, images, labels)
    vectors = g.movedim(1, -1).flatten(0, -2)
    return torch.einsum("nc,nd->cd", vectors, vectors) / len(vectors)


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
    moments = moments_of(model, [(images[:5], labels[:5]), (images[5:], labels[5:])], bases, chunk=2)[name]

    (dw,) = per_image_gradients(model, [weights_of(model)[name]], images, labels)
    q_out, q_in = bases[name]
    rotated = torch.einsum("po,npi...,iq->noq...", q_out, dw, q_in)
    torch.testing.assert_close(moments.entries, rotated.square().mean(0))
    assert moments.trace == pytest.approx(dw.square().sum().item() / len(images), rel=1e-10)


def test_traces_need_no_bases():
    model, (images, labels) = residual_net(), random_batch(5)
    weights = weights_of(model)
    gradients = per_image_gradients(model, list(weights.values()), images, labels)
    moments = moments_of(model, [(images, labels)])
    for name, dw in zip(weights, gradients, strict=True):
        assert moments[name].entries is None
        assert moments[name].trace == pytest.approx(dw.square().sum().item() / len(images), rel=1e-10)


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
            torch.testing.assert_close(
                getattr(averaged[name], field), torch.stack(terms).sum(0) / sum(weights)
            )


def test_sampled_labels_follow_the_generator():
    model, (images, labels) = residual_net(), random_batch(16)
    first, again, other = (
        factors_of(model, [(images, labels)], "true", seed=seed)["classifier"].gradient_factor
        for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


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
                g = brute_force_gradient_factor(
                    model, model.get_submodule(name), image, torch.tensor([label])
                )
                expected += probability * g / len(images)
        assert (actual[name].gradient_factor - expected).norm() < 0.06 * expected.norm(), name
        given = factors_of(model, [(images, labels)])[name].gradient_factor
        assert (given - expected).norm() > 0.1 * expected.norm(), "the oracle does not tell the types apart"


def test_masked_images_add_no_gradient():
    model, (images, labels) = residual_net(), random_batch(8)
    kept = torch.tensor([1, 0, 0, 1, 0, 1, 0, 0], dtype=torch.float64)
    model.block2.mask = kept
    masked = factors_of(model, [(images, labels)])
    moments = moments_of(model, [(images, labels)])
    rows = kept.bool()
    model.block2.mask = None
    alone = factors_of(model, [(images[rows], labels[rows])])
    for name in ("block2.conv1", "block2.conv2"):
        expected = alone[name].gradient_factor * 3 / 8
        torch.testing.assert_close(masked[name].gradient_factor, expected)
        alone_trace = moments_of(model, [(images[rows], labels[rows])])[name].trace
        assert moments[name].trace == pytest.approx(alone_trace * 3 / 8)


def test_a_block_that_executes_on_a_subset_has_the_gradients_of_the_masked_one():
    model, (images, labels) = residual_net(), random_batch(6)
    kept = torch.tensor([True, False, True, True, False, True])
    alone = factors_of(model, [(images[kept], labels[kept])])
    model.block2.mask = kept.double()
    masked, masked_moments = factors_of(model, [(images, labels)]), moments_of(model, [(images, labels)])
    model.block2.mask, model.block2.execute = None, kept
    executed, executed_moments = factors_of(model, [(images, labels)]), moments_of(model, [(images, labels)])
    for name in LAYERS:
        torch.testing.assert_close(executed[name].gradient_factor, masked[name].gradient_factor)
        assert executed_moments[name].trace == pytest.approx(masked_moments[name].trace)
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
        moments_of(model, [batch], bases_of(residual_net(), [batch])),
    )
    assert not factors[name].gradient_factor.any()
    assert not factors[name].input_factor.any()
    assert (factors[name].positions, moments[name].trace) == (0, 0.0)
    assert factors["block1.conv1"].gradient_factor.any()


def test_a_layer_behind_a_detached_input_still_has_its_gradient():
    model, (images, labels) = residual_net(), random_batch(5)
    expected = factors_of(model, [(images, labels)])["classifier"]

    def forward(x: Tensor) -> Tensor:
        return model.classifier(model.block2(model.block1(model.stem(x))).mean((2, 3)).detach())

    only = {"classifier": model.classifier, "stem": model.stem[0]}
    actual = collect_factors(
        forward, only, [(images, labels)], fisher_type="exp", moving_average=0, generator=torch.Generator()
    )
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
