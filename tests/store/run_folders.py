"""Run folders made by hand, for the tests of this folder."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from hybridprune.models.edits import FactorEdit
from hybridprune.models.spec import NetworkSpec
from hybridprune.store.files import sha256
from hybridprune.store.run_folder import RunFolder, RunSpec
from tests.networks_and_images import random_net

EDITS = (FactorEdit("backbone.blocks.1.conv1", 2, 3),)
SPEC = RunSpec(
    stage="sp",
    run_id="r1",
    network=NetworkSpec("resnet", 8, 2, 3),
    class_names=("ant", "bee", "cat"),
    input_size=8,
    mean=(0.5, 0.25, 0.125),
    std=(0.25, 0.5, 1.0),
    dataset="insects",
    dataset_digest="d1",
)
FACTORED = dataclasses.replace(SPEC, stage="prune", network=dataclasses.replace(SPEC.network, edits=EDITS))


def make_run(path: Path, spec: RunSpec = SPEC, *, finished: bool = True, seed: int = 0, age: int = 0) -> RunFolder:
    """A run folder with random weights; ``age`` is that of its result in seconds, on a fixed clock."""
    path.mkdir(parents=True)
    run = RunFolder(path)
    run.write_json("spec.json", spec.to_json())
    network = spec.gated
    assert network.depth is not None and network.width is not None
    run.save_weights("model.safetensors", random_net(network.depth, network.width, network.classes, network.edits))
    if finished:
        result = {"model_sha256": sha256(run.model_file), "seed": seed, "group": "g", "dense": {"macs": 9, "params": 9}}
        run.write_json("result.json", result)
        os.utime(path / "result.json", (1_700_000_000 - age, 1_700_000_000 - age))
    return run
