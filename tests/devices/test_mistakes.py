"""Mistakes are seen: whatever one function of the package forgets to put on the device, a case turns red."""

from __future__ import annotations

import pytest

from benchmarks.device_cases import CASES
from hybridprune.curvature import layer
from hybridprune.pruning.directions import decomposition as directions
from tests.devices.claimed import MixedDevices, claimed_cuda

pytestmark = pytest.mark.usefixtures("few_sweeps")

INDICES = {
    "hybridprune/curvature/factors.py (_weighted_moment)": "measuring: factors",
    "hybridprune/curvature/offsets.py (_offset_sum.<locals>.<genexpr>)": "measuring: factors, offsets",
    "hybridprune/pruning/channels/surgery.py (cut)": "modules: uniform",
    "hybridprune/pruning/sparse_training/growing_l2.py (GrowingL2.__init__.<locals>.<listcomp>)": "modules: greg-1",
    "hybridprune/pruning/sparse_training/scale_l1.py (ScalePressure.__init__.<locals>.<listcomp>)": (
        "modules: masksparsity"
    ),
    "hybridprune/routing/env.py (_picked)": "routing: environment",
}
"""Functions that put an index on the device, and a case that runs them."""
WATCHED = (
    *("measuring: effective sparsity", "routing: environment", "measuring: factors", "commands: predict"),
    *("measuring: factors, full covariance", "measuring: moments, entries, offsets, centred"),
    *("deploying: hardened, listening", "deploying: rnn, last form", "training: sp, fp16", "training: sp, pyramidnet"),
    *("modules: kron-obs, channels only", "modules: kron-obs", "modules: rni", "notebook: rni", "modules: nuspm"),
    *("routing: rl, counterfactual to a budget", "modules: loss bce", "modules: eigendamage, by orthogonal iteration"),
    *("modules: greg-1", "modules: fisher-tucker", "modules: masksparsity", "training: sp, noisy gates"),
    "commands: evaluate",
)
"""Cases which together run most of what puts something on the device, the short ones first."""
HARMLESS = {
    "hybridprune/engine/device.py (device_of)": "asks whether the device is there",
    "hybridprune/pruning/sparse_training/masked_reading.py (_Reading.__init__)": "a buffer, goes with its network",
    "hybridprune/routing/price.py (Price.__init__)": "numbers without dimensions",
    "hybridprune/curvature/collect.py (collect_second_moments)": "a number without dimensions",
    "hybridprune/engine/fit.py (Fit.__post_init__.<locals>.<lambda>)": "the norm of gradients, without dimensions",
    "hybridprune/engine/descent.py (Descent._differentiate)": "the scale of the loss, without dimensions",
    "hybridprune/models/skipnet.py (Routed.mean_rate)": "a number without dimensions",
    "hybridprune/pruning/trial.py (_two_images)": "copied into its place",
    "hybridprune/pruning/trial.py (_stand_in)": "copied into its place",
    "hybridprune/api/inference.py (load)": "images follow the network; the case predict says where that is",
}
"""What a GPU forgives: it takes such numbers from the CPU."""


@pytest.mark.full
@pytest.mark.parametrize("mover", INDICES)
def test_an_index_on_the_cpu_is_seen(mover: str) -> None:
    file = mover.partition(" ")[0]
    with pytest.raises(MixedDevices, match=rf"aten\.index.* at {file}:"), claimed_cuda(forgetful=mover) as device:
        CASES[INDICES[mover]](device)


def test_measurements_on_the_cpu_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = layer.offset_moment
    monkeypatch.setattr(layer, "offset_moment", lambda *args: moment(*args).cpu())
    with pytest.raises(MixedDevices, match=r"aten\.add_"), claimed_cuda() as device:
        CASES["measuring: factors, offsets"](device)


@pytest.mark.full
def test_plans_on_the_device_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = directions.Decomposition.losses
    monkeypatch.setattr(directions.Decomposition, "losses", lambda self: losses(self).to(self.core))
    with pytest.raises(MixedDevices, match=r"directions/space\.py"), claimed_cuda() as device:
        CASES["modules: fisher-tucker"](device)


@pytest.mark.exhaustive
@pytest.mark.full
def test_whatever_is_forgotten_is_seen() -> None:
    """By each function that puts something on the device, in the shortest case that sees it."""
    unseen: set[str] = set()
    seen = set(HARMLESS)
    for name in WATCHED:
        movers: set[str] = set()
        with claimed_cuda(movers=movers) as device:
            CASES[name](device)
        found = {mover for mover in movers - seen if _seen(mover, name)}
        seen |= found
        unseen = (unseen | movers) - seen
    assert not unseen
    assert len(seen) > 45


def _seen(mover: str, case: str) -> bool:
    try:
        with claimed_cuda(forgetful=mover) as device:
            CASES[case](device)
    except MixedDevices:
        return True
    return False
