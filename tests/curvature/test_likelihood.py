"""Losses and sampled targets of every likelihood against per-image gradients and Gauss-Newton matrices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridprune.batch import Batch
from hybridprune.curvature import LayerFactors, Likelihood, collect_factors, likelihood_of
from hybridprune.errors import RunFailed, UserError


def net(head: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 2), nn.Tanh(), head).double().eval()


class Pooled(nn.Module):
    """One output vector ``[B, n]``, or numbers ``[B]``."""

    def __init__(self, outputs: int, flat: bool = False) -> None:
        super().__init__()
        self.linear, self.flat = nn.Linear(3, outputs), flat

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x.mean((2, 3)))
        return y.squeeze(1) if self.flat else y


@dataclass(frozen=True)
class Case:
    loss: str
    head: Callable[[], nn.Module]
    targets: Callable[[torch.Generator], Tensor]
    """Of 5 images."""
    reference: Callable[[Tensor, Tensor], Tensor]
    """Torch's function."""


def ids(*shape: int, classes: int) -> Callable[[torch.Generator], Tensor]:
    return lambda draw: torch.randint(classes, (5, *shape), generator=draw)


def numbers(*shape: int) -> Callable[[torch.Generator], Tensor]:
    return lambda draw: torch.randn(5, *shape, generator=draw, dtype=torch.float64)


bce, ce, mse = F.binary_cross_entropy_with_logits, F.cross_entropy, F.mse_loss
CASES = {
    "classes": Case("cross_entropy", lambda: Pooled(4), ids(classes=4), ce),
    "classes, [B, 1]": Case("cross_entropy", lambda: Pooled(4), ids(1, classes=4), lambda y, t: ce(y, t.squeeze(1))),
    "segmentation": Case("cross_entropy", lambda: nn.Conv2d(3, 4, 1), ids(2, 3, classes=4), ce),
    "binary, [B]": Case("bce", lambda: Pooled(1, flat=True), ids(classes=2), lambda y, t: bce(y, t.double())),
    "binary, [B, 1]": Case("bce", lambda: Pooled(1), ids(classes=2), lambda y, t: bce(y, t.double()[:, None])),
    "multi-label": Case("bce", lambda: Pooled(4), ids(4, classes=2), lambda y, t: bce(y, t.double())),
    "regression, [B]": Case("mse", lambda: Pooled(1), numbers(), lambda y, t: mse(y, t[:, None])),
    "regression": Case("mse", lambda: Pooled(3), numbers(3), mse),
    "dense regression": Case("mse", lambda: nn.Conv2d(3, 2, 1), numbers(2, 2, 3), mse),
}


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def built(name: str) -> tuple[nn.Module, Tensor, Tensor, Likelihood, Case]:
    case, draw = CASES[name], torch.Generator().manual_seed(1)
    images = torch.randn(5, 2, 3, 4, generator=draw, dtype=torch.float64)
    return net(case.head()), images, case.targets(draw), likelihood_of(case.loss), case


@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_torchs(name: str) -> None:
    model, images, targets, likelihood, case = built(name)
    output = model(images)
    likelihood.check(output.shape, targets)
    torch.testing.assert_close(likelihood.loss(output, targets), case.reference(output, targets))


@pytest.mark.parametrize("name", CASES)
def test_the_given_targets_curvature_is_that_of_per_image_gradients(name: str) -> None:
    model, images, targets, likelihood, case = built(name)
    layers = layers_of(model)
    batches = [Batch(images[:3], targets[:3]), Batch(images[3:], targets[3:])]
    found = traces_of(model, batches, "exp", likelihood)
    for layer, module in layers.items():
        weight = module.get_parameter("weight")
        gradients = [
            torch.autograd.grad(case.reference(model(images[n : n + 1]), targets[n : n + 1]), weight)[0]
            for n in range(5)
        ]
        expected = sum(float(g.square().sum()) for g in gradients) / 5
        assert found[layer] == pytest.approx(expected, rel=1e-9), layer


def traces_of(model: nn.Module, batches: list[Batch], fisher_type: str, likelihood: Likelihood) -> dict[str, float]:
    """Mean over images of the squared norm of each layer's gradients."""
    found: dict[str, LayerFactors] = collect_factors(
        model,
        layers_of(model),
        batches,
        fisher_type=fisher_type,
        moving_average=0.0,
        seed=0,
        likelihood=likelihood,
        traced_images=sum(len(batch.images) for batch in batches),
    )
    return {name: layer.trace.value for name, layer in found.items() if layer.trace is not None}


