"""Passes that go on: they see what whole passes see, compute nothing twice, and begin anew where they must."""

from __future__ import annotations

import copy
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hybridprune.batch import Batch
from hybridprune.models.edits import FactorEdit, apply_edits
from hybridprune.models.resnet import ResNet
from hybridprune.pruning.directions import refit as refitting
from hybridprune.pruning.directions.continued_pass import PassMemory
from hybridprune.pruning.directions.joints import Joint, find_joints
from hybridprune.pruning.directions.refit import refit
from hybridprune.pruning.directions.tapped_pass import TappedPass


def run(model: nn.Module, images: Tensor) -> object:
    return model(images)


class Counting(TorchFunctionMode):
    """How often each of torch's functions is really called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.__name__] += 1
        return func(*args, **(kwargs or {}))


class Dense(nn.Module):
    """Tensors that live long, views, changes in place, several results, a choice by a value, a switch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.third = nn.BatchNorm2d(4), nn.Conv2d(8, 4, 3, padding=1)
        self.fourth, self.last = nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean()
        first = self.first(x)
        with torch.no_grad():
            second = F.relu_(self.norm(self.second(first)))
        second[:, 0] *= 2
        upper, lower = second.chunk(2, dim=1)
        mixed = torch.cat([first, lower, upper.add(1)], dim=1)
        third = self.third(mixed) if float(mixed.abs().max()) > 0 else self.third(mixed + 1)
        third = third + first
        values, _ = self.fourth(F.gelu(third)).flatten(2).max(dim=2)
        return self.last(values)


NETWORKS = {"residual": lambda: ResNet(14, 6, 5), "dense": Dense}


def layers_of(net: nn.Module) -> list[str]:
    return [name for name, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]


@pytest.mark.parametrize("network", NETWORKS)
@torch.no_grad()
def test_a_pass_that_goes_on_sees_what_a_new_one_sees(network: str) -> None:
    torch.manual_seed(0)
    net = NETWORKS[network]().eval()
    images = torch.randn(6, 3, 8, 8)
    names = layers_of(net)
    if network == "residual":  # a projection runs behind the block's convolutions
        order: list[str] = []
        handles = [net.get_submodule(n).register_forward_hook(lambda m, a, y, n=n: order.append(n)) for n in names]
        run(net, images)
        [handle.remove() for handle in handles]
        names = order
    joints = find_joints(net, names, images[:1], run)
    inputs, outputs = TappedPass(net, images, run), TappedPass(net, images, run)
    for name in names:
        joint = joints.get(name, Joint())
        for going, new in ((inputs, TappedPass.input_of), (outputs, TappedPass.output_of)):
            found, expected = new(going, name, joint), new(TappedPass(net, images, run), name, joint)
            assert torch.equal(found.value, expected.value), name
            assert (found.addend is None) == (expected.addend is None) == (not joint.added)
            if found.addend is not None and expected.addend is not None:
                assert torch.equal(found.addend, expected.addend)


@torch.no_grad()
def test_nothing_is_computed_twice() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True)) for _ in range(5))).eval()
    going = TappedPass(net, torch.randn(4, 3, 8, 8), run)
    with Counting() as counting:
        for name in layers_of(net):
            going.output_of(name, Joint())
    assert (counting.calls["conv2d"], counting.calls["relu_"] + counting.calls["relu"]) == (5, 4)


@torch.no_grad()
def test_a_layer_that_changes_between_taps_is_run_as_it_is_then() -> None:
    torch.manual_seed(0)
    net = ResNet(14, 6, 5).eval()
    images = torch.randn(6, 3, 8, 8)
    names = [f"blocks.{n}.conv{m}" for n in range(2) for m in (1, 2)]
    joints = find_joints(net, names, images[:1], run)
    assert any(joint.added for joint in joints.values())
    going = TappedPass(net, images, run)
    for name, following in pairwise(names):
        going.input_of(name, joints[name])
        net.get_submodule(name).get_parameter("weight").mul_(1.5)
        expected = TappedPass(net, images, run).input_of(following, joints[following])
        assert torch.equal(going.input_of(following, joints[following]).value, expected.value)


