"""The examples run as they say."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import hybridprune
from hybridprune.config import DataOptions
from hybridprune.config.networks import NETWORKS
from hybridprune.data import normalise
from hybridprune.deployment import load_deployed
from hybridprune.engine.run_data import load_images
from hybridprune.errors import UserError
from hybridprune.pruning.channels import ChannelGroup, Member
from hybridprune.pruning.channels.scores import Statistics
from hybridprune.report.records import read_runs
from hybridprune.report.rows import build_rows
from tests import ROOT
from tests.cli.tiny_runs import STAGES, assert_refused, folder_of, run_here, stage
from tests.networks_and_images import all_pixels, random_images


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

    rates, spent, routes_of = [], [], {}
    for alpha in (0.0, 1.4, 5.0):
        out = results / f"agent-{alpha}"
        routes = routes_of[alpha] = run(alpha, out)
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

    again = run(1.4, tmp_path / "again")
    assert all(torch.equal(value, again[name]) for name, value in routes_of[1.4].items())
    with pytest.raises(UserError, match=r"--out .*exists already"):
        run(0.0, tmp_path / "again")
    for flag in ("--timesteps", "--hidden"):
        with pytest.raises(UserError, match=f"{flag} 0"):
            agent.main([str(parent), flag, "0", "--out", str(tmp_path / "none")])


@pytest.mark.parametrize("name", ["my_method", "my_network"])
def test_one_of_ones_own_is_a_short_file(name: str) -> None:
    assert len((ROOT / "examples" / f"{name}.py").read_text().splitlines()) < 60


@pytest.mark.parametrize("name", ["MEDIAN", "PLAIN_SVD"])
def test_a_method_of_ones_own_prunes_a_module(name: str) -> None:
    method = getattr(example("my_method"), name)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 3))
    batches = [(random_images(8, 8), torch.arange(8) % 3)]
    pruned = hybridprune.prune(model, batches, method=method, target_flops=0.5)
    assert 0.3 < pruned.spec.macs / pruned.spec.dense_macs <= 0.5
    assert all(layer.expected_loss is None for layer in pruned.spec.layers)  # its scores are no losses


def test_the_median_filter_goes_first() -> None:
    """Three filters on a line: the one in the middle has the smallest sum of distances, 2 of 3, 2, 3."""
    conv = nn.Conv2d(1, 3, 1)
    conv.weight.data = torch.tensor([0.0, 1.0, 2.0]).view(3, 1, 1, 1)
    group = ChannelGroup("a", 3, coupled=False, members=(Member("a", "producer", torch.arange(3)[:, None]),))
    scores = example("my_method").MEDIAN.score(group, Statistics({"a": conv}))
    torch.testing.assert_close(scores, torch.tensor([9 / 8, 6 / 8, 9 / 8], dtype=torch.float64))


def test_plain_svd_keeps_what_is_largest() -> None:
    """By Eckart and Young no other matrix of that rank is nearer; all directions give the weight back."""
    weight = torch.randn(5, 4, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = example("my_method").PLAIN_SVD.decompose(weight, None, None, 0.0)
    values = torch.linalg.svdvals(weight[:, :, 0, 0])
    torch.testing.assert_close(found.truncate(5, 4).dense(), weight)
    error = (found.truncate(2, 2).dense() - weight).square().sum()
    torch.testing.assert_close(error, values[2:].square().sum())
    torch.testing.assert_close(found.out_scores[:4], values.square() / values.square().sum())


@pytest.mark.full
def test_a_method_of_ones_own_is_a_run_like_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is recorded, reported, evaluated and resumed; only the flag imports it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert stage("sp", "--result_dir", tmp_path).returncode == 0
    monkeypatch.chdir(ROOT / "examples")
    flags = ("--result_dir", tmp_path, "--method", "my_method:MEDIAN")
    done = stage("prune", *flags)
    assert done.returncode == 0, done.stderr
    run = folder_of(tmp_path, "prune")
    assert json.loads((run / "result.json").read_text())["method"] == "my_method:MEDIAN"
    monkeypatch.chdir(tmp_path)
    del sys.modules["my_method"]
    model = hybridprune.load(run)  # without its module
    assert (
        hybridprune.count(model.network, 8).backbone_macs
        == json.loads((run / "result.json").read_text())["macs"]["backbone"]
    )
    for command in ("hybridprune.evaluate", "hybridprune.report"):
        found = run_here(command, run if command.endswith("evaluate") else tmp_path)
        assert found.returncode == 0, found.stderr
    assert stage("prune", *flags, "--resume").returncode == 2  # cannot be imported from here
    stored = stage("prune", "--result_dir", tmp_path, "--config_path", run / "config.json", "--resume")
    assert stored.returncode == 2 and "a file may not say what is imported" in stored.stderr
    assert "my_method" not in sys.modules
    monkeypatch.chdir(ROOT / "examples")
    again = stage("prune", *flags, "--resume")
    assert again.returncode == 0 and sys.modules.pop("my_method")


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Forgets the network of one's own, as a new process would not know it."""

    def forget() -> None:
        NETWORKS.added.pop("my_network:separable", None)
        sys.modules.pop("my_network", None)

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield forget
    forget()


