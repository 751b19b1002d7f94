"""The trial cut: which layers can be replaced, whatever the code around them does."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hybridprune
from hybridprune.config import CurvatureOptions, CutOptions
from hybridprune.measure.cost import count_module
from hybridprune.models.factored import FactoredLayer
from hybridprune.pruning.directions.layers import survey
from hybridprune.pruning.left_alone import COSTS, NEVER, NOT_ONCE, READ, SEVERAL
from hybridprune.pruning.trial import read_without_call, replaceable
from tests.pruning.random_curvature import PlainNetwork

QUICK = CurvatureOptions(curvature_images=16, moment_images=16)


class Net(nn.Module):
    """What all cases share: convolutions ``a``, ``b``, ``c`` and a classifier, called in order."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.classifier = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.relu(self.c(F.relu(self.b(F.relu(self.a(x)))))).mean((2, 3)))


class Listed(Net):
    """``b`` runs as an entry of a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = [self.b]

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.relu(self.c(F.relu(self.parts[0](F.relu(self.a(x)))))).mean((2, 3)))


class Standardised(Net):
    """``b`` is never called: its weight is."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.b.weight - self.b.weight.mean((1, 2, 3), keepdim=True)
        x = F.conv2d(F.relu(self.a(x)), weight, self.b.bias, padding=self.b.padding)  # type: ignore[arg-type]
        return self.classifier(F.relu(self.c(F.relu(x))).mean((2, 3)))


class Penalised(Net):
    """The values of ``b``'s weight are read beside its call."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.1 * self.b.weight.square().mean()


class Peculiar(Net):
    """Training code asks ``b`` for what only convolutions have."""

    def forward(self, x: Tensor) -> Tensor:
        assert not (self.training and self.b.transposed)
        return super().forward(x)


class PeculiarWithGradients(Net):
    """And here it does so where gradients are recorded."""

    def forward(self, x: Tensor) -> Tensor:
        assert not (torch.is_grad_enabled() and self.b.transposed)
        return super().forward(x)


class Tied(Net):
    """In training ``b`` runs twice, and evaluation does something else where a layer is no convolution."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.relu(self.a(x))))
        x = F.relu(self.b(x)) if self.training else x
        return self.classifier(F.relu(self.c(x)).mean((2, 3))) * (1 if isinstance(self.c, nn.Conv2d) else 2)


class Helper(Net):
    """A branch that evaluation does not take."""

    def __init__(self) -> None:
        super().__init__()
        self.helper = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.c(F.relu(self.b(F.relu(self.a(x)))))).mean((2, 3))
        return self.classifier(x) + self.helper(x) if self.training else self.classifier(x)


def judged(model: nn.Module, example: Tensor | None = None) -> tuple[list[str], dict[str, str]]:
    """Names of the layers that can be replaced, and the reasons for the others."""
    network = PlainNetwork(model, torch.rand(1, 3, 6, 6) if example is None else example)
    found = survey(model, lambda: model(network.example), ())
    layers, failed = replaceable(network, found.layers)
    return [layer.name for layer in layers], {**found.left_alone, **failed}


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Listed, NOT_ONCE),
        (Standardised, NEVER),
        (Penalised, COSTS),
        (Peculiar, "another layer in its place does not run ('FactoredConv2d' object has no attribute 'transposed')"),
        (PeculiarWithGradients, "another layer in its place does not run ('FactoredConv2d' object has no attribute"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_layer_that_other_code_uses_is_left_alone(make: type[Net], reason: str) -> None:
    layers, left = judged(make().eval())
    assert layers == ["a", "c", "classifier"] and left.keys() == {"b"} and left["b"].startswith(reason)


def test_other_outputs_are_noticed_and_calls_in_training_may_be_others() -> None:
    layers, left = judged(Tied())
    assert layers == ["a", "b", "classifier"] and left == {"c": "another layer in its place changes the outputs"}
    assert judged(Helper()) == (["a", "b", "c", "classifier"], {"helper": NEVER})


def test_only_weights_that_are_read_are_said_to_be() -> None:
    class Both(Standardised, Helper):
        pass

    model, example = Both().eval(), torch.rand(1, 3, 6, 6)
    assert read_without_call(model, lambda net, x: net(x), example, ["b", "helper"]) == ["b"]
    assert read_without_call(model, lambda net, x: net(x), example, []) == []
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_nothing_is_changed() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(), nn.Flatten(), nn.Linear(128, 5)).train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modules, modes, random = list(model.modules()), [m.training for m in model.modules()], torch.get_rng_state()
    layers, left = judged(model, torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(0)))
    assert layers == ["0", "4"] and not left
    assert torch.equal(torch.get_rng_state(), random)
    assert list(model.modules()) == modules and [m.training for m in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks for m in modules) and all(p.grad is None for p in model.parameters())


def pruned(model: nn.Module, inputs: Tensor, **options: Any) -> hybridprune.Pruned:
    data = [(inputs, torch.arange(len(inputs)) % 5)]
    return hybridprune.prune(model, data, curvature=QUICK, cut=CutOptions(refit_images=0), **options)


@pytest.mark.parametrize("make", [Listed, Standardised, Penalised], ids=lambda make: make.__name__)
def test_the_budget_is_met_beside_them_and_they_are_named(make: type[Net]) -> None:
    images = torch.rand(8, 3, 6, 6)
    with pytest.warns(UserWarning, match=r"^left alone: b \("):
        found = pruned(make().eval(), images, target_flops=0.8)
    assert isinstance(found.module.get_submodule("b"), nn.Conv2d)
    assert found.spec.macs == count_module(found.module, images[:1])[0] <= 0.8 * found.spec.dense_macs
    assert found.left_alone == {"b": READ if make is Standardised else COSTS if make is Penalised else NOT_ONCE}


def test_a_transformer_encoder_is_really_cut_in_spite_of_its_fast_path() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.classifier = nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.classifier(self.encoder(x).mean(1))

    model, tokens = Tokens().eval(), torch.randn(8, 6, 16)
    whole = pruned(model, tokens, target_flops=1.0)
    cut = pruned(model, tokens, target_flops=0.8)
    assert cut.spec.macs <= 0.8 * cut.spec.dense_macs and {e.layer.split(".")[-1] for e in cut.spec.edits} >= {
        "linear1"
    }
    calls: list[str] = []
    for name, module in cut.module.named_modules():
        if isinstance(module, FactoredLayer):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    with torch.no_grad():
        torch.testing.assert_close(whole.module(tokens), model(tokens), rtol=1e-4, atol=1e-5)
        cut.module(tokens)
    assert sorted(calls) == sorted(edit.layer for edit in cut.spec.edits)
    assert set(cut.left_alone) == {f"encoder.layers.{i}.self_attn.out_proj" for i in range(2)}


def test_several_calls_are_no_surprise() -> None:
    class Twice(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.classifier(self.c(self.b(self.b(self.a(x)))).mean((2, 3)))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pruned(Twice().eval(), torch.rand(8, 3, 6, 6), target_flops=0.9).left_alone == {"b": SEVERAL}