class Recording(nn.Module):
    """Its second layer runs while gradients are recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        with torch.enable_grad():
            return self.second(x)


@torch.no_grad()
def test_switches_of_torch_are_set_again() -> None:
    net, images, modes = Recording(), torch.randn(4, 3, 8, 8), list[bool]()
    net.second.register_forward_pre_hook(lambda *_: modes.append(torch.is_grad_enabled()))
    going = TappedPass(net, images, run)
    for _ in range(3):
        going.input_of("second", Joint())
    assert modes == [True] * 3 and not torch.is_grad_enabled()


class ChangedBehind(nn.Module):
    """A layer's input changes in place before the sum that its output enters."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = (nn.Conv2d(3, 3, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.second(x)
        return self.last(y + x.relu_())


@torch.no_grad()
def test_what_changes_behind_a_tap_is_not_taken_for_what_it_was() -> None:
    torch.manual_seed(0)
    net, images = ChangedBehind().eval(), torch.randn(4, 3, 8, 8)
    going = TappedPass(net, images, run)
    for _ in range(2):
        assert going.input_of("second", Joint(None, added=True)).addend is not None
    inside = net.first(images)
    expected = net.second(inside) + inside.relu()
    assert torch.equal(going.input_of("last", Joint()).value, expected)


@torch.no_grad()
def test_only_what_is_in_use_is_kept() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()) for _ in range(8))).eval()
    images = torch.randn(4, 3, 8, 8)
    going = TappedPass(net, images, run)
    for name in layers_of(net):
        going.input_of(name, Joint())
        assert going.nbytes <= 3 * images.nbytes, name


class Scripted(nn.Module):
    """A function that torch tells modes nothing of, whose result is in use at the second layer, or changes one."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        with torch._C.DisableTorchFunction():
            x = x.add_(1) if self.in_place else x + 1
        return self.second(x)


@pytest.mark.parametrize("in_place", [False, True])
@torch.no_grad()
def test_a_pass_that_cannot_go_on_begins_anew(in_place: bool) -> None:
    torch.manual_seed(0)
    net = Scripted(in_place)
    images = torch.randn(4, 3, 8, 8)
    going = TappedPass(net, images, run)
    expected = net.first(images) + 1
    for _ in range(3):
        assert torch.equal(going.input_of("second", Joint()).value, expected)
    assert torch.equal(going.output_of("second", Joint()).value, net.second(expected))


class Fickle(nn.Module):
    """Another way each time."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.times = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), 0

    def forward(self, x: Tensor) -> Tensor:
        self.times += 1
        return self.second(self.first(x) + 1 if self.times % 2 else self.first(x).sub(1))


@torch.no_grad()
def test_a_network_that_takes_another_way_is_run_anew() -> None:
    torch.manual_seed(0)
    net, images = Fickle(), torch.randn(4, 3, 8, 8)
    going = TappedPass(net, images, run)
    going.input_of("second", Joint())
    found = going.input_of("second", Joint()).value  # the second run fails, the third is the first's
    assert torch.equal(found, net.first(images) + 1)


def test_a_failing_network_still_fails() -> None:
    def fail(model: nn.Module, images: Tensor) -> object:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        TappedPass(nn.Linear(2, 2), torch.zeros(1, 2), fail).input_of("", Joint())


def cut_pair() -> tuple[nn.Module, nn.Module, list[str]]:
    torch.manual_seed(0)
    reference = ResNet(14, 6, 5).eval()
    model = copy.deepcopy(reference)
    apply_edits(model, [FactorEdit("conv", None, 3)])
    for parameter in model.get_submodule("conv").parameters():
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    return reference, model, layers_of(reference)


def refitted(batches: list[Batch]) -> dict[str, Tensor]:
    reference, model, names = cut_pair()
    refit(model, reference, names, batches, run, {}, whole=True)
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_a_refit_is_the_same_to_the_bit_with_passes_that_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [Batch(torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(n)), None) for n in range(3)]
    going = refitted(batches)
    monkeypatch.setattr(PassMemory, "mark", lambda self: None)
    for name, value in refitted(batches).items():
        assert torch.equal(value, going[name]), name


def test_where_memory_is_short_fewer_batches_are_used_and_at_least_one(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [Batch(torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(n)), None) for n in range(3)]
    monkeypatch.setattr(refitting, "PASS_BYTES", 0)
    short = refitted(batches)
    monkeypatch.undo()
    for name, value in refitted(batches[:1]).items():
        assert torch.equal(value, short[name]), name
