from __future__ import annotations

from collections.abc import Mapping

import pytest

from hybridprune.engine.divergence import check_losses
from hybridprune.errors import RunFailed


@pytest.mark.parametrize(
    ("losses", "selected"),
    [({}, 0), ({0: 2.0}, 0), ({0: None, 1: 1.0}, 1), ({0: 2.0, 1: 1.0, 2: 1.5}, 1), ({1: 1.0}, 0)],
)
def test_what_is_selected_and_finite_is_not_spoken_of(losses: Mapping[int, float | None], selected: int) -> None:
    assert check_losses(losses, selected, "mend it") is None


def test_epochs_that_are_not_selected_are_a_warning() -> None:
    told = check_losses({0: 2.0, 1: 1.0, 2: None, 3: 3.0, 4: None}, 1, "mend it")
    assert told == (
        "warning: the validation loss is not finite at 2 of 4 epochs, first at epoch 2; epoch 1 is selected"
    )


@pytest.mark.parametrize(
    ("losses", "selected", "where"),
    [
        ({0: None}, 0, "at epoch 0, the selected one"),
        ({0: 2.0, 1: None, 2: 1.0}, 1, "at epoch 1, the selected one"),
        ({0: 2.0, 1: None, 2: None}, 0, "at any epoch of the training"),
    ],
)
def test_a_training_that_has_gone_astray_fails(losses: Mapping[int, float | None], selected: int, where: str) -> None:
    with pytest.raises(RunFailed, match=f"^the validation loss is not finite {where}; mend it$"):
        check_losses(losses, selected, "mend it")
