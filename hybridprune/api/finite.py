# pyright: strict
"""The check that pruning has left a network finite."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hybridprune.errors import RunFailed


def check_finite(module: nn.Module, model: nn.Module) -> None:
    """RunFailed if a number of ``module`` is not finite where the ``model`` had none of that kind."""
    before = {name for name, value in model.state_dict().items() if not _finite(value)}
    for name, value in module.state_dict().items():
        if name not in before and not _finite(value):
            raise RunFailed(
                f"{name} of the pruned network is not finite; look for NaN in the images, or fine-tune at a lower lr"
            )


def _finite(value: Any) -> bool:
    return not isinstance(value, Tensor) or bool(value.isfinite().all())
