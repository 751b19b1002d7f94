"""Trainings that have gone astray, told by the validation losses of their epochs. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from hybridprune.errors import RunFailed


def check_losses(losses: Mapping[int, float | None], selected: int, remedy: str) -> str | None:
    """A warning about epochs whose validation loss is not finite (None); None if there are none, or nothing is known.

    Epoch 0 is the network before the training. Raises RunFailed, which says the ``remedy``, if the ``selected`` epoch
    is one of them, or every epoch of the training.
    """
    trained = {epoch: loss for epoch, loss in losses.items() if epoch > 0}
    astray = sorted(epoch for epoch, loss in trained.items() if loss is None)
    if losses.get(selected, 0.0) is None:
        raise RunFailed(f"the validation loss is not finite at epoch {selected}, the selected one; {remedy}")
    if astray and len(astray) == len(trained):
        raise RunFailed(f"the validation loss is not finite at any epoch of the training; {remedy}")
    if not astray:
        return None
    return (
        f"warning: the validation loss is not finite at {len(astray)} of {len(trained)} epochs, first at epoch "
        f"{astray[0]}; epoch {selected} is selected"
    )
