"""Honest accounting: MACs and parameters of a routed network, split into what decisions can and cannot avoid."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hybridprune.errors import UserError
from hybridprune.models.cascade import Cascade
from hybridprune.models.copies import copied
from hybridprune.models.routed import RoutedNetwork
from hybridprune.models.skipnet import GatedNetwork, RoutingState
from hybridprune.nested import images_in, on_device

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")


@dataclass(frozen=True)
class NetworkCost:
    """Cost of one image. FLOPs are 2 x MACs of convolutions and linear layers, rotations and gates included."""

    start_macs: int
    """Stem and block 0, or a cascade's first member."""
    shortcut_macs: tuple[int, ...]
    """What the gated blocks 1..N cost when they are skipped."""
    head_macs: int
    """The classifier; all of a network without gates."""
    block_macs: tuple[int, ...]
    """Avoidable work of the gated blocks 1..N, or of a cascade's members 1..N with the gates behind them."""
    gate_macs: tuple[int, ...]
    """Work of the gates 0..N-1."""
    backbone_params: int
    gate_params: int

    @property
    def fixed_macs(self) -> int:
        """Backbone work that always runs: stem, block 0, the shortcuts, the head."""
        return self.start_macs + sum(self.shortcut_macs) + self.head_macs

    @property
    def backbone_macs(self) -> int:
        """All blocks executed, without the gates."""
        return self.fixed_macs + sum(self.block_macs)

    @property
    def block_shares(self) -> tuple[float, ...]:
        """``w``: each gated block's avoidable share of the backbone's MACs."""
        return tuple(macs / self.backbone_macs for macs in self.block_macs)

    def expected_macs(self, rates: Sequence[float]) -> float:
        """Fixed cost, gates, and each gated block's avoidable cost at its execution rate in [0, 1]."""
        assert len(rates) == len(self.block_macs)
        return self.fixed_macs + sum(self.gate_macs) + sum(r * m for r, m in zip(rates, self.block_macs, strict=True))


def module_macs(net: nn.Module, input_size: int) -> dict[str, int]:
    """MACs of one ``[1, 3, input_size, input_size]`` image in each convolution, linear layer and LSTM cell, by name.

    Matrix products elsewhere (attention, say) are together under ``"other"``, where there are any. Works on any
    module: see `count_module`.
    """
    return somewhere(net, lambda found: _macs_by_layer(found, _image(found, input_size)))


def _called(model: nn.Module, inputs: Any) -> Any:
    return model(inputs)


def count_module(model: nn.Module, example: Any, run: Callable[[nn.Module, Any], object] = _called) -> tuple[int, int]:
    """MACs of ``run(model, example)`` for one input, ``[1, ...]`` or what else ``run`` takes, and of the parameters
    their number.

    Nothing is computed where the model runs on the meta device; where it does not, a copy of it really runs once in
    eval mode, on its own device. (There, torch counts no recurrent layer.)
    """
    assert images_in(example) == 1, f"the example is a batch of {images_in(example)}, the MACs are those of one input"
    macs = somewhere(model, lambda found: _macs(lambda: run(found, on_device(example, _device(found)))))
    return macs, sum(p.numel() for p in model.parameters())


def count(net: RoutedNetwork, input_size: int) -> NetworkCost:
    """Count a routed network on the meta device: nothing is computed, so it takes no time.

    Raises UserError if the network cannot take images of this size.
    """
    try:
        return somewhere(net, lambda found: cost_of(found, _image(found, input_size)))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"--resize {input_size}: the network cannot take images of this size ({reason})") from error


def cost_of(net: RoutedNetwork, image: Tensor) -> NetworkCost:
    """The cost of an ``image [1, 3, H, W]``, which is computed for it."""
    if isinstance(net, Cascade):
        return _cascade_cost(net, image)
    assert isinstance(net, GatedNetwork), type(net)
    return _gated_cost(net, image)


