"""ShakeDrop: its distribution in training, its expectation in eval mode, its reproducible stream."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from hybridprune.models.shakedrop import ShakeDrop
from tests.devices.claimed import claimed_cuda


def scales(drop: float, images: int = 20_000) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale of the branch and of its gradient, for each image."""
    torch.manual_seed(0)
    x = torch.ones(images, 2, 1, 1, requires_grad=True)
    y = ShakeDrop(drop).train()(x)
    y.sum().backward()
    assert x.grad is not None
    for tensor in (y, x.grad):
        assert torch.equal(tensor[:, 0], tensor[:, 1])  # one draw an image
    return y.detach()[:, 0, 0, 0], x.grad[:, 0, 0, 0]


@pytest.mark.parametrize("drop", [0.1, 0.5, 0.9])
def test_training_statistics(drop: float) -> None:
    forward, backward = scales(drop)
    kept = forward == 1
    assert torch.equal(kept, backward == 1)
    assert kept.float().mean().item() == pytest.approx(1 - drop, abs=0.015)
    alpha, beta = forward[~kept], backward[~kept]
    assert -1 <= alpha.min() < -0.98 and 0.98 < alpha.max() < 1
    assert 0 <= beta.min() < 0.02 and 0.98 < beta.max() < 1
    assert alpha.mean().item() == pytest.approx(0, abs=0.05) and alpha.var().item() == pytest.approx(1 / 3, abs=0.03)
    assert beta.mean().item() == pytest.approx(0.5, abs=0.03) and beta.var().item() == pytest.approx(1 / 12, abs=0.01)
    assert abs(torch.corrcoef(torch.stack([alpha, beta]))[0, 1].item()) < 0.08


@pytest.mark.parametrize("drop", [0.0, 0.3, 1.0])
def test_eval_mode_is_the_expectation(drop: float) -> None:
    x = torch.randn(3, 2, 4, 4)
    assert torch.equal(ShakeDrop(drop).eval()(x), x * (1 - drop))
    assert scales(drop)[0].mean().item() == pytest.approx(1 - drop, abs=0.02)


def test_eval_mode_takes_no_random_numbers() -> None:
    torch.manual_seed(0)
    module, x = ShakeDrop(0.5), torch.ones(64, 1, 1, 1)
    twin = copy.deepcopy(module)
    module.eval()(x)
    assert torch.equal(module.train()(x), twin.train()(x))


def test_the_stream_depends_on_the_seed_and_goes_on_after_loading() -> None:
    x = torch.ones(64, 1, 1, 1)
    torch.manual_seed(3)
    module = ShakeDrop(0.5).train()
    other = ShakeDrop(0.5).train()
    torch.manual_seed(3)
    again = ShakeDrop(0.5).train()
    first = module(x)
    assert torch.equal(again(x), first) and not torch.equal(other(x), first)
    state = module.state_dict()
    second = module(x)
    assert not torch.equal(second, first)
    global_state = torch.get_rng_state()
    other.load_state_dict(state)
    assert torch.equal(other(x), second)
    assert torch.equal(torch.get_rng_state(), global_state)


def test_it_draws_where_the_images_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn on the CPU and copied: a GPU would have to be waited for at every block."""
    rand, asked = torch.rand, []

    def noted(*size: int, **options: Any) -> torch.Tensor:
        asked.append(options["device"])
        return rand(*size, **options)

    monkeypatch.setattr(torch, "rand", noted)
    with claimed_cuda() as device:
        assert ShakeDrop(0.5)._draw(4, device).device == device
    assert asked == [device]


def test_a_compiled_network_draws_the_same_numbers() -> None:
    torch.manual_seed(0)
    module, x = ShakeDrop(0.5).train(), torch.ones(4, 2, 3, 3)
    compiled = torch.compile(copy.deepcopy(module), backend="eager")
    for _ in range(3):
        assert torch.equal(compiled(x), module(x))


def test_an_images_numbers_are_those_of_its_place_in_the_whole_batch() -> None:
    torch.manual_seed(0)
    module, x = ShakeDrop(0.5).train(), torch.ones(8, 1, 1, 1)
    parts = []
    for start in (0, 3):
        part = copy.deepcopy(module)
        part.within = start, 8
        parts.append(part(x[start : 3 if start == 0 else 8]))
    assert torch.equal(torch.cat(parts), module(x))


def test_numbers_on_the_cpu_are_what_they_were() -> None:
    """A run of an older version goes on with the same bits."""
    module = ShakeDrop(0.5).train()
    module.set_extra_state(torch.tensor([3, 5]))
    keep, alpha, _ = torch.rand(3, 4, generator=torch.Generator().manual_seed(8))
    scale = torch.where(keep >= 0.5, 1, 2 * alpha - 1)
    assert torch.equal(module(torch.ones(4, 1, 1, 1)).flatten(), scale)
