"""A network that dsp has pruned: saved, restored, shown, pruned again, deployed and exported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import hybridprune
from hybridprune.config import CutOptions, SparsityOptions
from hybridprune.deployment.onnx import onnx_bytes, opened
from hybridprune.errors import UserError
from hybridprune.measure.cost import count_module
from hybridprune.models.branched import BranchedConv2d
from hybridprune.models.edits import BranchEdit
from tests.networks_and_images import random_images, random_net

BATCHES = [(random_images(8, seed=n), torch.arange(8) % 5) for n in range(2)]
OPTIONS = SparsityOptions(sparse_epochs=3, dsp_groups=3)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return random_net(8).backbone


@pytest.fixture(scope="module")
def pruned(network: nn.Module) -> hybridprune.Pruned:
    return hybridprune.prune(network, BATCHES, method="dsp", target_flops=0.5, sparsity=OPTIONS, lr=0.05)


def branched_layers(module: nn.Module) -> dict[str, BranchedConv2d]:
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, BranchedConv2d)}


def test_it_meets_its_budget_in_integers(pruned: hybridprune.Pruned) -> None:
    spec, layers = pruned.spec, branched_layers(pruned.module)
    assert 0.45 * spec.dense_macs < spec.macs <= 0.5 * spec.dense_macs
    assert count_module(pruned.module, random_images(1)) == (spec.macs, spec.params)
    assert layers and {e.layer for e in spec.edits if isinstance(e, BranchEdit)} == set(layers)
    forms = {row.name: row.after.form for row in spec.layers}
    assert all(forms[name] == f"{len(layer.sizes)} branches" for name, layer in layers.items())
    assert sum(row.after.macs for row in spec.layers) == spec.macs


def test_it_is_saved_and_restored(pruned: hybridprune.Pruned, tmp_path: Path) -> None:
    hybridprune.save(pruned, tmp_path / "small")
    again = hybridprune.restore(tmp_path / "small", random_net(8, seed=1).backbone)
    assert torch.equal(again(BATCHES[0][0]), pruned.module(BATCHES[0][0]))


@pytest.mark.parametrize(
    ("method", "words"),
    [
        pytest.param("l1", "has no channels that can go by themselves", marks=pytest.mark.full),
        ("dsp", r"no convolution is left .*\(its filters are in branches already\)"),
    ],
)
def test_branches_are_not_cut_again(pruned: hybridprune.Pruned, method: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        hybridprune.prune(pruned, BATCHES, method=method, target_flops=0.9, sparsity=OPTIONS)


@pytest.mark.full
def test_what_is_pruned_again_keeps_its_branches(pruned: hybridprune.Pruned, tmp_path: Path) -> None:
    cut = CutOptions(prune_ratio=0.2, refit_images=8)
    twice = hybridprune.prune(pruned, BATCHES, cut=cut)
    layers = branched_layers(twice.module)
    assert {name: x.sizes for name, x in layers.items()} == {
        name: x.sizes for name, x in branched_layers(pruned.module).items()
    }
    assert all("branches already" in twice.left_alone[name] for name in layers)
    hybridprune.save(twice, tmp_path / "small")
    again = hybridprune.restore(tmp_path / "small", random_net(8).backbone)
    assert torch.equal(again(BATCHES[0][0]), twice.module(BATCHES[0][0]))


@pytest.mark.full
def test_it_is_deployed_and_exported(pruned: hybridprune.Pruned) -> None:
    images, model = random_images(4), pruned.module.eval()
    with torch.no_grad():
        expected = model(images)
        deployed = hybridprune.deploy(model, images)
        assert not deployed.report.kept  # every BatchNorm is folded, into branches as well
        assert set(branched_layers(model)) <= set(deployed.report.forms)
        torch.testing.assert_close(deployed.module(images), expected, rtol=1e-4, atol=1e-4)
        pytest.importorskip("onnxruntime")
        (found,) = opened(onnx_bytes(model, images))(images.numpy())
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)
