"""Exporting finished runs: what is written computes what the run's network does, without this package, too."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import hybridprune
from hybridprune.data import normalise
from hybridprune.data.digits import load_digits
from hybridprune.deployment import DeployedNetwork, load_deployed, openvino
from tests import ROOT
from tests.cli.tiny_runs import assert_refused, contents, folder_of, run_here
from tests.deployment.networks import assert_close
from tests.networks_and_images import all_pixels


def images_of(model: hybridprune.Model, count: int) -> torch.Tensor:
    data = load_digits(resize=model.spec.input_size)
    return normalise(all_pixels(data.test)[:count], model.spec.mean, model.spec.std, torch.contiguous_format)


@pytest.mark.full
@pytest.mark.parametrize(("name", "batch"), [("prune", 16), ("rl", 1)])
@torch.no_grad()
def test_a_run_is_exported(name: str, batch: int, results: Path, tmp_path: Path) -> None:
    run = folder_of(results, name)
    before = contents(run)
    done = run_here(
        "hybridprune.export",
        *(run, "--batch", batch, "--onnx", tmp_path / "net.onnx", "--program", tmp_path / "net.pt2"),
        *("--openvino", tmp_path / "net.xml"),
    )
    assert done.returncode == 0, done.stderr
    for engine in ("ONNX Runtime", "OpenVINO"):
        assert re.search(rf"{engine} on \d+ validation images: logits differ by", done.stdout), done.stdout
    assert {path: what for path, what in contents(run).items() if not path.startswith("deployed")} == before
    model = hybridprune.load(run)
    images = images_of(model, 2 * batch)
    expected = model.network(images)

    module, spec = load_deployed(run / "deployed")
    assert isinstance(module, DeployedNetwork) and spec == model.spec
    routed = module.route(images)
    assert torch.equal(routed.decisions, expected.decisions)
    assert_close(routed.logits, expected.logits)

    runtime = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    kinds = {node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node}
    assert ("If" in kinds, "NonZero" in kinds) == (batch == 1, batch > 1)
    program = torch.export.load(tmp_path / "net.pt2").module()
    in_openvino = openvino.core().compile_model(tmp_path / "net.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for some, rows in zip(images.split(batch), torch.arange(2 * batch).split(batch), strict=True):
        exported = [torch.from_numpy(each) for each in runtime.run(None, {"images": some.numpy()})]
        read = [torch.from_numpy(each) for each in in_openvino(some.numpy()).values()]
        for logits, decisions in (exported, read, program(some)):
            assert_close(logits, expected.logits[rows])
            assert torch.equal(decisions, expected.decisions[rows])
    assert (run / "deployed" / "report.txt").read_text() in done.stdout
    report = json.loads((run / "deployed" / "deploy.json").read_text())["report"]
    assert report["batch"] == batch and report["validated"]["changed_decisions"] == 0
    assert "dense with products" in report["forms"]["backbone.blocks.1.projection.0"]["latencies"]


@pytest.mark.full
@torch.no_grad()
def test_a_network_that_decides_nothing_takes_any_number_of_images(results: Path, tmp_path: Path) -> None:
    """Also when it was exported for one; ExecuTorch alone takes no more, and cannot do one that decides."""
    run, phone = folder_of(results, "rl"), importlib.util.find_spec("executorch") is not None
    wanted = ("--onnx", tmp_path / "net.onnx", *(("--executorch", tmp_path / "net.pte") if phone else ()))
    harden = ("--harden", "--never", "0.49", "--always", "0.5")
    done = run_here("hybridprune.export", run, *harden, "--output", tmp_path / "deployed", *wanted)
    assert done.returncode == 0, done.stderr
    module, images = load_deployed(tmp_path / "deployed")[0], images_of(hybridprune.load(run), 3)
    runtime = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    assert_close(torch.from_numpy(runtime.run(None, {"images": images.numpy()})[0]), module(images))
    if phone:
        from hybridprune.deployment import executorch

        logits = executorch.opened((tmp_path / "net.pte").read_bytes())(images[:1].numpy())[0]
        assert_close(torch.from_numpy(logits), module(images[:1]))
        refused = run_here("hybridprune.export", run, "--executorch", tmp_path / "gated.pte")
        assert refused.returncode == 1 and "ExecuTorch computes another network" in refused.stderr
        assert not (tmp_path / "gated.pte").exists()


@pytest.mark.full
def test_the_documented_code_needs_nothing_of_this_package(results: Path, tmp_path: Path) -> None:
    run = folder_of(results, "rl")
    files = "--onnx", tmp_path / "net.onnx", "--openvino", tmp_path / "net.xml", "--program", tmp_path / "net.pt2"
    done = run_here("hybridprune.export", run, *files)
    assert done.returncode == 0, done.stderr
    model, images = hybridprune.load(run), all_pixels(load_digits(resize=8).test)[:1]
    np.save(tmp_path / "pixels.npy", images.numpy())
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "deploy.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 3
    code = "import sys\nsys.modules |= {'hybridprune': None, 'openvino_telemetry': None}\n"
    code += "import numpy\npixels = numpy.load('pixels.npy')\n" + "".join(blocks)
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    (expected,) = hybridprune.predict(model, list(images))
    assert ran.stdout.splitlines() == [str([expected.label])] * 3


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--batch", "0"), ("--batch 0",)),
        (("--never", "0.1"), ("--never", "--harden")),
        (("--keep_state",), ("--keep_state", "--harden")),
        (("--harden", "--never", "2"), ("--never 2.0", "0 to 1")),
        (("--harden", "--never", "0.6", "--always", "0.5"), ("--never 0.6", "--always 0.5")),
        (("--onnx", "no/such/folder.onnx"), ("--onnx", "no folder")),
        (("--program", "."), ("--program .", "is a folder")),
        (("--openvino", "net.onnx"), ("--openvino net.onnx", "ends in .xml")),
        (("--aotinductor", "net.so"), ("--aotinductor net.so", "ends in .pt2")),
        (("--output", "/dev/null/x"), ("--output /dev/null/x",)),
        (("--device", "cuda:99"), ("--device cuda:99",)),
    ],
)
def test_mistakes(flags: tuple[str, ...], words: tuple[str, ...], results: Path) -> None:
    run = folder_of(results, "rl")
    before = contents(run)
    assert_refused(run_here("hybridprune.export", run, *flags), *words)
    assert contents(run) == before
