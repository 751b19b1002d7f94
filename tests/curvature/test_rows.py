"""Layers whose activations are not one map for each image: where the images are, and curvature against brute force."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridprune.batch import Batch
from hybridprune.curvature import Rows, collect_factors, collect_second_moments, eigenbasis, rows_of_images
from hybridprune.curvature.geometry import geometry_of
from tests.curvature.oracles import leaves, own_bases, per_image_gradients
from tests.curvature.test_factors import unfolded_input_factor

T, H, W = 4, 5, 3


class Folded(nn.Module):
    """Images ``[B, T, 3]``; two layers whose rows are laid out by a test, between others that mix an image's rows."""

    def __init__(self, there: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.layer, self.head = nn.Linear(3, 6), nn.Linear(6, 5), nn.Linear(5, 4)
        self.there, self.back = there, back

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).tanh()
        x = x + x.mean(1, keepdim=True)
        return self.head(self.back(self.layer(self.there(x)).tanh()).mean(1))


class Frames(nn.Module):
    """Videos ``[B, T, 3, H, W]`` whose frames are images to the convolutions, as in temporal shift networks."""

    def __init__(self, in_turn: bool = False) -> None:
        super().__init__()
        self.conv, self.strided = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, 2, 1, bias=False)
        self.head = nn.Linear(5, 4)
        self.in_turn = in_turn

    def forward(self, x: Tensor) -> Tensor:
        size = len(x)
        x = (x.transpose(0, 1) if self.in_turn else x).flatten(0, 1)
        x = self.strided(self.conv(x).tanh()).tanh().mean((2, 3))
        x = x.view(T, size, -1).mean(0) if self.in_turn else x.view(size, T, -1).mean(1)
        return self.head(x)


class Pixels(nn.Module):
    """A linear layer over ``[B, H, W, C]``, and one over windows folded into the batch ``[B nW, T, C]``."""

    def __init__(self) -> None:
        super().__init__()
        self.pixels, self.windows, self.head = nn.Linear(3, 6), nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        size = len(x)
        x = self.pixels(x).tanh()
        x = x + x.mean((1, 2), keepdim=True)
        x = self.windows(x.flatten(0, 1)).tanh()
        return self.head(x.view(size, -1, 5).mean(1))


def folded(there: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: Folded(there, back)


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str, Rows]] = {
    "tokens": (folded(lambda x: x, lambda y: y), (T, 3), "layer", Rows()),
    "tokens in the batch": (
        folded(lambda x: x.flatten(0, 1), lambda y: y.view(-1, T, 5)), (T, 3), "layer", Rows(0, T),
    ),
    "tokens in the batch, images in turn": (
        folded(lambda x: x.transpose(0, 1).flatten(0, 1), lambda y: y.view(T, -1, 5).transpose(0, 1)),
        (T, 3), "layer", Rows(0, T, in_turn=True),
    ),
    "sequence first": (
        folded(lambda x: x.transpose(0, 1), lambda y: y.transpose(0, 1)), (T, 3), "layer", Rows(1),
    ),
    "frames": (Frames, (T, 3, H, W), "conv", Rows(0, T)),
    "strided frames": (Frames, (T, 3, H, W), "strided", Rows(0, T)),
    "frames in turn": (lambda: Frames(True), (T, 3, H, W), "conv", Rows(0, T, in_turn=True)),
    "pixels": (Pixels, (H, W, 3), "pixels", Rows()),
    "windows": (Pixels, (H, W, 3), "windows", Rows(0, H)),
}  # fmt: skip


def rows_in(model: nn.Module, example: Any) -> dict[str, Rows]:
    return rows_of_images(model, example, leaves(model))


def case(name: str) -> tuple[nn.Module, Tensor, Tensor, str, Rows]:
    make, shape, layer, rows = CASES[name]
    torch.manual_seed(0)
    model = make().double().eval()
    return model, torch.randn(7, *shape, dtype=torch.float64), torch.randint(4, (7,)), layer, rows


@pytest.mark.parametrize("name", CASES)
def test_the_rows_of_images_are_found(name: str) -> None:
    model, images, _, layer, rows = case(name)
    assert rows_in(model, images[:1])[layer] == rows
    assert rows_in(model, images[:1]).keys() == leaves(model).keys()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("centred", [False, True])
