"""No step of training waits for the device: the host neither reads its tensors nor makes any of its own for it.

On a GPU, ``float(tensor)`` waits until everything before it has run, and ``torch.tensor(numbers, device=...)`` waits
for the copy. Here both are seen by the operators that they dispatch, whatever the device; not so ``cpu()`` and
``tolist()``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hybridprune.data import Batch
from hybridprune.engine.fit import Fit
from hybridprune.engine.progress import Progress
from tests.cli.tiny_runs import stage

READS = {"_local_scalar_dense", "nonzero"}
"""A number, or how many there are."""
SENDS = {"lift_fresh"}
"""What ``torch.tensor`` dispatches."""


class Names(TorchDispatchMode):
    """What is dispatched inside."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """The operators of all training steps: from an epoch's first batch until the last one's step is done."""
    names, own = Names(), Fit._batches

    def watched(self: Fit, progress: Progress) -> Iterator[Batch]:
        with names:
            yield from own(self, progress)

    monkeypatch.setattr(Fit, "_batches", watched)
    return names


def test_what_is_looked_for_is_what_python_does() -> None:
    for read in (float, bool, int, torch.Tensor.item, lambda x: [1][x.long()]):
        with Names() as names:
            read(torch.zeros(()))
        assert "_local_scalar_dense" in names.seen
    with Names() as names:
        torch.tensor(0.5)
    assert names.seen >= SENDS


STAGES: dict[str, tuple[str, ...]] = {
    "supervised": ("sp", "--gate_noise", "1", "--ema_decay", "0.9"),
    "soft": ("sp", "--gating", "soft"),
    "pruned": ("prune", "--kd_weight", "0.5", "--fix_rotation"),
    "gumbel": ("rl", "--estimator", "gumbel", "--rate_bound", "0.4"),
    "gumbel to a budget": ("rl", "--estimator", "gumbel", "--target_flops", "0.5"),
    "moving average": ("rl", "--baseline", "moving_average", "--target_flops", "0.5", "--entropy_bonus", "0.1"),
    "counterfactual": ("rl", "--target_flops", "0.5", "--rate_bound", "0.4"),
    "self-critical": ("rl", "--baseline", "self_critical", "--target_flops", "0.5", "--batchnorm", "trained"),
}


@pytest.mark.parametrize("name", STAGES)
def test_a_step_of_training_does_not_wait(name: str, names: Names, results: Path) -> None:
    which, *flags = STAGES[name]
    own = ("--rl_warmup", "0", "--epochs", "1") if which == "rl" else ()
    done = stage(which, "--result_dir", results, "--exp_name", "again", "--log_interval", "1000", *own, *flags)
    assert done.returncode == 0, done.stderr
    assert {"convolution_backward", "index_select"} <= names.seen  # it has seen all of a step
    # Greedy rollouts really skip, for which they have to count.
    skips = name in ("counterfactual", "self-critical")
    assert not names.seen & (READS | SENDS) - ({"nonzero"} if skips else set())
