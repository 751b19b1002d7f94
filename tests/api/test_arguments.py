"""What `prune` is given is looked at before anything is done."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import hybridprune
from hybridprune.errors import UserError

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"method": "magic"}, 'method "magic": must be one of'),
    ({"method": ()}, r"method \[\]: must be a text"),
    ({"target_flops": -1.0}, "target_flops -1.0: must be above 0"),
    ({"target_params": "0.5"}, 'target_params "0.5": must be a number'),
    ({"cut": {"method": "l1"}}, "cut .*must be an instance of CutOptions"),
    ({"curvature": {}}, "curvature .*must be an instance of CurvatureOptions"),
    ({"sparsity": 3}, "sparsity .*must be an instance of SparsityOptions"),
    ({"lr": "fast"}, 'lr "fast": must be a number'),
    ({"lr": float("nan")}, "lr NaN: must be finite"),
    ({"kd_weight": 1.5}, "kd_weight 1.5: must be at most 1"),
    ({"seed": -1}, "seed -1: must be at least 0"),
    ({"seed": 0.5}, "seed 0.5: must be a whole number"),
    ({"fine_tune": True}, "fine_tune True: give a number of epochs"),
    ({"fine_tune": 1e30}, r"fine_tune 1e\+30: give a number of epochs"),
    ({"loss": []}, r"loss \[\]: give one of"),
    ({"model": "resnet18"}, "model: is a str; give a torch.nn.Module"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG, ids=[message[:25] for _, message in WRONG])
def test_a_mistake_is_named(wrong: dict[str, Any], message: str) -> None:
    def never() -> Any:
        raise AssertionError("the loader was asked")
        yield

    given: dict[str, Any] = {"model": nn.Linear(4, 2), "train_loader": never(), "target_flops": 0.5, **wrong}
    with pytest.raises(UserError, match=f"^{message}") as refused:
        hybridprune.prune(**given)
    assert "\n" not in str(refused.value)


def test_numbers_of_numpy_and_whole_ones_are_numbers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3))
    data = [(torch.randn(6, 3, 2, 2), torch.arange(6) % 3)]
    plain = hybridprune.prune(model, data, target_flops=0.5, seed=3).spec
    numpy = pytest.importorskip("numpy")
    given = {"target_flops": numpy.float64(0.5), "seed": numpy.int64(3), "lr": 1, "kd_weight": 0}
    assert hybridprune.prune(model, data, **given).spec == plain
