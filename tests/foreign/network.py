"""A network as somebody else wrote it: its data, how it is run, and the way that it goes to deployment."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.utils.flop_counter import FlopCounterMode

import hybridprune
from hybridprune.config import CurvatureOptions, CutOptions
from hybridprune.errors import UserError
from tests.deployment.networks import preferring

QUICK = CurvatureOptions(curvature_images=16, moment_images=16)
CLASSES, SIZE = 4, 12
UNSEEN = {"l1": "no channels that can go|channels' ways through the network cannot be followed"}
"""What becomes of networks of which nobody can tell where channels go: they are refused."""
COUNTS = (6, 5, 5)
"""Images of the batches, which are unequal as a loader's are."""


def draw(seed: int = 0) -> torch.Generator:
    """Numbers of their own."""
    return torch.Generator().manual_seed(seed)


def pairs(*shape: int, classes: int = CLASSES) -> list[Any]:
    """Batches of standard normal inputs ``[B, *shape]`` (default: images) and class ids."""
    source = draw()
    return [
        (torch.randn(n, *(shape or (3, SIZE, SIZE)), generator=source), torch.randint(classes, (n,), generator=source))
        for n in COUNTS
    ]


def first(model: nn.Module, batch: Any) -> Any:
    """A pair's inputs are the argument."""
    return model(batch[0])


@dataclass(frozen=True)
class Net:
    """A network as somebody wrote it, and what becomes of it."""

    make: Callable[[], nn.Module]
    """A new instance, of random weights."""
    batches: Callable[[], list[Any]] = pairs
    loss: str | Callable[[Any, Any], Tensor] = "cross_entropy"
    forward: Callable[[nn.Module, Any], Any] | None = None
    shown: Callable[[nn.Module, Any], Any] | None = None
    """What is compared, where that is something else."""
    channels: str = "l1"
    """The method by which its channels are cut."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Method, or ``deploy`` -> what the one line says that refuses it."""
    least: float = 0.9
    """Share of the budget that is spent at least; less where units are coarse."""
    target: float = 0.6
    coupled: bool = False
    """Whether channels that several layers produce may go as well."""
    alone: tuple[str, ...] = ()
    """Layers whose directions nobody may cut."""
    fixed: tuple[str, ...] = ()
    """Layers that must come out as they were, whatever the method."""

    def run(self, model: nn.Module, batch: Any) -> Any:
        """What ``model`` says of a batch."""
        return (self.forward or first)(model, batch)

    def outputs(self, model: nn.Module, run: Callable[[nn.Module, Any], Any] | None = None) -> list[Tensor]:
        """All tensors of what ``model`` says in eval mode of the first batch; its mode is kept."""
        training = {module: module.training for module in model.modules()}
        model.eval()
        with torch.no_grad():
            found = tensors_in((run or self.shown or self.run)(model, self.batches()[0]))
        for module, mode in training.items():
            module.training = mode
        return found

    def flops(self, model: nn.Module) -> int:
        """Operations of the first batch, by torch's own counter, which sees no fused kernels."""
        counter = FlopCounterMode(display=False)
        with counter, sdpa_kernel(SDPBackend.MATH), pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.backends.mkldnn, "enabled", False)
            patch.setattr(torch.backends.mha, "_is_fastpath_enabled", False)
            torch.manual_seed(0)
            self.outputs(copy.deepcopy(unwrapped(model)), self.run)
        return counter.get_total_flops()

    def prune(self, model: nn.Module, method: str, target: float, **options: Any) -> hybridprune.Pruned:
        """`hybridprune.prune` with few images."""
        arguments: dict[str, Any] = {"curvature": QUICK, "loss": self.loss, "forward": self.forward}
        with warnings.catch_warnings():  # of layers that are left alone
            warnings.simplefilter("ignore", UserWarning)
            return hybridprune.prune(
                model, self.batches(), target_flops=target, method=method, **{**arguments, **options}
            )


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of a nested structure, in its order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for each in value.values() for tensor in tensors_in(each)]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [tensor for each in value for tensor in tensors_in(each)]
    return []