def gauss_newton_traces(model: nn.Module, images: Tensor, targets: Tensor, case: Case) -> dict[str, float]:
    """Mean over images of ``tr J^T H J`` with H the Hessian of the image's own loss in its output."""
    traces = dict.fromkeys(layers_of(model), 0.0)
    for n in range(len(images)):
        target = targets[n : n + 1]
        output = model(images[n : n + 1])

        def loss(flat: Tensor, output: Tensor = output, target: Tensor = target) -> Tensor:
            return case.reference(flat.view_as(output), target)

        hessian = torch.autograd.functional.hessian(loss, output.detach().flatten())
        assert isinstance(hessian, Tensor)
        for layer, module in layers_of(model).items():
            weight = module.get_parameter("weight")
            rows = [torch.autograd.grad(y, weight, retain_graph=True)[0].flatten() for y in output.flatten()]
            jacobian = torch.stack(rows)
            traces[layer] += float((jacobian * (hessian @ jacobian)).sum()) / len(images)
    return traces


@pytest.mark.parametrize("name", CASES)
def test_sampled_targets_have_the_losss_gauss_newton_matrix_on_average(name: str) -> None:
    model, images, targets, likelihood, case = built(name)
    layers, copies = layers_of(model), 1500
    batch = Batch(images.repeat(copies, 1, 1, 1), targets.repeat(copies, *[1] * (targets.ndim - 1)))
    found = traces_of(model, [batch], "true", likelihood)
    expected = gauss_newton_traces(model, images, targets, case)
    for layer in layers:
        assert found[layer] == pytest.approx(expected[layer], rel=0.05), layer


@pytest.mark.parametrize("fisher_type", ["true", "exp"])
def test_ignored_positions_have_neither_a_loss_nor_a_curvature(fisher_type: str) -> None:
    """Images with fewer counted positions count less, as they do in training."""
    model, images, targets, likelihood, _ = built("segmentation")
    targets[0] = -100
    targets[1, 0] = -100
    output = model(images)
    likelihood.check(output.shape, targets)
    torch.testing.assert_close(likelihood.loss(output, targets), ce(output, targets))
    sampled = likelihood.sampled(output, targets, torch.Generator())
    assert sampled is not None
    (g,) = torch.autograd.grad(sampled if fisher_type == "true" else ce(output, targets), output)
    assert not g[0].any() and not g[1, :, 0].any() and bool(g[1, :, 1].any(0).all()) and bool(g[2:].any(1).all())
    # Every counted position has the same share of the mean loss: sqrt(N / B) / N of the sampled one.
    counted = int((targets != -100).sum())
    scale = (counted / 5) ** 0.5 if fisher_type == "true" else 1.0
    position = g[2, :, 0, 0] * counted / scale
    residual = output[2, :, 0, 0].softmax(0) - position
    assert sorted(residual.detach().abs().round(decimals=6).tolist()) == [0, 0, 0, 1]


def test_a_function_gets_the_output_as_it_is_and_its_own_gradients_count() -> None:
    model, images, targets, _, case = built("multi-label")

    def loss(output: dict[str, Tensor], batch: dict[str, Any]) -> Tensor:
        return case.reference(output["logits"], batch["marks"])

    batches = [Batch(images, {"marks": targets})]
    common: dict[str, Any] = {"layers": layers_of(model), "moving_average": 0.0, "seed": 0}
    for fisher_type in ("true", "exp"):  # there is nothing to draw from
        found = collect_factors(
            lambda x: {"logits": model(x)},
            batches=batches, fisher_type=fisher_type, likelihood=likelihood_of(loss), **common,
        )  # fmt: skip
        given = collect_factors(
            model, batches=[Batch(images, targets)], fisher_type="exp", likelihood=likelihood_of("bce"), **common
        )
        for name, factors in given.items():
            torch.testing.assert_close(found[name].gradient_factor, factors.gradient_factor)


