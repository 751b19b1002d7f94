"""`hybridprune.deploy`: folding, forms, pieces, hardening and programs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from benchmarks.device_cases.case import CLASSES, Case, Values, network, numbers, random_images, random_labels
from hybridprune.data import Batch
from hybridprune.deployment import Harden, deploy
from hybridprune.deployment.program import export_program
from hybridprune.measure.latency import Arms, Latency, device_clock, interleaved, stopwatch
from hybridprune.models.edits import FactorEdit
from hybridprune.models.spec import NetworkSpec

_EDITS = (
    FactorEdit("backbone.conv", None, 3),
    FactorEdit("backbone.blocks.0.conv1", 2, 3),
    FactorEdit("backbone.blocks.1.conv1", 3, None),
    FactorEdit("backbone.blocks.1.projection.0", 2, 4),
    FactorEdit("backbone.classifier", 7, 4),
)
_SPECS: Mapping[str, NetworkSpec] = {
    "rnn": NetworkSpec("resnet", 8, 4, CLASSES, _EDITS),
    "ff1": NetworkSpec("resnet", 8, 4, CLASSES, gate="ff1"),
    "preresnet": NetworkSpec("preresnet", 8, 4, CLASSES),
    "pyramidnet": NetworkSpec("pyramidnet", 8, 4, CLASSES, pyramid_alpha=6),
    "vgg": NetworkSpec("vgg", 11, 2, CLASSES),
}


def _told(arms: Arms, last: bool) -> dict[str, Latency]:
    """The last arm, or the first, is the fastest, whatever the clock says; each runs once."""
    for run in arms.values():
        run()
    places = range(len(arms), 0, -1) if last else range(1, len(arms) + 1)
    return {name: Latency(place, place, place, 1) for name, place in zip(arms, places, strict=True)}


def deployed(device: torch.device, spec: NetworkSpec, last: bool, harden: Harden | None = None) -> Values:
    """A network deployed by a clock that is told what to say: its logits and its cost."""
    net = network(spec, device)
    data = [Batch(random_images(6, seed=n).to(device), random_labels(6, n).to(device), torch.arange(6)) for n in (1, 2)]
    found = deploy(net, random_images(6), device, harden=harden, validation=data, time=partial(_told, last=last))
    with torch.no_grad():
        logits = found.module(data[0].images)
    return numbers(logits=logits, macs=found.report.macs_after, rates=list(found.report.rates))


def program(device: torch.device, single: bool) -> Values:
    """The program of a network that was deployed on the device: it runs on the CPU."""
    net, images = network(_SPECS["rnn"], device), random_images(4)
    module = deploy(net, images, device, time=partial(_told, last=False)).module
    exported: Any = export_program(module, images.to(device), single=single).module()
    logits, decisions = exported(images[:1] if single else images)
    return numbers(logits=logits, decisions=decisions)


def clocks(device: torch.device) -> Values:
    """The stopwatch of the device."""
    net, images = network(_SPECS["rnn"], device), random_images(2).to(device)
    arms: dict[str, Any] = {"masked": partial(net, images, mode="masked"), "executed": partial(net, images)}
    with torch.no_grad():
        found = {**stopwatch(device, 2, 1, 0.0)(arms), **interleaved(arms, device_clock(device), 1)}
    assert all(latency.median_ms > 0 for latency in found.values()) and time.perf_counter() > 0
    return {}


CASES: Mapping[str, Case] = {
    **{
        f"{name}, {'last' if last else 'first'} form": partial(deployed, spec=spec, last=last)
        for name, spec in _SPECS.items()
        for last in (False, True)
    },
    "hardened": partial(deployed, spec=_SPECS["rnn"], last=False, harden=Harden(0.3, 0.7)),
    "hardened, listening": partial(
        deployed, spec=_SPECS["rnn"], last=True, harden=Harden(0.3, 0.7, unprofitable=True, keep_state=True)
    ),
    "program": partial(program, single=False),
    "program of one image": partial(program, single=True),
    "clocks": clocks,
}