def assert_same(found: list[Tensor], expected: list[Tensor], tolerance: float = 0.0) -> None:
    """Equal in number and shape, and to ``tolerance``, relative to the largest entry of each tensor."""
    assert [each.shape for each in found] == [each.shape for each in expected]
    for one, other in zip(found, expected, strict=True):
        one, other = one.detach(), other.detach()
        scale = float(other.double().abs().max()) if other.numel() else 0.0
        difference = float((one.double() - other.double()).abs().max()) if other.numel() else 0.0
        assert difference <= tolerance * scale, (difference, scale)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """All that a caller may rely on to stay: weights, modes, what is trained, what hangs on the modules."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "tensors": {n: v.clone() for n, v in model.state_dict().items() if isinstance(v, Tensor)},
        "modes": {n: m.training for n, m in model.named_modules(remove_duplicate=False)},
        "trained": {n: (p.requires_grad, p.grad) for n, p in model.named_parameters(remove_duplicate=False)},
        "hooks": {n: [len(getattr(m, kind)) for kind in hooks] for n, m in model.named_modules()},
    }


def assert_untouched(model: nn.Module, before: dict[str, Any]) -> None:
    """Nothing of ``snapshot`` has changed."""
    after = snapshot(model)
    tensors, were = after.pop("tensors"), before["tensors"]
    assert tensors.keys() == were.keys() and all(tensors[n].equal(were[n]) for n in were)
    assert after == {name: value for name, value in before.items() if name in after}


def unwrapped(model: nn.Module) -> nn.Module:
    """What is in ``torch.compile`` or ``DataParallel``: what is pruned comes back without."""
    children = dict(model.named_children())
    return children.get("_orig_mod", children["module"] if isinstance(model, nn.DataParallel) else model)


def with_statistics_of(model: nn.Module, other: nn.Module) -> nn.Module:
    """A copy of ``model`` whose BatchNorms have the running statistics of ``other``, which has all of its modules."""
    copied = copy.deepcopy(model)
    for name, module in copied.named_modules():
        if isinstance(module, _BatchNorm):
            for key, value in other.get_submodule(name).named_buffers():
                module.get_buffer(key).copy_(value)
    return copied


def goes_all_the_way(net: Net, method: str, folder: Path) -> None:
    """Prune at full rank, prune to a budget, train a step, save, load, deploy; and what has to be equal is equal."""
    torch.manual_seed(0)
    model = net.make()
    net.outputs(model)  # lazy layers get their shapes
    before = snapshot(model)

    full = net.prune(model, method, 1.0, cut=CutOptions(refit_images=0, use_out_dependencies=net.coupled))
    assert_untouched(model, before)
    assert full.spec.macs == full.spec.dense_macs and full.spec.edits == ()
    assert_same(net.outputs(full.module), net.outputs(with_statistics_of(unwrapped(model), full.module)), 1e-4)

    pruned = net.prune(model, method, net.target, cut=CutOptions(use_out_dependencies=net.coupled))
    assert_untouched(model, before)
    keeps_its_promise(net, model, pruned, net.fixed if method == net.channels else net.alone + net.fixed)
    can_be_trained(net, pruned.module)

    hybridprune.save(pruned, folder)
    torch.manual_seed(1)
    fresh = net.make()
    if any(map(is_lazy, fresh.parameters())):
        with pytest.raises(UserError, match="lazy layers without a shape; run it on a batch first"):
            hybridprune.restore(folder, into=fresh)
        net.outputs(fresh)
    fresh = hybridprune.restore(folder, into=fresh)
    expected = net.outputs(pruned.module)
    assert_same(net.outputs(fresh), expected)
    batch = net.batches()[0]
    example = batch[0] if isinstance(batch, tuple) else batch
    if "deploy" in net.refused:
        with pytest.raises(UserError, match=net.refused["deploy"]):
            hybridprune.deploy(pruned.module.eval(), example)
    else:
        module = pruned.module.eval()
        deployed, _ = hybridprune.deploy(module, example, time=preferring("dense"))
        expected = tensors_in(module(example.clone()))
        assert_same(tensors_in(deployed(example.clone())), expected, max(1e-4, 2 * torch.finfo(expected[0].dtype).eps))


def keeps_its_promise(net: Net, model: nn.Module, pruned: hybridprune.Pruned, alone: Sequence[str]) -> None:
    """The budget is hit by torch's own count, and nothing that should be left alone has changed."""
    kept = net.flops(pruned.module) / net.flops(model)
    promised = pruned.spec.macs / pruned.spec.dense_macs
    assert abs(kept - promised) <= 1e-3, (kept, promised)
    assert net.least * net.target <= kept <= net.target + 1e-3, kept
    assert sum(p.numel() for p in pruned.module.parameters()) == pruned.spec.params
    assert all(output.isfinite().all() for output in net.outputs(pruned.module))
    before = dict(model.named_modules())
    for name, module in pruned.module.named_modules():
        if name in before:
            assert len(module._forward_hooks) >= len(before[name]._forward_hooks), name
            assert len(module._forward_pre_hooks) >= len(before[name]._forward_pre_hooks), name
    for name in alone:
        for key, value in model.get_submodule(name).named_parameters():
            assert value.shape == pruned.module.get_submodule(name).get_parameter(key).shape, name
    for key, value in model.named_parameters():
        if (after := dict(pruned.module.named_parameters()).get(key)) is not None:
            assert after.requires_grad == value.requires_grad, key


def can_be_trained(net: Net, module: nn.Module) -> None:
    """A step of training mode, backward pass included, runs on a copy of the pruned module."""
    copied = copy.deepcopy(module).train()
    found = [each for each in tensors_in(net.run(copied, net.batches()[0])) if each.requires_grad]
    assert found
    torch.stack([each.double().square().mean() for each in found]).sum().backward()
