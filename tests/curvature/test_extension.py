from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from backpack import extend
from backpack.context import CTX
from torch import Tensor, nn

from hybridprune.batch import Batch
from hybridprune.curvature import collect_factors, collect_second_moments
from hybridprune.curvature.extension import observed
from tests.curvature.oracles import ResidualNet, leaves, own_bases, random_batch, residual_net


def run_passes(model: nn.Module) -> None:
    batches = [Batch(*random_batch(4)), Batch(*random_batch(2, seed=2))]
    layers = leaves(model)
    collect_factors(model, layers, batches, fisher_type="true", moving_average=0, seed=0, traced_images=6)
    collect_second_moments(model, layers, batches, bases=own_bases(layers), fisher_type="true", seed=0)


def traces(model: nn.Module) -> dict[str, object]:
    """Everything on the modules and parameters that a pass could have changed."""
    attributes = {f"{name} attributes": set(vars(module)) for name, module in model.named_modules()}
    hooks = {
        f"{name} {kind}": len(value)
        for name, module in model.named_modules()
        for kind, value in vars(module).items()
        if "hooks" in kind
    }
    kinds = {f"{name} kind": module._is_full_backward_hook for name, module in model.named_modules()}
    parameters = {
        name: (set(vars(p)), p.requires_grad, None if p.grad is None else p.grad.tolist(), p.tolist())
        for name, p in model.named_parameters()
    }
    return {**attributes, **hooks, **kinds, **parameters}


def train_one_step(model: nn.Module) -> dict[str, Tensor]:
    images, labels = random_batch(6, seed=5)
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1)
    optimizer.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()
    return model.state_dict()


def test_no_trace_remains_on_the_model():
    model = residual_net()
    model.classifier.weight.grad = torch.ones_like(model.classifier.weight)
    model.stem[0].weight.requires_grad_(False)
    before, handles, extensions = traces(model), len(CTX.hook_handles), CTX.get_active_exts()
    run_passes(model)
    assert traces(model) == before
    assert len(CTX.hook_handles) == handles
    assert CTX.get_active_exts() == extensions


def test_no_trace_remains_after_an_error():
    model, before = residual_net(), traces(residual_net())

    def fail(*_: object) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), observed(leaves(model).values(), fail) as backward:
        backward(model(random_batch(2)[0]).sum())
    assert traces(model) == before


def test_model_can_be_copied_saved_and_trained_as_before():
    model, untouched = residual_net(), residual_net()
    run_passes(model)
    copied = copy.deepcopy(model)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    loaded = ResidualNet().double()
    loaded.load_state_dict(torch.load(buffer, weights_only=True))
    expected = train_one_step(untouched)
    for each in (model, copied, loaded):
        actual = train_one_step(each)
        assert actual.keys() == expected.keys()
        assert all(torch.equal(actual[key], expected[key]) for key in expected)


def test_observation_does_not_change_the_logits_or_warn():
    model, (images, _) = residual_net(), random_batch(4)
    expected = model(images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with observed(leaves(model).values(), lambda *_: None) as backward:
            actual = model(images)
            backward(actual.sum())
    assert torch.equal(actual, expected)


def test_every_leaf_is_seen_once_with_its_input_and_output_gradient():
    model, (images, _) = residual_net(), random_batch(3)
    seen: list[tuple[nn.Module, Tensor, Tensor]] = []
    with observed(leaves(model).values(), lambda *observation: seen.append(observation)) as backward:
        logits = model(images)
        backward(logits.square().sum())
    assert sorted(map(id, leaves(model).values())) == sorted(id(layer) for layer, _, _ in seen)
    by_layer = {layer: (x, g) for layer, x, g in seen}
    assert torch.equal(by_layer[model.stem[0]][0], images)
    torch.testing.assert_close(by_layer[model.classifier][1], 2 * logits.detach())
    assert not any(x.requires_grad or g.requires_grad for x, g in by_layer.values())


def test_layers_extended_by_someone_else_stay_extended():
    layer = extend(nn.Linear(3, 2))
    hooks = len(layer._forward_hooks)
    with observed([layer], lambda *_: None) as backward:
        backward(layer(torch.randn(4, 3)).sum())
    assert len(layer._forward_hooks) == hooks == 1
    assert len(layer._backward_hooks) == 1
    assert getattr(layer, "_backpack_extend", False)


def in_place_network(change: Callable[[Tensor], Tensor], layer: nn.Module, head: nn.Module) -> Callable:
    return lambda x: head(change(layer(x)).flatten(1))


CHANGES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "relu module": (nn.ReLU(inplace=True), F.relu),
    "relu function": (F.relu_, F.relu),
    "silu": (nn.SiLU(inplace=True), F.silu),
    "sum": (lambda y: y.add_(y.detach().sin()), lambda y: y + y.detach().sin()),
    "product": (lambda y: y.mul_(0.5), lambda y: y * 0.5),
    "several": (lambda y: F.relu_(y.mul_(-2).add_(1)), lambda y: F.relu(y * -2 + 1)),
    "part": (lambda y: y.index_fill_(0, torch.tensor([1]), 0), lambda y: y.index_fill(0, torch.tensor([1]), 0)),
}


