"""The commands and functions on a finished run: evaluate, sweep, export, bench, reconfigure, load and predict."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch

import hybridprune
from benchmarks.device_cases.case import NETWORK, Case, Values, finished, numbers, quiet, run_of, run_stage
from hybridprune.commands import bench, evaluate, export, reconfigure, threshold_sweep
from hybridprune.deployment import load_deployed
from hybridprune.report import __main__ as report

_STAGES = ("sp", "prune", "rl")


def evaluation(device: torch.device) -> Values:
    """A run in all modes, and at a budget."""
    with finished(*_STAGES) as root, quiet():
        for flags in (("executed",), ("masked",), ("always_on",), ("executed", "--target_flops", "0.55")):
            evaluate.main([str(run_of(root, "rl")), "--device", str(device), "--mode", *flags])
    return {}


def sweeping(device: torch.device) -> Values:
    """The operating points of a run."""
    with finished(*_STAGES) as root, quiet():
        run = run_of(root, "rl")
        threshold_sweep.main([str(run), "--device", str(device), "--points", "2", "--split", "test"])
        points = json.loads((run / "sweep.json").read_text())
    return numbers(**{name: [point[name] for point in points] for name in ("flops", "accuracy", "loss", "test_loss")})


def exporting(device: torch.device) -> Values:
    """A run as it is shipped, hardened and as a program, and read again on the device."""
    with finished(*_STAGES) as root, quiet():
        run = run_of(root, "rl")
        flags = ("--batch", "4", "--program", str(root / "net.pt2"), "--onnx", str(root / "net.onnx"), "--harden")
        export.main([str(run), "--device", str(device), *flags])
        net, spec = load_deployed(run / "deployed", device)
        images = torch.zeros(2, 3, spec.input_size, spec.input_size, device=device)
        with torch.no_grad():
            return numbers(logits=net(images).softmax(1).sum(1))


def timing(device: torch.device) -> Values:
    """A run timed in the forms that the device has."""
    with finished(*_STAGES) as root, quiet():
        run = run_of(root, "rl")
        bench.main([str(run), "--device", str(device), "--rounds", "1", "--batch", "2", "--forms", "eager"])
        (table,) = json.loads((run / "bench.json").read_text())
    return numbers(rows=len(table["rows"]))


def reconfiguring(device: torch.device) -> Values:
    """The small network of a run with masks."""
    with finished("sp") as root, quiet():
        run = run_stage(root, "prune", device, (*NETWORK, "--method", "nuspm"))
        reconfigure.main([str(run), "--device", str(device), "--output", str(root / "small")])
        result = json.loads((root / "small" / "result.json").read_text())
    return numbers(macs=result["macs"]["backbone"], loss=result["test"]["always_on"]["loss"])


def predicting(device: torch.device) -> Values:
    """A run loaded and asked what images of any size show."""
    with finished(*_STAGES) as root:
        model = hybridprune.load(run_of(root, "rl"), device)
    draw = torch.Generator().manual_seed(0)
    images = [torch.randint(256, (channels, 11, 9), generator=draw, dtype=torch.uint8) for channels in (3, 1)]
    found = [each for mode in ("executed", "masked") for each in hybridprune.predict(model, images, mode)]
    there = next(model.network.parameters()).device.type == device.type
    return numbers(
        probability=[each.probability for each in found],
        blocks=[each.blocks_executed for each in found],
        there=[there],
    )


def page(device: torch.device) -> Values:
    """The report's page, whose images are routed on the device."""
    with finished(*_STAGES) as root, quiet():
        report.main([str(root), "--html", str(root / "page.html"), "--device", str(device)])
        return numbers(page=(root / "page.html").stat().st_size > 10_000)


CASES: Mapping[str, Case] = {
    "evaluate": evaluation,
    "sweep": sweeping,
    "export": exporting,
    "bench": timing,
    "reconfigure": reconfiguring,
    "page": page,
    "predict": predicting,
}
