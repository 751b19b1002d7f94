"""ONNX models and torch.export programs compute what the deployed network does, and really skip."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hybridprune.data import normalise
from hybridprune.data.digits import load_digits
from hybridprune.deployment import DeployedNetwork, deploy, onnx
from hybridprune.deployment.agreement import compare
from hybridprune.deployment.exported_engines import ENGINES
from hybridprune.deployment.onnx import need_onnx, onnx_bytes, opened, session
from hybridprune.deployment.program import METADATA, export_program, program_bytes
from hybridprune.errors import UserError
from hybridprune.models.edits import FactorEdit
from hybridprune.models.spec import NetworkSpec
from tests.deployment.networks import SPECS, assert_close, built, preferring
from tests.networks_and_images import all_pixels, random_decisions

SMALL = NetworkSpec("resnet", 8, 4, 5, (FactorEdit("backbone.blocks.1.conv2", 3, 4),))


def digits(count: int) -> Tensor:
    """Real images, normalised ``[count, 3, 12, 12]``."""
    data = load_digits(resize=12)
    return normalise(all_pixels(data.test)[:count], data.mean, data.std, torch.contiguous_format)


def deployed(spec: NetworkSpec) -> torch.nn.Module:
    return deploy(built(spec), digits(2), time=preferring("two-sided", "gather")).module


def executed(content: bytes, folder: Path, inputs: Mapping[str, Tensor]) -> list[int]:
    """How many images passed each convolution that ONNX Runtime really executed."""
    runtime = session(content, profile=str(folder / "profile"))
    runtime.run(None, {name: value.numpy() for name, value in inputs.items()})
    events = json.loads(Path(runtime.end_profiling()).read_text())
    convolutions = [event["args"] for event in events if event["args"].get("op_name") in ("Conv", "FusedConv")]
    shapes = [next(iter(each["output_type_shape"][0].values())) for each in convolutions]
    return sorted(shape[0] for shape in shapes)


SINGLE = [pytest.param(True, id="branch", marks=pytest.mark.full), pytest.param(False, id="gather")]


@pytest.mark.full
@pytest.mark.parametrize("single", SINGLE)
@torch.no_grad()
def test_skipped_blocks_are_not_executed(single: bool, tmp_path: Path) -> None:
    module, images = deployed(SMALL), digits(1 if single else 6)
    assert isinstance(module, DeployedNetwork)
    content = onnx_bytes(module, images, single=single, forced=True)
    batch = len(images)
    fixed, block1, block2 = [batch] * 5, 4, 2  # stem, block 0, two projections; block 1 is factored
    decided = [(0, 0), (1, 0), (0, 1), (1, 1)] if single else [(0, 0), (2, 5), (6, 1)]
    for counts in decided:
        decisions = torch.stack([(torch.arange(batch) < count).float() for count in counts], 1)
        found = executed(content, tmp_path, {"images": images, "decisions": decisions})
        passed = [counts[0]] * block1 + [counts[1]] * block2
        assert sorted(n for n in found if n) == sorted(n for n in fixed + passed if n), (counts, found)
        logits, taken = session(content).run(None, {"images": images.numpy(), "decisions": decisions.numpy()})
        assert np.array_equal(taken, decisions.numpy())
        assert_close(torch.from_numpy(logits), module.route(images, decisions).logits)


def shallow(spec: NetworkSpec) -> NetworkSpec:
    """The same with one block a stage: exporting takes as long as there are blocks."""
    if spec.network == "vgg":
        return spec
    edits = tuple(edit for edit in spec.edits if "blocks.3" not in edit.layer)
    return dataclasses.replace(spec, depth=11 if spec.bottleneck else 8, edits=edits)


EXHAUSTIVE = ("resnet", "preresnet")
"""Networks of which others here are the factored form."""


@pytest.mark.full
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.exhaustive] if name in EXHAUSTIVE else []) for name in SPECS]
)
@torch.no_grad()
def test_engines_agree_on_real_images(name: str) -> None:
    module, images = deployed(shallow(SPECS[name])), digits(40)
    for single in (False, True):
        content = onnx_bytes(module, images, single=single)
        for engine in ENGINES.values():
            run = engine.opened(*engine.files(content, ""))
            for batch in (1,) if single else (1, 7, 40):
                found = compare(run, module, images.split(batch))
                assert found.good and found.images == 40 and found.difference < 1e-4 and not found.classes, found
    other = copy.deepcopy(module)
    list(other.parameters())[-1].add_(1)
    assert not compare(opened(content), other, images.split(1)).good


@pytest.mark.parametrize("single", SINGLE)
@torch.no_grad()
def test_programs_compute_the_same(single: bool) -> None:
    module, images = deployed(SMALL), digits(1 if single else 5)
    assert isinstance(module, DeployedNetwork)
    content = program_bytes(export_program(module, images, single=single), '{"classes": []}')
    files = {METADATA: ""}
    loaded = torch.export.load(io.BytesIO(content), extra_files=files)
    assert json.loads(files[METADATA]) == {"classes": []}
    logits, decisions = loaded.module()(images)
    expected = module.route(images)
    assert_close(logits, expected.logits)
    assert torch.equal(decisions, expected.decisions)


@torch.no_grad()
def test_exporting_changes_nothing() -> None:
    module, images = deployed(SMALL), digits(6)
    assert isinstance(module, DeployedNetwork)
    before, records = module.route(images, random_decisions(6, 2)), module.records()
    export_program(module, images)
    after = module.route(images, random_decisions(6, 2))
    assert torch.equal(before.logits, after.logits) and module.records() == records


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    need_onnx("--onnx")
    monkeypatch.setattr(onnx, "PACKAGES", ("onnx", "no_such_runtime"))
    with pytest.raises(UserError, match=r"--onnx: needs no_such_runtime; pip install"):
        need_onnx("--onnx")
