"""Fine-tuning a plain module: the steps taken, and what is left as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from hybridprune.batch import Batch
from hybridprune.engine.finetune import finetune
from hybridprune.errors import RunFailed, UserError
from tests.networks_and_images import random_images

CPU = torch.device("cpu")
LR = 0.1
PAIRS = list(zip(random_images(40).split(4), (torch.arange(40) % 5).split(4), strict=True))
LOADER = [Batch(*pair) for pair in PAIRS]


def build(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))


def tuned(loader: Any = LOADER, model: nn.Module | None = None, epochs: float = 1.0, **options: Any) -> nn.Module:
    model = build() if model is None else model
    finetune(model, loader, epochs=epochs, lr=LR, device=CPU, **options)
    return model


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    for (name, value), (_, twin) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        torch.testing.assert_close(value, twin, rtol=1e-5, atol=1e-6, msg=name)


def test_the_steps_are_sgd_with_nesterov_momentum_warm_up_and_decay() -> None:
    reference = build().train()
    buffers = [torch.zeros_like(p) for p in reference.parameters()]
    for step, (images, labels) in enumerate(PAIRS + PAIRS):  # 20 steps, the first 2 of them the warm-up
        lr = LR * min((step + 0.5) / 2, (20 - step - 0.5) / 18)
        gradients = torch.autograd.grad(F.cross_entropy(reference(images), labels), list(reference.parameters()))
        with torch.no_grad():
            for i, (p, gradient) in enumerate(zip(reference.parameters(), gradients, strict=True)):
                decayed = gradient + 5e-4 * p
                buffers[i] = 0.9 * buffers[i] + decayed
                p -= lr * (decayed + 0.9 * buffers[i])
    assert_equal(tuned(model=build().eval(), epochs=2), reference)


@pytest.mark.parametrize(
    ("epochs", "steps"), [(0.0, 0), (0.5, 5), (1.0, 10), (1.26, 13), (0.01, 1), (2.0, 20), (1.1, 11)]
)
def test_fractions_of_an_epoch(epochs: float, steps: int) -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 5)
            self.seen: list[Tensor] = []

        def forward(self, images: Tensor) -> Tensor:
            self.seen.append(images)
            return self.layer(images.mean((2, 3)))

    model = Counted()
    before = model.layer.weight.detach().clone()
    tuned(model=model, epochs=epochs)
    expected = [images for images, _ in PAIRS + PAIRS][:steps]
    assert len(model.seen) == steps
    assert all(torch.equal(*pair) for pair in zip(model.seen, expected, strict=True))
    assert torch.equal(model.layer.weight, before) == (steps == 0)


def together(items: list[tuple[Tensor, Tensor]]) -> Batch:
    images, labels = zip(*items, strict=True)
    return Batch(torch.stack(images), torch.stack(labels))


def test_it_learns_from_a_data_loader() -> None:
    images, labels = torch.cat([x for x, _ in PAIRS]), torch.cat([y for _, y in PAIRS])
    model = build().eval()
    before = F.cross_entropy(model(images), labels).item()
    tuned(DataLoader(TensorDataset(images, labels), batch_size=8, collate_fn=together), model, epochs=10)
    assert F.cross_entropy(model(images), labels).item() < 0.5 * before


def test_equal_calls_are_bit_identical() -> None:
    one, other = tuned().state_dict(), tuned().state_dict()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("training", [True, False])
def test_modes_and_gradients_are_left_as_they_were(training: bool) -> None:
    model = build().train(training)
    model[1].train(not training)
    tuned(model=model, frozen=["0.weight"])
    assert [module.training for module in model] == [training, not training, training, training, training]
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_frozen_parameters_neither_learn_nor_decay() -> None:
    before, model = dict(build().named_parameters()), tuned(frozen=["0.weight", "4.bias"])
    same = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert same == {"0.weight", "4.bias"}


def test_a_model_that_is_its_teachers_twin_learns_nothing_from_it_alone() -> None:
    # In eval mode like its teacher: without BatchNorm the modes do not differ.
    def plain() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 5))

    options: dict[str, Any] = {"teacher": plain().train(), "kd_weight": 1.0, "weight_decay": 0.0}
    assert_equal(tuned(model=plain(), **options), plain())
    moved = tuned(model=plain(), **{**options, "kd_weight": 0.5})
    assert not torch.allclose(moved.state_dict()["1.weight"], plain().state_dict()["1.weight"], rtol=1e-3)


def test_the_teacher_pulls_and_is_left_alone() -> None:
    teacher = tuned(model=build(1), epochs=5).train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    images = torch.cat([x for x, _ in PAIRS])
    taught = tuned(epochs=5, teacher=teacher, kd_weight=1.0, kd_temperature=2.0)
    assert teacher.training and all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    with torch.no_grad():
        target = teacher.eval()(images).softmax(1)
        distances = [(model.eval()(images).softmax(1) - target).abs().mean() for model in (build(), taught)]
    assert distances[1] < 0.5 * distances[0]


def test_weight_zero_never_runs_the_teacher() -> None:
    teacher = build(1)
    teacher.register_forward_hook(lambda module, args, output: pytest.fail("the teacher ran"))
    assert_equal(tuned(teacher=teacher), tuned())


def test_another_schedule_and_a_look_after_each_pass() -> None:
    """One rate throughout, and weights read after each pass; half a pass is none."""
    asked: list[float] = []
    seen: list[tuple[int, float, torch.Tensor]] = []
    model = build().eval()

    def constant(share: float) -> float:
        asked.append(share)
        return 0.5

    def look(epoch: int, loss: float) -> None:
        seen.append((epoch, loss, model.state_dict()["4.weight"].clone()))
        model.eval()  # undone for the next pass

    tuned(model=model, epochs=2.5, schedule=constant, after_epoch=look)
    assert asked == pytest.approx([(step + 0.5) / 25 for step in range(25)])
    reference = build().train()
    optimizer = torch.optim.SGD(reference.parameters(), 0.5 * LR, 0.9, weight_decay=5e-4, nesterov=True)
    for number, (epoch, loss, weight) in enumerate(seen, start=1):
        losses = []
        for images, labels in PAIRS:
            optimizer.zero_grad()
            cross_entropy = F.cross_entropy(reference(images), labels)
            cross_entropy.backward()
            optimizer.step()
            losses.append(cross_entropy.item())
        assert epoch == number and loss == pytest.approx(sum(losses) / 10, rel=1e-4)
        torch.testing.assert_close(weight, reference.state_dict()["4.weight"], rtol=1e-4, atol=1e-5)
    assert len(seen) == 2 and not model.training


def test_user_errors() -> None:
    model = build()
    with pytest.raises(UserError, match=r"kd_weight 0\.5: needs a teacher"):
        tuned(kd_weight=0.5)
    with pytest.raises(UserError, match="other than the model"):
        tuned(model=model, teacher=model, kd_weight=0.5)
    with pytest.raises(UserError, match=r"kd_weight 1\.5"):
        tuned(teacher=model, kd_weight=1.5)
    with pytest.raises(UserError, match="kd_temperature 0"):
        tuned(teacher=model, kd_weight=0.5, kd_temperature=0)
    with pytest.raises(UserError, match="no length"):
        tuned(iter(LOADER))
    with pytest.raises(UserError, match="no batches"):
        tuned([])


def test_a_loss_that_is_not_finite_fails_and_restores_the_modes() -> None:
    model = build().eval()
    with pytest.raises(RunFailed, match=r"not finite at epoch 1, step 10; .* \(now 0\.1\)"):
        tuned([Batch(images * float("nan"), labels) for images, labels in PAIRS], model, frozen=["0.weight"])
    assert not model.training and all(p.requires_grad for p in model.parameters())


def test_bfloat16_follows_single_precision() -> None:
    """Casts of weights must not outlive the step: training on stale ones would go elsewhere."""
    start, single = build(), tuned(epochs=2)
    half = tuned(epochs=2, precision=torch.bfloat16)
    moved = torch.cat([(a - b).flatten() for a, b in zip(single.parameters(), start.parameters(), strict=True)])
    apart = torch.cat([(a - b).flatten() for a, b in zip(single.parameters(), half.parameters(), strict=True)])
    assert 0 < apart.norm() < 0.1 * moved.norm()


def test_batchnorm_is_at_rest_in_a_batch_of_one_image() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3))
    batches = [Batch(random_images(count), torch.arange(count) % 3) for count in (6, 1)]
    norm, weight = model[1], model.get_parameter("0.weight")
    before = weight.detach().clone()
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None
    tuned(batches[1:], model)
    assert bool((norm.running_mean == 0).all()) and not torch.equal(weight, before)
    tuned(batches, model)
    assert norm.num_batches_tracked == 1 and norm.training


class Checkpointed(nn.Module):
    """Runs its BatchNorm once more in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first, self.reentrant = nn.Linear(6, 8), reentrant
        self.inner, self.head = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 8)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.inner, self.first(x), use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_batch_of_one_image_may_be_checkpointed(reentrant: bool) -> None:
    torch.manual_seed(0)
    model = Checkpointed(reentrant).train()
    batches = [Batch(torch.randn(count, 6), torch.arange(count) % 3) for count in (1, 5)]
    tuned(batches[:1], model)
    norm = model.inner[0]
    assert isinstance(norm, nn.BatchNorm1d) and norm.num_batches_tracked == 0 and norm.training
    tuned(batches, model)
    assert norm.num_batches_tracked in (1, 2)
