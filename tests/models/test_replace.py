"""What is in the place of a module, under all of its names, and what it keeps of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hybridprune.models.factored import FactoredConv2d, FactoredLayer, FactoredLinear, blank, factored
from hybridprune.models.replace import inherit, replace_module


def test_a_module_is_replaced_under_all_of_its_names() -> None:
    conv, block = nn.Conv2d(1, 1, 1), nn.Sequential(nn.Conv2d(1, 1, 1))
    net = nn.ModuleDict({"stem": conv, "body": block, "layers": nn.ModuleList([conv, block, nn.Sequential(conv)])})
    new = nn.Conv2d(1, 1, 1)
    replace_module(net, "stem", new)
    assert [name for name, m in net.named_modules(remove_duplicate=False) if m is new] == [
        "stem", "layers.0", "layers.2.0",
    ]  # fmt: skip
    assert conv not in net.modules()
    replace_module(net, "layers.1.0", new)
    assert block[0] is new
    with pytest.raises(AttributeError):
        replace_module(net, "nothing", new)
    with pytest.raises(AssertionError, match="no place in itself"):
        replace_module(net, "", new)


def layers() -> list[nn.Module]:
    return [nn.Conv2d(4, 6, 3), nn.Linear(4, 6), FactoredConv2d(nn.Conv2d(4, 6, 3), 2, 3)]


@pytest.mark.parametrize("old", layers(), ids=lambda layer: type(layer).__name__)
def test_all_that_hangs_on_a_layer_stays(old: nn.Module) -> None:
    calls: list[str] = []
    old.register_forward_pre_hook(lambda module, args: calls.append("pre"))
    old.register_forward_hook(lambda module, args, kwargs, y: calls.append("forward"), with_kwargs=True)
    old.register_full_backward_hook(lambda module, grad_in, grad_out: calls.append("backward"))
    old.register_state_dict_post_hook(lambda module, state, prefix, meta: calls.append("state"))
    old.register_load_state_dict_pre_hook(lambda *args: calls.append("load"))
    old.note = "mine"  # type: ignore[assignment]
    old.register_buffer("seen", torch.ones(2), persistent=False)
    old.register_buffer("kept", torch.ones(3))
    old.register_parameter("alpha", nn.Parameter(torch.ones(4)))
    old.add_module("adapter", nn.Linear(2, 2))
    old.eval()
    dense = nn.Linear(4, 6) if isinstance(old, nn.Linear) else nn.Conv2d(4, 6, 3)
    new = inherit(factored(dense, 2, None), old, blank(old))
    assert new.note == "mine" and not any(module.training for module in new.modules())
    assert new.seen is old.seen and new.alpha is old.alpha and new.adapter is old.adapter
    new.load_state_dict(new.state_dict())
    state = new.state_dict()
    assert {"kept", "alpha", "adapter.weight", "core.weight"} <= state.keys() and "seen" not in state
    shape = (2, 4) if isinstance(old, nn.Linear) else (2, 4, 5, 5)
    new(torch.randn(shape, requires_grad=True)).sum().backward()
    assert calls[-3:] == ["pre", "forward", "backward"] and {"state", "load"} <= set(calls)


@pytest.mark.parametrize("trained", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("old", layers(), ids=lambda layer: type(layer).__name__)
@pytest.mark.parametrize("ranks", [(2, 3), (2, None), (None, 3)])
def test_frozen_weights_and_biases_stay_frozen(
    old: nn.Module, ranks: tuple[int | None, int | None], trained: tuple[bool, bool]
) -> None:
    for name, parameter in old.named_parameters():
        parameter.requires_grad_(trained["weight" not in name])
    dense = nn.Linear(4, 6) if isinstance(old, nn.Linear) else nn.Conv2d(4, 6, 3)
    new = inherit(factored(dense, *ranks), old, blank(old))
    found = {name: parameter.requires_grad for name, parameter in new.named_parameters()}
    assert found == {name: trained["weight" not in name] for name in found}
    assert inherit(dense, new, blank(new)).weight.requires_grad == trained[0]
    assert dense.bias is not None and dense.bias.requires_grad == trained[1]


def test_rotations_that_were_frozen_alone_stay_so() -> None:
    old = FactoredLinear(nn.Linear(4, 6), 3, 3)
    old.rotate_in.requires_grad_(False)
    new = inherit(FactoredLinear(nn.Linear(4, 6), 2, 2), old, blank(old))
    assert [p.requires_grad for p in new.parameters()] == [False, True, True, True]


def weights_of(layer: FactoredLayer) -> tuple[Tensor, Tensor]:
    """The kernel that the layer says it has, and the one that it has: its answers to the unit vectors."""
    if isinstance(layer, FactoredLinear):
        return layer.weight, (layer(torch.eye(layer.in_features).double()) - layer.bias).T
    height, width = layer.kernel_size
    impulses = torch.eye(layer.in_channels * height * width).double().view(-1, layer.in_channels, height, width)
    assert layer.bias is not None
    answers = layer(impulses) - layer.bias[:, None, None]
    return layer.weight, answers[..., 0, 0].T.reshape(layer.out_channels, layer.in_channels, height, width)


@pytest.mark.parametrize("ranks", [(2, 3), (2, None), (None, 3)])
@pytest.mark.parametrize(
    "dense",
    [
        nn.Conv2d(4, 6, (3, 2), stride=(2, 1), dilation=1),
        nn.Conv2d(4, 6, 1, stride=2),
        nn.Conv2d(4, 6, 3, padding="same", dilation=(1, 2), padding_mode="reflect"),
        nn.Conv2d(4, 6, 3, padding=(1, 0), bias=False),
        nn.Linear(4, 6),
    ],
    ids=str,
)
def test_a_factored_layer_says_of_itself_what_the_dense_one_did(
    dense: nn.Conv2d | nn.Linear, ranks: tuple[int | None, int | None]
) -> None:
    dense = dense.double()
    layer = factored(dense, *ranks)
    names = ["in_features", "out_features"]
    if isinstance(dense, nn.Conv2d):
        names = [
            "in_channels",
            "out_channels",
            "kernel_size",
            "stride",
            "padding",
            "dilation",
            "groups",
            "padding_mode",
        ]
    assert {name: getattr(layer, name) for name in names} == {name: getattr(dense, name) for name in names}
    assert layer.weight.shape == dense.weight.shape and layer.weight.dtype == torch.float64
    assert (layer.bias is None) == (dense.bias is None)
    assert {"weight", "bias"}.isdisjoint(dict(layer.named_parameters())) and layer.state_dict().keys() < {
        f"{part}.{kind}" for part in ("rotate_in", "core", "rotate_out") for kind in ("weight", "bias")
    }
    assert len(layer.weight) == len(dense.weight) and layer.weight.requires_grad
    layer.weight.square().sum().backward()
    assert all(p.grad is not None for name, p in layer.named_parameters() if name.endswith("weight"))


@pytest.mark.parametrize("ranks", [(2, 3), (2, None), (None, 3)])
@pytest.mark.parametrize("dense", [nn.Conv2d(4, 6, (3, 2)), nn.Conv2d(4, 6, 1, stride=2), nn.Linear(4, 6)], ids=str)
def test_the_weight_of_a_factored_layer_is_its_answer_to_unit_vectors(
    dense: nn.Conv2d | nn.Linear, ranks: tuple[int | None, int | None]
) -> None:
    said, answered = weights_of(factored(dense, *ranks).double())
    torch.testing.assert_close(said, answered)


def test_a_weight_is_not_computed_to_tell_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = factored(nn.Linear(4, 6), 2, 3)
    calls: list[None] = []
    compute = FactoredLinear._product
    monkeypatch.setattr(FactoredLinear, "_product", lambda self: calls.append(None) or compute(self))
    weight = layer.weight
    assert (weight.dtype, weight.device, weight.ndim, weight.numel()) == (torch.float32, torch.device("cpu"), 2, 24)
    assert weight.requires_grad and weight.size(0) == 6 and not calls
    x = torch.randn(3, 4)
    torch.testing.assert_close(nn.functional.linear(x, weight, layer.bias), layer(x))
    assert calls