@pytest.mark.full
def test_a_network_of_ones_own_goes_through_all_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgotten: Callable[[], None]
) -> None:
    """It is trained, cut, routed, read and shipped as ours are, wherever its user names it, and nowhere else."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    monkeypatch.chdir(ROOT / "examples")
    own = ("--network", "my_network:separable")
    data = (*own, "--width", "8", "--bs", "20", "--num_workers", "0", "--device", "cpu", "--dataset", "digits")
    data = (*data, "--resize", "8", "--max_train_samples", "200", "--result_dir", str(tmp_path))
    runs = {name: tmp_path / "default" / f"digits-my_network_separable-w8-{name}-seed0" for name in STAGES}
    for name in STAGES:
        forgotten()
        done = stage(name, data=data)
        assert done.returncode == 0, done.stderr
        again = stage(name, "--resume", data=data)
        assert again.returncode == 0 and "finished" in again.stdout, again.stderr
    results = {name: json.loads((run / "result.json").read_text()) for name, run in runs.items()}
    assert results["prune"]["macs"]["backbone"] <= 0.6 * results["sp"]["macs"]["backbone"]
    assert results["rl"]["parent"]["run_id"] == results["prune"]["run_id"]
    masked = stage("prune", "--method", "nuspm", "--sparse_epochs", "1", "--exp_name", "masked", data=data)
    assert masked.returncode == 0, masked.stderr

    page, deployed = tmp_path / "page.html", tmp_path / "deployed"
    for command, *words in (
        ("evaluate", runs["rl"]),
        ("sweep", runs["rl"], "--points", 1),
        ("export", runs["rl"], "--output", deployed),
        ("reconfigure", tmp_path / "masked" / runs["prune"].name, "--output", tmp_path / "small"),
        ("report", tmp_path / "default", "--html", page),
    ):
        forgotten()
        unnamed = run_here(f"hybridprune.{command}", *words)
        assert "my_network" not in sys.modules
        if command == "report":
            assert unnamed.returncode == 0 and "is imported only if you name it" in page.read_text()
        else:
            assert_refused(unnamed, "network my_network:separable: is imported only if you name it", " ".join(own))
        named = run_here(f"hybridprune.{command}", *words, *own)
        assert named.returncode == 0, named.stderr
    assert "is imported only" not in page.read_text()
    other = run_here("hybridprune.evaluate", runs["rl"], "--network", "resnet")
    assert_refused(other, "--network resnet: ", "is of my_network:separable; give that")

    forgotten()
    for read in (lambda: hybridprune.load(runs["rl"]), lambda: load_deployed(deployed)):
        with pytest.raises(UserError, match=r"^network my_network:separable: is imported only if you name it"):
            read()
    hybridprune.networks.allow("my_network:separable")
    model, shipped = hybridprune.load(runs["rl"]), load_deployed(deployed)[0]
    assert hybridprune.count(model.network, 8).backbone_macs == results["rl"]["macs"]["backbone"]
    images = random_images(3, 8)
    torch.testing.assert_close(shipped(images), model.network(images, mode="executed").logits, rtol=1e-4, atol=1e-4)
