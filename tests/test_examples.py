"""The examples run as they say."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import hybridprune
from hybridprune.config import DataOptions
from hybridprune.data import normalise
from hybridprune.engine.run_data import load_images
from hybridprune.errors import UserError
from hybridprune.report.records import read_runs
from hybridprune.report.rows import build_rows
from tests.cases import ROOT, all_pixels
from tests.cli.cases import folder_of, run_here, stage


def example(name: str) -> ModuleType:
    """The example as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.full
def test_somebody_elses_agent_is_a_row_beside_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("stable_baselines3", reason="the extra `agents` is not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    agent = example("third_party_agent")
    results = tmp_path / "results"
    assert stage("sp", "--result_dir", results, "--epochs", "8").returncode == 0
    parent, model = folder_of(results, "sp"), hybridprune.load(folder_of(results, "sp"))
    net, cost = model.network, hybridprune.count(model.network, 8)
    # One hidden layer of 16 sees the pooled features and three numbers; it decides at each gate.
    decide = net.num_gates * ((max(net.backbone.block_channels) + 3) * 16 + 16 * 2)
    test = load_images(DataOptions(dataset="digits", resize=8)).test
    pixels = normalise(all_pixels(test), model.spec.mean, model.spec.std, torch.contiguous_format)

    def run(alpha: float, out: Path) -> dict[str, Tensor]:
        agent.main([str(parent), "--timesteps", "2000", "--alpha", str(alpha), "--device", "cpu", "--out", str(out)])
        assert f"finished: {out}" in capsys.readouterr().out
        return load_file(out / "routes.safetensors")

    rates, spent = [], []
    for alpha in (0.0, 1.4, 5.0):
        out = results / f"agent-{alpha}"
        routes = run(alpha, out)
        result = json.loads((out / "result.json").read_text())
        # What it wrote is what the network does on its routes, on all test images in their order.
        decisions = routes["decisions"]
        routed = net(pixels, decisions, mode="executed")
        assert torch.equal(routes["labels"], test.labels)
        torch.testing.assert_close(routes["logits"], routed.logits.detach(), rtol=1e-4, atol=1e-4)
        found = result["test"]["routed"]
        assert found["accuracy"] == pytest.approx(float((routed.logits.argmax(1) == test.labels).double().mean()))
        rates.append(float(decisions.mean()))
        spent.append(cost.expected_macs(decisions.double().mean(0).tolist()) - sum(cost.gate_macs) + decide)
        assert found["expected_macs"] == pytest.approx(spent[-1]) and result["macs"]["gates"] == decide
        assert result["params"]["gates"] == decide // net.num_gates + 16 + 2
    assert rates[0] > rates[2]  # dear FLOPs teach it to skip

    rows = build_rows(read_runs(results))
    assert [row.name.split(" (")[0] for row in rows] == ["without pruning", *["dynamic only"] * 3]
    assert [row.stats["macs"].mean for row in rows[1:]] == pytest.approx(sorted(spent, reverse=True))
    assert all(row.lineage[0] == rows[0].lineage[0] for row in rows)
    # The command shows it too, and a later stage still finds its parent beside it.
    table = run_here("hybridprune.report", results)
    assert table.returncode == 0 and "dynamic only" in table.stdout
    assert stage("prune", "--result_dir", results, "--dry-run").returncode == 0

    first, again = (run(1.4, tmp_path / name) for name in ("first", "again"))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    with pytest.raises(UserError, match=r"--out .*exists already"):
        run(0.0, tmp_path / "again")
    for flag in ("--timesteps", "--hidden"):
        with pytest.raises(UserError, match=f"{flag} 0"):
            agent.main([str(parent), flag, "0", "--out", str(tmp_path / "none")])