def test_factors_and_moments_equal_those_of_one_pass_per_image(name: str, centred: bool) -> None:
    model, images, labels, layer, _ = case(name)
    module = model.get_submodule(layer)
    rows = rows_in(model, images[:1])
    batches = [Batch(images[at], labels[at]) for at in (slice(4), slice(4, 6), slice(6, None))]
    options: dict[str, Any] = {"fisher_type": "exp", "seed": 0, "rows": rows}
    factors = collect_factors(model, leaves(model), batches, moving_average=0.0, **options)

    inputs, gradients = [], []
    for image, label in zip(images, labels, strict=True):  # each alone, so all rows are its own
        seen: list[Tensor] = []
        hook = module.register_forward_hook(lambda m, args, y, seen=seen: seen.extend((args[0].detach(), y)))
        loss = F.cross_entropy(model(image[None]), label[None])
        hook.remove()
        inputs.append(seen[0])
        gradients.append(torch.autograd.grad(loss, seen[1])[0])
    found = factors[layer]
    if isinstance(module, nn.Conv2d):
        a = unfolded_input_factor(torch.cat(inputs), geometry_of(module))
        g = torch.cat(gradients).movedim(1, -1).flatten(0, -2)
    else:
        x = torch.cat([x.flatten(0, -2) for x in inputs])
        a, g = x.T @ x / len(x), torch.cat([g.flatten(0, -2) for g in gradients])
        torch.testing.assert_close(found.input_mean, x.mean(0))
    torch.testing.assert_close(found.input_factor, a)
    torch.testing.assert_close(found.gradient_factor, g.T @ g / len(g))
    assert found.positions * len(images) == len(g)

    bases, means = {}, None
    for each, layer_factors in factors.items():
        basis = eigenbasis(layer_factors.input_factor, layer_factors.gradient_factor)
        bases[each] = basis.q_out, basis.q_in, None
    if centred:
        means = {each: layer_factors.input_mean for each, layer_factors in factors.items()}
    for memory in (1, 2**28):
        moments = collect_second_moments(
            model, leaves(model), batches, bases=bases, means=means, memory=memory, **options
        )[layer]
        weight = module.get_parameter("weight")
        (dw,) = per_image_gradients(model, [weight], images, labels)
        if means is not None:
            sums = torch.stack(
                [g.movedim(1 if isinstance(module, nn.Conv2d) else -1, -1).flatten(0, -2).sum(0) for g in gradients]
            )
            shift = torch.einsum("no,i->noi", sums, means[layer])
            dw = dw - shift.view(*shift.shape, *(1,) * (dw.ndim - 3))
        rotated = torch.einsum("po,npi...,iq->noq...", bases[layer][0], dw, bases[layer][1])
        torch.testing.assert_close(moments.entries, rotated.square().mean(0))


class Table(nn.Module):
    """A layer that reads a table, the same for all images, one that reads a part of them, and a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.bias = nn.Parameter(torch.randn(1, T + 1, 2)), nn.Linear(2, 3)
        self.token, self.embed, self.some = nn.Parameter(torch.randn(1, 1, 3)), nn.Linear(3, 3), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), 1, 3), x], 1)
        x = self.embed(x.flatten(0, 1)).view(len(x), T + 1, 3) + self.bias(self.table)
        return self.some(x.mean(1))


def test_a_table_has_no_rows_of_images_and_class_tokens_do_not_matter() -> None:
    found = rows_in(Table().eval(), torch.randn(1, T, 3))
    assert found == {"embed": Rows(0, T + 1), "some": Rows()}


class Proud(nn.Module):
    """Refuses NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.folded = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        x = batch["x"]
        if not x.isfinite().all():
            raise ValueError("not finite")
        return self.folded(self.plain(x).flatten(0, 1))


def test_without_marks_only_a_row_for_each_image_is_believed() -> None:
    assert rows_in(Proud(), {"x": torch.randn(1, T, 3)}) == {"plain": Rows()}
    assert rows_in(nn.Sequential(nn.Embedding(9, 3), nn.Linear(3, 2)), torch.ones(1, 4, dtype=torch.long)) == {
        "1": Rows()
    }


class Mixing(nn.Module):
    """Takes the batch's mean from every image, as norms without running statistics do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.plain, self.folded = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.folded(self.plain(x - x.mean(0)).flatten(0, 1))


def test_where_images_mix_only_a_row_for_each_image_is_believed() -> None:
    assert rows_in(Mixing(), torch.randn(1, T, 3)) == {"first": Rows(), "plain": Rows()}


class Varying(nn.Module):
    """As many rows as there are objects in the images."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.objects = nn.Linear(3, 3), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.plain(x)
        picked = y.repeat_interleave(torch.arange(len(x)) % 2 + 1, 0)
        return self.objects(picked)[: len(x)]


def test_rows_that_are_not_those_of_a_batchs_images_are_not_measured() -> None:
    torch.manual_seed(0)
    model, batches = Varying(), [Batch(torch.randn(6, 3), torch.randint(4, (6,)))]
    options: dict[str, Any] = {"fisher_type": "exp", "seed": 0}
    assert collect_factors(model, leaves(model), batches, moving_average=0.0, **options).keys() == {"plain"}
    bases = own_bases(leaves(model))
    moments = collect_second_moments(model, leaves(model), batches, bases=bases, **options)
    assert moments["objects"].trace != moments["objects"].trace and moments["plain"].trace > 0


def test_the_network_is_left_as_it_was() -> None:
    model, images, *_ = case("frames")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows_in(model, images[:1])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
