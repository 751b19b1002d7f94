"""Blending: lerp's values, exact gradients, nothing kept that is not needed, and no trouble with other tools."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from hybridprune.models.blend import Blend, blend

HARD, SOFT = [0.0, 1.0, 1.0, 0.0], [0.3, 0.9, 0.0, 0.5]
FORMATS = [torch.contiguous_format, torch.channels_last]


def ends(dtype: torch.dtype = torch.float64, memory_format: torch.memory_format = FORMATS[0]) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    both = torch.randn(2, 4, 3, 2, 2, generator=draw, dtype=dtype)
    skipped, executed = (each.contiguous(memory_format=memory_format).requires_grad_() for each in both)
    return skipped, executed


def lerp(skipped: Tensor, executed: Tensor, decision: Tensor) -> Tensor:
    return torch.lerp(skipped, executed, decision.to(skipped.dtype).view(-1, 1, 1, 1))


@pytest.mark.parametrize("needed", [(1, 1, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (0, 0, 1), (1, 0, 0), (0, 1, 0)])
@pytest.mark.parametrize("decided", [HARD, SOFT])
def test_first_and_second_derivatives(decided: list[float], needed: tuple[int, int, int]) -> None:
    inputs = [*ends(), torch.tensor(decided, dtype=torch.float64)]
    inputs = [each.detach().requires_grad_(bool(need)) for each, need in zip(inputs, needed, strict=True)]
    assert torch.autograd.gradcheck(blend, inputs)
    assert torch.autograd.gradgradcheck(blend, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("decided", [HARD, SOFT])
@pytest.mark.parametrize("grad", [True, False])
def test_values_gradients_and_layout_are_those_of_lerp(
    decided: list[float], memory_format: torch.memory_format, dtype: torch.dtype, grad: bool
) -> None:
    outputs, gradients = [], []
    for function in (blend, lerp):
        inputs = (*ends(dtype, memory_format), torch.tensor(decided, requires_grad=True))
        with torch.set_grad_enabled(grad):
            outputs.append(function(*inputs))
        if grad:
            outputs[-1].square().sum().backward()
            gradients.append([each.grad for each in inputs])
    assert torch.equal(*outputs) and outputs[0].requires_grad == grad
    assert outputs[0].dtype == dtype and outputs[0].is_contiguous(memory_format=memory_format)
    if grad:
        for own, expected in zip(*gradients, strict=True):
            assert own is not None and expected is not None and own.dtype == expected.dtype
            torch.testing.assert_close(own, expected)
        for own in gradients[0][:2]:
            assert own is not None and own.is_contiguous(memory_format=memory_format)


def test_at_0_and_1_it_is_the_one_or_the_other_in_both_directions() -> None:
    skipped, executed = ends(torch.float32)
    output = blend(skipped, executed, torch.tensor(HARD))
    assert torch.equal(output, torch.stack([skipped[0], executed[1], executed[2], skipped[3]]))
    output.sum().backward()
    assert skipped.grad is not None and executed.grad is not None
    assert skipped.grad[:, 0, 0, 0].tolist() == [1, 0, 0, 1] and executed.grad[:, 0, 0, 0].tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("function", [blend, lerp])
@pytest.mark.parametrize(("learns", "kept"), [(True, [4, 48, 48]), (False, [4])])
def test_features_are_kept_for_decisions_that_learn_only(function: Any, learns: bool, kept: list[int]) -> None:
    decision = torch.tensor(SOFT, dtype=torch.float64, requires_grad=learns)
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = function(*ends(), decision)
    assert sorted(sizes) == kept
    output.sum().backward()
    assert (decision.grad is not None) == learns


def test_under_autocast_the_gates_fp32_decision_meets_bf16_features() -> None:
    found = []
    for function in (blend, lerp):
        torch.manual_seed(0)
        convolution = torch.nn.Conv2d(3, 3, 1)
        logit = torch.tensor(SOFT, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            skipped = convolution(ends(torch.float32)[0])
            output = function(skipped, skipped.relu(), logit)
            loss = output.float().square().sum()
            loss.backward()  # even here, where products of matrices would be rounded
        assert output.dtype == torch.bfloat16 and convolution.weight.grad is not None and logit.grad is not None
        assert convolution.weight.grad.dtype == logit.grad.dtype == torch.float32
        found.append((output, logit.grad, convolution.weight.grad))
    torch.testing.assert_close(*found, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("shape", [(4, 1), (1,), (2,), ()])
def test_decisions_do_not_broadcast(shape: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError):
        blend(*ends(), torch.ones(shape))


def test_neither_do_features() -> None:
    skipped, executed = ends()
    with pytest.raises(AssertionError):
        blend(skipped[:, :1], executed, torch.tensor(SOFT))


def test_gradients_of_each_of_many_by_vmap() -> None:
    skipped, executed = (each.detach() for each in ends())
    decisions = torch.tensor([HARD, SOFT], dtype=torch.float64)

    def loss(skipped: Tensor, executed: Tensor, decision: Tensor) -> Tensor:
        return blend(skipped, executed, decision).pow(3).sum()

    together = torch.func.vmap(torch.func.grad(loss, (0, 1, 2)), (None, None, 0))(skipped, executed, decisions)
    for index, decision in enumerate(decisions):
        alone = [each.clone().requires_grad_() for each in (skipped, executed, decision)]
        expected = torch.autograd.grad(lerp(*alone).pow(3).sum(), alone)
        torch.testing.assert_close(tuple(each[index] for each in together), expected)


def test_exporters_and_plain_evaluation_see_lerp(monkeypatch: pytest.MonkeyPatch) -> None:
    class Blends(torch.nn.Module):
        def forward(self, skipped: Tensor, executed: Tensor, decision: Tensor) -> Tensor:
            return blend(skipped, executed, decision)

    skipped, executed = (each.detach() for each in ends())
    inputs = skipped, executed, torch.tensor(SOFT)
    program = torch.export.export(Blends(), inputs)
    targets = [str(node.target) for node in program.graph.nodes]
    assert "aten.lerp.Tensor" in targets and not any("autograd" in target for target in targets)
    assert torch.equal(program.module()(*inputs), lerp(*inputs))
    applied: list[str] = []
    monkeypatch.setattr(Blend, "apply", lambda *args: applied.append("Blend") or lerp(*args))
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert torch.equal(blend(*inputs), lerp(*inputs))
    assert not applied
    blend(*inputs)
    assert applied


def test_compilers_see_lerp_without_a_break(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybridprune.models.blend.Blend", None)  # is not even named
    compiled = torch.compile(blend, backend="aot_eager", fullgraph=True)
    inputs = (*ends(), torch.tensor(SOFT, dtype=torch.float64, requires_grad=True))
    output = compiled(*inputs)
    assert torch.equal(output, lerp(*inputs))
    expected = torch.autograd.grad(lerp(*inputs).square().sum(), inputs)
    torch.testing.assert_close(torch.autograd.grad(output.square().sum(), inputs), expected)