@pytest.mark.parametrize(("change", "out_of_place"), CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("kind", ["conv", "linear", "linear over tokens"])
def test_an_output_that_is_changed_in_place_has_the_gradient_from_before_the_change(kind, change, out_of_place):
    torch.manual_seed(0)
    x = torch.randn(*{"conv": (4, 2, 5, 5), "linear": (4, 3), "linear over tokens": (4, 5, 3)}[kind])
    layer = nn.Conv2d(2, 3, 3) if kind == "conv" else nn.Linear(3, 3)
    head = nn.LazyLinear(4)
    head(layer(x).flatten(1))
    seen: list[tuple[Tensor, Tensor]] = []
    with observed([layer], lambda _, *observation: seen.append(observation)) as backward:
        logits = in_place_network(change, layer, head)(x)
        backward(logits.square().sum())
    output = layer(x)
    expected = head(out_of_place(output).flatten(1))
    torch.testing.assert_close(logits, expected)
    ((seen_x, g),) = seen
    assert torch.equal(seen_x, x)
    torch.testing.assert_close(g, torch.autograd.grad(expected.square().sum(), output)[0])
    # beyond the layer too
    x.requires_grad_()
    with observed([layer], lambda *_: None):
        (actual,) = torch.autograd.grad(in_place_network(change, layer, head)(x).square().sum(), x)
    (wanted,) = torch.autograd.grad(in_place_network(out_of_place, layer, head)(x).square().sum(), x)
    torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize("frozen", [False, True])
def test_an_input_that_is_changed_after_the_layer_ran_is_refused(frozen: bool):
    layer = nn.Conv2d(2, 2, 1, bias=False)
    layer.weight.requires_grad_(not frozen)
    with (
        observed([layer], lambda *_: None) as backward,
        pytest.raises(ValueError, match="changed in place after"),
    ):
        x = torch.randn(2, 2, 3, 3).sin()
        y = layer(x)
        x.mul_(2)
        backward((y + x).sum())


def test_a_layer_whose_first_run_alone_has_a_gradient_is_refused():
    layer = nn.Linear(3, 3)
    with observed([layer], lambda *_: None) as backward, pytest.raises(ValueError, match="more than once"):
        y = layer(torch.randn(2, 3))
        layer(torch.randn(2, 3))
        backward(y.sum())


def test_a_run_without_gradients_does_not_count():
    layer, x, seen = nn.Linear(3, 3), torch.randn(2, 3), []
    with observed([layer], lambda _, x, g: seen.append(x)) as backward:
        y = layer(x)
        with torch.no_grad():
            layer(torch.randn(2, 3))
        backward(y.sum())
    assert len(seen) == 1
    assert torch.equal(seen[0], x)


def test_what_a_loss_does_not_depend_on_is_not_kept():
    used, unused = nn.Linear(3, 3), nn.Linear(3, 3)
    with observed([used, unused], lambda *_: None) as backward:
        x = torch.randn(2, 3)
        unused(x)
        backward(used(x).sum())
        assert not {"input0", "output"} & (set(vars(used)) | set(vars(unused)))


def test_the_first_layer_s_input_gradient_is_not_computed():
    x = torch.randn(2, 3, requires_grad=True).sin()
    x.register_hook(lambda _: pytest.fail("a gradient in the input was computed"))
    layer = nn.Linear(3, 3)
    with observed([layer], lambda *_: None) as backward:
        backward(layer(x).sum())


def test_other_backward_hooks_of_a_layer_still_run():
    layer, calls = nn.Linear(3, 3), []
    layer.register_full_backward_hook(lambda *_: calls.append("full"))
    x = torch.randn(2, 3, requires_grad=True)
    with observed([layer], lambda *_: calls.append("statistic")) as backward:
        backward(layer(x).sum())
    assert calls[0] == "statistic"
    layer(x).sum().backward()
    assert calls[-1] == "full"
    assert len(layer._backward_hooks) == 1
