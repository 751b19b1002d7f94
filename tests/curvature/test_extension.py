from __future__ import annotations

import copy
import io
import warnings

import pytest
import torch
import torch.nn.functional as F
from backpack import extend
from backpack.context import CTX
from torch import Tensor, nn

from hybridprune.curvature import collect_factors, collect_second_moments
from hybridprune.curvature.extension import observed

from .nets import ResidualNet, leaves, random_batch, residual_net


def run_passes(model: nn.Module) -> None:
    batches = [random_batch(4), random_batch(2, seed=2)]
    generator = torch.Generator()
    layers = leaves(model)
    collect_factors(model, layers, batches, fisher_type="true", moving_average=0, generator=generator)
    collect_second_moments(model, layers, batches, bases=None, fisher_type="true", generator=generator)


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
    assert getattr(layer, "_backpack_extend", False)
