"""Options that contradict each other, before anything is read."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hybridprune.config import PruneConfig, RlConfig, SpConfig, resolve
from hybridprune.config.contradictions import refuse_contradictions
from hybridprune.errors import UserError


def _refuse(make: Callable[[], SpConfig | RlConfig], flags: str) -> None:
    default, argv = make(), flags.split()
    if isinstance(default, SpConfig):
        refuse_contradictions(resolve(default, argv, prog="", description="").config)
    else:
        refuse_contradictions(resolve(default, argv, prog="", description="").config)


@pytest.mark.parametrize(
    ("make", "flags", "named", "remedy"),
    [
        (SpConfig, "--epochs 0", "--epochs 0", ("--weights", "at least 1")),
        (RlConfig, "--train gates --batchnorm trained", "--batchnorm trained", ("--batchnorm frozen",)),
        (RlConfig, "--train gates --kd_weight 0.5", "--kd_weight", ("--estimator gumbel",)),
        (RlConfig, "--train gates --compile", "--compile", ("--estimator gumbel",)),
        (RlConfig, "--gate_start subset", "--gate_start subset", ("--target_flops",)),
        (RlConfig, "--target_flops 0.5 --alpha 0", "--alpha 0", ("positive",)),
    ],
)
def test_refused_with_a_remedy(
    make: Callable[[], SpConfig | RlConfig], flags: str, named: str, remedy: tuple[str, ...]
) -> None:
    with pytest.raises(UserError, match=f"^{named}") as refused:
        _refuse(make, flags)
    assert all(word in str(refused.value) for word in remedy)


@pytest.mark.parametrize(
    ("make", "flags"),
    [
        (SpConfig, "--epochs 0 --weights x.pt"),
        (RlConfig, ""),
        (RlConfig, "--alpha 0"),
        (RlConfig, "--train gates --kd_weight 0.5 --estimator gumbel --compile"),
        (RlConfig, "--gate_start subset --target_flops 0.5 --batchnorm trained"),
    ],
)
def test_what_goes_together(make: Callable[[], SpConfig | RlConfig], flags: str) -> None:
    _refuse(make, flags)
    refuse_contradictions(PruneConfig())
