"""The distillation loss against KL divergences by hand, and a teacher that nothing moves."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridprune.data import Batch
from hybridprune.engine.distill import Distillation, plainly
from hybridprune.engine.objective import Supervised
from hybridprune.measure.cost import count
from hybridprune.precision import Precision
from tests.networks_and_images import random_images, random_net

CPU = torch.device("cpu")
BATCH = Batch(random_images(6), torch.arange(6) % 5, torch.arange(6))


class Fixed(nn.Module):
    """Gives the same logits whatever the images."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.register_buffer("logits", logits)

    def forward(self, images: Tensor) -> Tensor:
        return self.get_buffer("logits")


def distillation_of(net: nn.Module, weight: float, temperature: float) -> Distillation:
    found = Distillation.of(net, weight, temperature)
    assert found is not None
    return found


def random_logits(seed: int, images: int = 6, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(images, 5, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_image_by_image_by_hand(weight: float, temperature: float) -> None:
    teacher, student, cross_entropy = random_logits(0), random_logits(1), torch.tensor(1.7)
    loss, divergence = distillation_of(Fixed(teacher), weight, temperature)(BATCH.images, student, cross_entropy)
    by_hand = []
    for t, s in zip(teacher.double(), student.double(), strict=True):
        p, q = (t / temperature).softmax(0), (s / temperature).softmax(0)
        assert (p * (p / q).log()).sum().item() == pytest.approx(F.kl_div(q.log(), p, reduction="sum").item())
        by_hand.append((p * (p.log() - q.log())).sum().item())
    expected = temperature**2 * sum(by_hand) / 6
    assert divergence.item() == pytest.approx(expected, rel=1e-5)
    assert loss.item() == pytest.approx((1 - weight) * 1.7 + weight * expected, rel=1e-5)


def test_gradient_is_t_times_the_difference_of_the_tempered_probabilities() -> None:
    teacher, student = random_logits(0), random_logits(1).requires_grad_()
    for temperature in (1.0, 5.0):
        loss, _ = distillation_of(Fixed(teacher), 1.0, temperature)(BATCH.images, student, torch.tensor(0.0))
        (gradient,) = torch.autograd.grad(loss, student)
        difference = (student.detach() / temperature).softmax(1) - (teacher / temperature).softmax(1)
        torch.testing.assert_close(gradient, temperature * difference / 6)


def test_at_high_temperature_the_gradient_is_that_of_centred_logits() -> None:
    """Hinton et al. 2015, equation 4, times T^2: ``(z - v) / classes`` for zero-mean logits, whatever T is."""
    teacher, student = (random_logits(seed, scale=1.0) for seed in (0, 1))
    teacher, student = teacher - teacher.mean(1, keepdim=True), student - student.mean(1, keepdim=True)
    student.requires_grad_()
    for temperature in (300.0, 1000.0):
        loss, _ = distillation_of(Fixed(teacher), 1.0, temperature)(BATCH.images, student, torch.tensor(0.0))
        (gradient,) = torch.autograd.grad(loss, student)
        torch.testing.assert_close(gradient, (student.detach() - teacher) / 5 / 6, rtol=0.03, atol=1e-4)


def test_a_student_that_is_its_teacher_has_nothing_to_learn() -> None:
    net = random_net()
    logits = net.backbone(BATCH.images)
    loss, _ = distillation_of(net, 1.0, 4.0)(BATCH.images, logits, F.cross_entropy(logits, BATCH.labels))
    gradients = torch.autograd.grad(loss, list(net.backbone.parameters()))
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert max(gradient.abs().max() for gradient in gradients) < 1e-5


@torch.no_grad()
def test_the_teacher_executes_every_block_in_eval_mode_and_is_a_copy() -> None:
    net = random_net()
    expected = net(BATCH.images, torch.ones(6, net.num_gates)).logits
    net.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    distillation = distillation_of(net, 0.5, 4.0)
    assert all(module.training for module in net.modules())
    assert all(parameter.requires_grad for parameter in net.parameters())
    for parameter in net.parameters():
        parameter.zero_()
    torch.testing.assert_close(distillation.teacher(BATCH.images), expected, rtol=1e-4, atol=1e-5)
    weight = distillation.teacher.get_parameter("blocks.0.conv1.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def test_steps_leave_the_teacher_alone() -> None:
    distillation = distillation_of(random_net(seed=1), 0.5, 4.0)
    before = {name: value.clone() for name, value in distillation.teacher.state_dict().items()}
    student = random_net(seed=0).train()
    objective = Supervised.of(count(student, 8), 0.1, CPU, distillation)
    start = student.backbone.conv.weight.detach().clone()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        objective(student, BATCH, 0)[0].backward()
        optimizer.step()
    teacher = distillation.teacher
    assert not torch.equal(student.backbone.conv.weight, start)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
    assert objective.state_dict() == {}


def test_the_teacher_runs_in_the_precision_of_the_students_passes() -> None:
    dtypes: list[torch.dtype] = []
    distillation = Distillation.of(random_net(8), 0.5, 4.0, forward=Precision("cpu", torch.bfloat16)(plainly))
    assert distillation is not None
    distillation.teacher.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    loss, divergence = distillation(BATCH.images, random_logits(1), torch.tensor(0.0))
    assert dtypes == [torch.bfloat16]
    assert loss.dtype == divergence.dtype == torch.float32


def test_weight_zero_keeps_no_teacher() -> None:
    assert Distillation.of(random_net(8), 0.0, 4.0) is None