def _cascade_cost(net: Cascade, image: Tensor) -> NetworkCost:
    """Walk the members. Only images that come as far ask a later gate, so it is a cost of the member before it."""
    state, start = counted(lambda: net.start(image))
    gates: list[int] = []
    members: list[int] = []
    for _ in range(net.num_gates):
        gates.append(_macs(partial(net.ask, state, None)))
        state, macs = counted(partial(net.advance, state, torch.ones_like(state.going), "masked"))
        members.append(macs)
    return NetworkCost(
        start_macs=start,
        shortcut_macs=(0,) * net.num_gates,
        head_macs=0,
        block_macs=tuple(member + gate for member, gate in zip(members, [*gates[1:], 0], strict=True)),
        gate_macs=tuple(gates[:1] + [0] * len(gates[1:])),
        backbone_params=sum(p.numel() for p in net.members.parameters()),
        gate_params=sum(p.numel() for p in net.gate.parameters()),
    )


def _gated_cost(net: GatedNetwork, image: Tensor) -> NetworkCost:
    """Walk the routing's steps, counting each by itself: what ``skip`` needs runs for every image."""
    shortcuts: list[int] = []
    blocks: list[int] = []
    gates: list[int] = []
    state, start = counted(lambda: net.start(image))
    hidden = None
    for i in range(net.num_gates):
        x, block = state.features, net.block(state.blocks_done)
        (_, hidden), macs = counted(partial(net.gate, i, x, hidden))
        gates.append(macs)
        skipped, macs = counted(partial(block.skip, x))
        shortcuts.append(macs)
        executed, macs = counted(partial(block.execute, x, skipped))
        blocks.append(macs)
        state = RoutingState(executed, state.blocks_done + 1)
    return NetworkCost(
        start_macs=start,
        shortcut_macs=tuple(shortcuts),
        head_macs=_macs(lambda: net.finish(state)),
        block_macs=tuple(blocks),
        gate_macs=tuple(gates),
        backbone_params=sum(p.numel() for p in net.backbone.parameters()),
        gate_params=sum(p.numel() for p in net.gate.parameters()),
    )


def somewhere(net: M, measure: Callable[[M], T]) -> T:
    """Measure an eval-mode copy of ``net`` on the meta device or, if it does not run there, on its own."""
    with torch.no_grad():
        try:
            return measure(copied(net).to("meta").eval())
        except Exception:  # whatever foreign code raises when its tensors hold no values
            return measure(copied(net).eval())


def counted(run: Callable[[], T]) -> tuple[T, int]:
    """The value that ``run`` returns, and its MACs."""
    with FlopCounterMode(display=False) as counter, plain_attention():
        result = run()
    return result, counter.get_total_flops() // 2


def _macs(run: Callable[[], object]) -> int:
    return counted(run)[1]


def _macs_by_layer(net: nn.Module, example: Tensor) -> dict[str, int]:
    with FlopCounterMode(display=False) as counter, plain_attention():
        net(example)
    counts = counter.get_flop_counts()
    root = type(net).__name__
    macs: dict[str, int] = {}
    for name, module in net.named_modules():
        inside = any(not outer or name.startswith(f"{outer}.") for outer in macs)
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.LSTMCell)) and not inside:
            macs[name] = sum(counts.get(f"{root}.{name}" if name else root, {}).values()) // 2
    rest = counter.get_total_flops() // 2 - sum(macs.values())
    if rest:
        macs["other"] = macs.get("other", 0) + rest
    return macs


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Attention by plain products while it lasts: the counter does not see the work of all fused layers and kernels."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _image(net: nn.Module, input_size: int) -> Tensor:
    """A blank image ``[1, 3, input_size, input_size]`` of the network's type, on its device."""
    dtype = next((p.dtype for p in net.parameters() if p.is_floating_point()), torch.float32)
    return torch.zeros(1, 3, input_size, input_size, device=_device(net), dtype=dtype)


def _device(net: nn.Module) -> torch.device:
    return next((p.device for p in net.parameters()), torch.device("cpu"))
