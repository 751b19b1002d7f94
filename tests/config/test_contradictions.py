"""Options that contradict each other, before anything is read."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hybridprune.config import RlConfig, RoutingOptions, SpConfig, SupervisedOptions, resolve
from hybridprune.config.options import CompileOptions
from hybridprune.errors import UserError

CASCADE = "--routing cascade --members a,b --target_flops 0.5"


def _resolve(default: SpConfig | RlConfig, flags: str) -> SpConfig | RlConfig:
    if isinstance(default, SpConfig):
        return resolve(default, flags.split(), prog="", description="").config
    return resolve(default, flags.split(), prog="", description="").config


@pytest.mark.parametrize(
    ("make", "flags", "named", "remedy"),
    [
        (SpConfig, "--epochs 0", "--epochs 0", ("--weights", "at least 1")),
        (RlConfig, "--train gates --batchnorm trained", "--batchnorm trained", ("--batchnorm frozen",)),
        (RlConfig, "--train gates --kd_weight 0.5", "--kd_weight", ("--estimator gumbel",)),
        (RlConfig, "--train gates --compile", "--compile on", ("--estimator gumbel",)),
        (RlConfig, "--gate_start subset", "--gate_start subset", ("--target_flops",)),
        (
            RlConfig,
            "--gate_start subset --target_flops 0.5 --gate_sharpen 0.05",
            "--gate_sharpen 0.05",
            ("--gate_start subset", "leave one"),
        ),
        (RlConfig, f"{CASCADE} --gate_sharpen 0.5", "--gate_sharpen 0.5", ("leave it out",)),
        (RlConfig, "--target_flops 0.5 --alpha 0", "--alpha 0", ("positive",)),
        (RlConfig, "--routing cascade --target_flops 0.5", "--routing cascade", ("--members RUN,RUN",)),
        (RlConfig, "--routing cascade --members a --target_flops 0.5", "--routing cascade", ("two or more",)),
        (RlConfig, "--members a,b", "--members a", ("--routing cascade",)),
        (RlConfig, "--routing cascade --members a,b", "--routing cascade", ("--target_flops",)),
        (RlConfig, f"{CASCADE} --checkpoint_file x", "--checkpoint_file", ("--members",)),
        (RlConfig, f"{CASCADE} --estimator gumbel", "--estimator gumbel", ("leave it out",)),
        (RlConfig, f"{CASCADE} --train gates", "--train gates", ("leave it out",)),
        (RlConfig, f"{CASCADE} --batchnorm trained", "--batchnorm trained", ("leave it out",)),
        (RlConfig, f"{CASCADE} --train members --kd_weight 0.5", "--kd_weight", ("--kd_small", "--kd_large")),
        (RlConfig, f"{CASCADE} --trunk 2", "--trunk 2", ("never seen", "add --train members")),
        (RlConfig, "--trunk 2", "--trunk 2", ("--routing cascade",)),
        (RlConfig, "--train members", "--train members", ("--routing cascade", "--members RUN,RUN")),
    ],
)
def test_refused_with_a_remedy(
    make: type[SpConfig] | type[RlConfig], flags: str, named: str, remedy: tuple[str, ...]
) -> None:
    with pytest.raises(UserError, match=f"^{named}") as refused:
        _resolve(make(), flags)
    assert all(word in str(refused.value) for word in remedy)


@pytest.mark.parametrize(
    ("make", "flags"),
    [
        (SpConfig, "--epochs 0 --weights x.pt"),
        (RlConfig, ""),
        (RlConfig, "--alpha 0"),
        (RlConfig, CASCADE),
        (RlConfig, f"{CASCADE} --train members --batchnorm trained --trunk 2 --compile"),
        (RlConfig, "--train gates --kd_weight 0.5 --estimator gumbel --compile"),
        (RlConfig, "--gate_start subset --target_flops 0.5 --batchnorm trained"),
    ],
)
def test_what_goes_together(make: type[SpConfig] | type[RlConfig], flags: str) -> None:
    assert type(_resolve(make(), flags)) is make


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: SupervisedOptions(epochs=0), "SupervisedOptions: epochs 0: .* with weights, or"),
        (
            lambda: RoutingOptions(train="gates", batchnorm="trained"),
            "RoutingOptions: batchnorm trained: .* which train gates .*; use batchnorm frozen",
        ),
        (lambda: RoutingOptions(train="gates", kd_weight=0.5), "RoutingOptions: kd_weight: .* use estimator gumbel"),
        (lambda: RoutingOptions(gate_start="subset"), "RoutingOptions: gate_start subset: .* give target_flops"),
        (lambda: RoutingOptions(target_flops=0.5, reward_scale=0), "RoutingOptions: reward_scale 0: .* positive start"),
        (
            lambda: RlConfig(stage=RoutingOptions(train="gates"), compiler=CompileOptions(compile="on")),
            "RlConfig: compile on: with train gates .* use estimator gumbel",
        ),
    ],
)
def test_refused_from_python_in_the_names_of_fields(made: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}") as refused:
        made()
    assert "--" not in str(refused.value)