@pytest.mark.parametrize(
    ("loss", "shape", "targets", "message"),
    [
        ("cross_entropy", (4, 3), torch.tensor([0, 1, 2, 3]), "class id 3 with 3 outputs"),
        ("cross_entropy", (4, 3), torch.tensor([0, 1, 2, 255], dtype=torch.uint8), "class id 255 with 3 outputs"),
        ("cross_entropy", (4, 3), torch.tensor([0, -1, 2, 2]), "class id -1"),
        ("cross_entropy", (4, 3), torch.tensor([0.0, 1, 2, 2]), r"targets\.long\(\)"),
        ("cross_entropy", (4, 3), torch.ones(4, 3), "loss='bce'"),
        ("cross_entropy", (4, 3), torch.ones(4, 3, dtype=torch.int32), "loss='bce'"),
        ("cross_entropy", (4, 3), torch.tensor([0, 1]), r"need class ids \[4\], and the targets are int64 \[2\]"),
        ("cross_entropy", (4, 1), torch.tensor([0, 0, 0, 0]), "loss='bce'"),
        ("cross_entropy", (4,), torch.tensor([0, 0, 0, 0]), "loss='mse'"),
        ("cross_entropy", (4, 3, 5, 5), torch.zeros(4, 10, 10, dtype=torch.int64), r"need class ids \[4, 5, 5\]"),
        ("cross_entropy", (4, 3), [0, 1, 2, 0], "the targets are a list"),
        ("cross_entropy", None, torch.tensor([0]), "forward="),
        ("bce", (4, 3), torch.tensor([0, 1, 2, 2]), "loss='cross_entropy'"),
        ("bce", (4,), torch.tensor([0, 1, 2, 1]), "target 2; give numbers from 0 to 1"),
        ("bce", (4,), torch.tensor([0.0, 1, float("nan"), 1]), "target nan"),
        ("mse", (4, 1), torch.ones(4, 4), r"outputs \[4, 1\] need a target each, and the targets are float32 \[4, 4\]"),
        ("mse", (4, 1), torch.tensor([0.0, 1, float("inf"), 1]), "not finite"),
        ("mse", (4,), None, "the targets are a NoneType"),
    ],
)  # fmt: skip
def test_targets_that_do_not_fit_are_refused(
    loss: str, shape: tuple[int, ...] | None, targets: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        likelihood_of(loss).check(None if shape is None else torch.Size(shape), targets)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool], ids=str)
def test_class_ids_may_be_integers_of_any_size(dtype: torch.dtype) -> None:
    likelihood, logits = likelihood_of("cross_entropy"), torch.randn(4, 3)
    targets = torch.tensor([0, 1, 1, 0])
    likelihood.check(logits.shape, targets.to(dtype))
    assert likelihood.loss(logits, targets.to(dtype)).equal(ce(logits, targets))
    sampled = [likelihood.sampled(logits, t, torch.Generator().manual_seed(0)) for t in (targets, targets.to(dtype))]
    assert sampled[0] is not None and sampled[1] is not None and sampled[0].equal(sampled[1])


def test_a_loss_is_a_name_or_a_function_of_one_number() -> None:
    with pytest.raises(UserError, match=r"loss 'hinge': give one of cross_entropy, bce, mse, or a function"):
        likelihood_of("hinge")
    wrongs: list[Any] = [torch.zeros(2), 0.5, None]
    for wrong in wrongs:
        with pytest.raises(UserError, match="return the mean over the images"):
            likelihood_of(lambda output, batch: output).loss(wrong, None)
    with pytest.raises(UserError, match="kd_weight"):
        likelihood_of(lambda output, batch: torch.zeros(())).divergence(None, None, 1.0)


@pytest.mark.parametrize("name", CASES)
def test_divergences_by_hand(name: str) -> None:
    model, images, _, likelihood, case = built(name)
    teacher, student, temperature = model(images).detach(), model(images.flip(0)).detach(), 3.0
    found = likelihood.divergence(student, teacher, temperature).item()
    if case.loss == "mse":
        expected = (student - teacher).square().mean().item()
    else:
        if case.loss == "bce":
            teacher, student = (torch.stack([x, torch.zeros_like(x)], 1) for x in (teacher, student))
        p, q = ((x / temperature).softmax(1) for x in (teacher, student))
        expected = temperature**2 * (p * (p / q).log()).sum(1).mean().item()
    assert found == pytest.approx(expected, rel=1e-4) and found > 0
    assert likelihood.divergence(teacher, teacher, temperature).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("fisher_type", ["true", "exp"])
def test_an_image_that_is_no_number_ends_the_pass_and_is_told(fisher_type: str) -> None:
    model, images, targets, likelihood, _ = built("classes")
    broken = images.clone()
    broken[2, 0, 1, 1] = float("nan")
    batches = [Batch(images, targets), Batch(broken, targets)]
    with pytest.raises(RunFailed, match="batch 2 is not finite"):
        collect_factors(
            model, layers_of(model), batches, fisher_type=fisher_type, moving_average=0.0, seed=0, likelihood=likelihood
        )
