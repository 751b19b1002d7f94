"""Routing: masked and executed agree, decisions are obeyed, and gates look where they should."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hybridprune.models import skipnet
from hybridprune.models.edits import FactorEdit
from hybridprune.models.gates import GATES
from hybridprune.models.routed import Mode
from hybridprune.models.skipnet import GatedNetwork, RoutingState
from hybridprune.models.spec import NetworkSpec
from tests.networks_and_images import random_decisions, random_images, random_net, randomised

MODES: list[Mode] = ["masked", "executed"]
EDITS = (
    FactorEdit("backbone.blocks.1.conv1", 2, 3),
    FactorEdit("backbone.blocks.2.conv1", None, 4),
    FactorEdit("backbone.blocks.2.projection.0", 2, None),
)
NETS = {"dense": random_net(), "factored": random_net(edits=EDITS)}


def image_by_image(net: GatedNetwork, images: Tensor, decisions: Tensor) -> Tensor:
    """Logits ``[B, classes]`` by plain control flow, one image at a time."""
    rows = []
    for image, decided in zip(images.split(1), decisions.tolist(), strict=True):
        x = net.block(0)(net.backbone.stem(image))
        for index, decision in enumerate(decided, start=1):
            block = net.block(index)
            x = block(x) if decision else block.skip(x)
        rows.append(net.backbone.head(x))
    return torch.cat(rows)


@pytest.mark.parametrize("net", NETS.values(), ids=NETS.keys())
@settings(max_examples=40)
@given(st.lists(st.lists(st.integers(0, 1), min_size=5, max_size=5), min_size=1, max_size=6))
@torch.no_grad()
def test_masked_executed_and_plain_control_flow_agree(net: GatedNetwork, decided: list[list[int]]) -> None:
    decisions = torch.tensor(decided, dtype=torch.float32)
    images = random_images(len(decisions))
    expected = image_by_image(net, images, decisions)
    for mode in MODES:
        routed = net(images, decisions, mode)
        torch.testing.assert_close(routed.logits, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
        assert torch.equal(routed.decisions, decisions)


@pytest.mark.parametrize("net", NETS.values(), ids=NETS.keys())
@pytest.mark.parametrize("decision", [0.0, 1.0])
@pytest.mark.parametrize("batch", [1, 4])
@torch.no_grad()
def test_all_skipped_and_all_executed(net: GatedNetwork, decision: float, batch: int) -> None:
    images = random_images(batch)
    decisions = torch.full((batch, net.num_gates), decision)
    masked, executed = (net(images, decisions, mode).logits for mode in MODES)
    assert torch.equal(masked, executed)  # the same kernels on the same shapes
    if decision:
        assert torch.equal(executed, net.backbone(images))
    else:
        assert not torch.allclose(executed, net.backbone(images), rtol=0.1)


@pytest.mark.parametrize("net", NETS.values(), ids=NETS.keys())
@torch.no_grad()
def test_own_decisions_differ_between_images_and_follow_the_logits(net: GatedNetwork) -> None:
    images = random_images(16)
    masked, executed = (net(images, None, mode) for mode in MODES)
    assert 0 < masked.decisions.mean() < 1 and masked.decisions.std(0).max() > 0
    assert torch.equal(masked.decisions, (masked.gate_logits > 0).float())
    assert torch.equal(masked.decisions, executed.decisions)
    torch.testing.assert_close(masked.logits, executed.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(masked.logits, image_by_image(net, images, masked.decisions), rtol=1e-5, atol=1e-5)
    # Replaying them is the same network.
    assert torch.equal(net(images, masked.decisions, "executed").logits, executed.logits)


@torch.no_grad()
def test_gate_i_sees_block_i_and_decides_block_i_plus_1() -> None:
    net = NETS["dense"]
    images, decisions = random_images(3), random_decisions(3, 5)
    seen: list[tuple[int, Tensor]] = []
    with net.gate.register_forward_pre_hook(lambda module, args: seen.append((args[0], args[1]))):
        net(images, decisions)
    x = net.block(0)(net.backbone.stem(images))
    for i, (index, features) in enumerate(seen):
        assert index == i
        torch.testing.assert_close(features, x, rtol=1e-5, atol=1e-5)
        block = net.block(i + 1)
        chosen = decisions[:, i].view(-1, 1, 1, 1).bool()
        x = torch.where(chosen, block(x), block.skip(x))
    assert len(seen) == net.num_gates == 5


@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_a_skipped_block_is_the_identity_or_projection_and_batch_norm(mode: Mode) -> None:
    net = NETS["dense"]
    state = net.start(random_images(3))
    skip = torch.zeros(3)
    identity = net.advance(state, skip, mode)
    assert torch.equal(identity.features, state.features) and identity.blocks_done == 2
    projected = net.advance(identity, skip, mode).features
    projection = net.backbone.blocks[2].projection
    assert projection is not None
    convolution, norm = projection
    strided = torch.nn.functional.conv2d(state.features, convolution.weight, stride=2)
    torch.testing.assert_close(projected, norm(strided))
    assert (projected < 0).any(), "a ReLU would go unnoticed"


@torch.no_grad()
def test_executed_runs_a_block_on_the_chosen_images_only() -> None:
    net = NETS["dense"]
    decisions = random_decisions(6, 5)
    sizes: list[int] = []
    hooks = [
        net.backbone.blocks[i].conv1.register_forward_hook(lambda module, args, output: sizes.append(len(output)))
        for i in range(1, 6)
    ]
    net(random_images(6), decisions, "executed")
    for hook in hooks:
        hook.remove()
    assert sizes == [int(count) for count in decisions.sum(0) if count]


@torch.no_grad()
def test_the_step_machine_and_forward_are_one() -> None:
    net = NETS["dense"]
    images, decisions = random_images(4), random_decisions(4, 5)
    state, hidden = net.start(images), None
    logits = []
    for i in range(net.num_gates):
        logit, hidden = net.gate(i, state.features, hidden)
        logits.append(logit)
        state = net.advance(state, decisions[:, i], "executed")
    routed = net(images, decisions, "executed")
    assert torch.equal(net.finish(state), routed.logits)
    assert torch.equal(torch.stack(logits, 1), routed.gate_logits)


def test_gradients_reach_the_gates_in_training_but_not_in_eval_mode() -> None:
    net = random_net(8)
    images = random_images(4)
    evaluated = net(images)
    assert not evaluated.decisions.requires_grad and evaluated.gate_logits.requires_grad
    routed = net.train()(images)
    assert routed.decisions.requires_grad
    (gradient,) = torch.autograd.grad(routed.logits.square().sum(), net.gate.score.weight)
    assert gradient.abs().sum() > 0
    forced = net(images, random_decisions(4, 2))
    assert not forced.decisions.requires_grad


def test_decisions_of_the_wrong_shape_are_refused() -> None:
    net = NETS["dense"]
    for shape in [(4, 1), (1, 5), (4, 6), (4,)]:
        with pytest.raises(AssertionError):
            net(random_images(4), torch.ones(shape))
    with pytest.raises(AssertionError):
        net.advance(net.start(random_images(4)), torch.ones(4, 1), "masked")
    with pytest.raises(AssertionError):
        net.finish(net.start(random_images(4)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", GATES)
@torch.no_grad()
def test_every_kind_of_gate_routes_like_plain_control_flow(kind: str, mode: Mode) -> None:
    torch.manual_seed(0)
    net = randomised(NetworkSpec("resnet", 14, 4, 5, gate=kind).build())
    images = random_images(20)
    own = net(images, None, mode)
    assert torch.equal(own.decisions, (own.gate_logits > 0).float()) and 0 < own.decisions.mean() < 1
    for routed in (own, net(images, random_decisions(20, 5), mode)):
        expected = image_by_image(net, images, routed.decisions)
        torch.testing.assert_close(routed.logits, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_executing_some_keeps_the_memory_format_and_the_state_before(
    memory_format: torch.memory_format, grad: bool
) -> None:
    net = NETS["dense"]
    images = random_images(20).contiguous(memory_format=memory_format)
    with torch.set_grad_enabled(grad):
        state = net.start(images)
        state = RoutingState(state.features.contiguous(memory_format=memory_format), 1)
        for index, decision in enumerate(random_decisions(20, 5).T, start=1):
            before = state.features.clone()
            after = net.advance(state, decision, "executed")
            assert torch.equal(state.features, before), index
            assert after.features.is_contiguous(memory_format=memory_format), index
            state = after


@pytest.mark.parametrize("batch", [1, 6])
@torch.no_grad()
def test_nothing_is_copied_where_all_or_none_are_executed(batch: int) -> None:
    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    copies = {"index", "index_select", "index_copy", "index_copy_", "clone", "copy_", "lerp"}
    seen: list[str] = []
    net, images = NETS["dense"], random_images(batch)
    state = net.start(images)
    for decision in (0.0, 1.0):
        with Names():
            net(images, torch.full((batch, 5), decision), "executed")
        assert seen and not copies & set(seen)
        seen.clear()
    assert net.advance(state, torch.zeros(batch), "executed").features is state.features
    if batch > 1:  # and otherwise it is
        with Names():
            net(images, random_decisions(batch, 5), "executed")
        assert {"index_select", "index_copy_"} <= set(seen)


@torch.no_grad()
def test_images_that_are_executed_in_pieces_are_all_executed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skipnet, "LARGE", 0)
    net, images = NETS["dense"], random_images(97)
    decisions = torch.ones(len(images), net.num_gates)
    decisions[::5] = 0  # 77 of 97 images are chosen: three pieces
    masked, executed = (net(images, decisions, mode).logits for mode in MODES)
    torch.testing.assert_close(executed, masked, rtol=1e-4, atol=1e-5)


class Peak(TorchDispatchMode):
    """The most bytes that tensors made in this context hold at once."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self._sizes: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {StorageWeakRef(each.untyped_storage()) for each in tree_leaves(args) if isinstance(each, Tensor)}
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, Tensor) and (key := StorageWeakRef(each.untyped_storage())) not in given:
                self._sizes[key] = each.untyped_storage().nbytes()
        self._sizes = {key: size for key, size in self._sizes.items() if not key.expired()}
        self.bytes = max(self.bytes, sum(self._sizes.values()))
        return result


@pytest.mark.parametrize("net", NETS.values(), ids=NETS.keys())
@torch.no_grad()
def test_executed_blocks_hold_no_more_memory_than_dense_ones(
    net: GatedNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(skipnet, "LARGE", 0)
    images = random_images(96)
    features = images[:, :1].numel() * 4 * 4  # bytes of the first stage's, of four channels
    with Peak() as dense:
        net.backbone(images)
    assert dense.bytes == 3 * features  # a block's hidden features are dropped once they are read
    for seed in range(3):
        with Peak() as executed:
            net(images, random_decisions(len(images), net.num_gates, seed), "executed")
        assert executed.bytes <= 3.05 * features  # pooled features, gates and indices are small
