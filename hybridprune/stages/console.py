"""The words of a stage: its remarks, its configuration, its plan. Of several processes, the first one speaks."""

from __future__ import annotations

import json
import sys
from typing import Any

from hybridprune.config import Invocation, to_json
from hybridprune.measure.cost import NetworkCost
from hybridprune.processes import is_first
from hybridprune.stages.images import RunImages
from hybridprune.store.run_folder import RunSpec


def say(message: str) -> None:
    """Tell the user something that is not the command's output; of several processes, the first one does."""
    if is_first():
        print(message, file=sys.stderr, flush=True)


def name_configuration(invocation: Invocation[Any]) -> None:
    """Tell which configuration file was read without having been asked for."""
    if invocation.unasked is not None:
        say(f"configuration: {invocation.unasked}")


def show_config(invocation: Invocation[Any]) -> None:
    """Print the resolved configuration (``--print-config``); of several processes, the first one does."""
    name_configuration(invocation)
    if is_first():
        several = invocation.several
        values = {} if several is None else {several.name: list(several.values)}
        print(json.dumps({**to_json(invocation.config), **values}, indent=2))


def show_plan(spec: RunSpec, images: RunImages, cost: NetworkCost, lines: list[str]) -> None:
    """Print what a run would do (``--dry-run``); of several processes, the first one does."""
    if not is_first():
        return
    print(f"stage {spec.stage}: {spec.network}, {spec.network.classes} classes")
    print(
        f"  {len(images.split.train)} training, {len(images.split.validation)} validation, "
        f"{len(images.dataset.test)} test images of {spec.dataset} at {spec.input_size} x {spec.input_size}"
    )
    print(
        f"  backbone: {cost.backbone_params:,} parameters, {cost.backbone_macs / 1e9:.4f} GMACs "
        f"(FLOPs = 2 x MACs); gates: {cost.gate_params:,} parameters, {sum(cost.gate_macs):,} MACs"
    )
    for line in lines:
        print(f"  {line}")
