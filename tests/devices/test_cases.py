"""What the package does runs where a GPU is claimed: every operator on one device, and the numbers are the CPU's."""

from __future__ import annotations

import pytest
import torch

from benchmarks.device_cases import CASES, Values
from tests.devices.claimed import claimed_cuda

pytestmark = pytest.mark.usefixtures("few_sweeps")

FAST = {
    "measuring: factors, full covariance",
    "measuring: moments, entries, offsets, centred",
    "measuring: recalibration",
    "measuring: effective sparsity",
    "modules: fisher-tucker",
    "training: sp, noisy gates",
    "training: sp, fp16",
    "training: sp, pyramidnet",
    "routing: environment",
    "routing: rl, gumbel",
    "deploying: rnn, first form",
    "deploying: rnn, last form",
    "deploying: hardened",
}
"""What most users run, and every part of the package; the rest takes a minute."""


def marks(name: str) -> tuple[pytest.MarkDecorator, ...]:
    """The tier of a case."""
    if name in FAST:
        return ()
    # Runs of stage 2 with trainings are a case of ten seconds each; `dsp` has most of what they do.
    slow = name.endswith("resumed") or (name.startswith("training: prune, ") and not name.endswith("dsp"))
    slow = slow or name == "commands: reconfigure"  # likewise: it trains as stage 2 does
    return (pytest.mark.full, pytest.mark.exhaustive) if slow else (pytest.mark.full,)


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in CASES])
def test_a_case_runs_on_the_device_as_on_the_cpu(name: str) -> None:
    with claimed_cuda() as device:
        there = CASES[name](device)
    assert _same(there, CASES[name](torch.device("cpu")))


def test_the_fast_cases_exist() -> None:
    assert CASES.keys() >= FAST


def _same(there: Values, here: Values) -> bool:
    """Bit for bit: the device's arithmetic is the CPU's, so a difference is another computation."""
    assert there.keys() == here.keys()
    for name, value in here.items():
        one, other = torch.as_tensor(value), torch.as_tensor(there[name])
        assert one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num()), name
    return True
