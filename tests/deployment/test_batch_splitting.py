"""Batches in pieces: image by image the same, at the size that the clock prefers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hybridprune.deployment import DeployedNetwork, deploy, load_deployed, save_deployed
from hybridprune.deployment.batch_splitting import InPieces, in_one, in_pieces, piece_sizes
from hybridprune.deployment.program import export_program
from hybridprune.errors import UserError
from hybridprune.measure.latency import Arms, Latency
from tests.deployment.networks import SPECS, assert_close, built, preferring
from tests.deployment.test_store import run_of
from tests.networks_and_images import random_decisions, random_images


@pytest.mark.parametrize(
    ("batch", "names"),
    [(1, ["all"]), (16, ["all"]), (17, ["all", "16"]), (32, ["all", "16"]), (100, ["all", "16", "32", "64"])],
)
def test_sizes(batch: int, names: list[str]) -> None:
    sizes = piece_sizes(batch)
    assert list(sizes) == names and all(str(size) == name for name, size in sizes.items() if name != "all")


@given(batch=st.integers(1, 9), piece=st.integers(1, 10))
@torch.no_grad()
def test_each_image_by_itself(batch: int, piece: int) -> None:
    seen: list[int] = []
    linear = nn.Linear(2, 3).eval()
    linear.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    x = torch.randn(batch, 2)
    whole, module = linear(x), in_pieces(linear, piece)
    assert isinstance(module, InPieces) and in_one(module) is linear and not module.training
    seen.clear()
    torch.testing.assert_close(module(x), whole)
    assert sum(seen) == batch and max(seen) <= piece and len(seen) == -(-batch // piece)
    assert in_pieces(linear, None) is linear


@pytest.mark.parametrize("action", ["gather", "blend"])
@pytest.mark.parametrize("name", ["resnet, factored", "resnet, ff1"])
@pytest.mark.parametrize("format", [torch.channels_last, torch.contiguous_format])
@torch.no_grad()
def test_gated_networks(name: str, action: str, format: torch.memory_format) -> None:
    net, images = built(SPECS[name]), random_images(40, 12).to(memory_format=format)
    module, report = deploy(net, images, time=preferring("16", "input-sided", action))
    assert isinstance(module, DeployedNetwork) and module.piece == report.piece == 16
    assert report.pieces is not None and list(report.pieces.latencies) == ["all", "16", "32"]
    walked: list[int] = []
    module.step(0).register_forward_hook(lambda step, args, output: walked.append(len(output)))
    for batch, sizes in ((40, [16, 16, 8]), (16, [16]), (3, [3]), (1, [1])):
        some, forced = images[:batch], random_decisions(batch, net.num_gates, batch)
        free, found = net(some), module.route(some)
        assert torch.equal(found.decisions, free.decisions)
        assert_close(found.logits, free.logits)
        assert_close(found.gate_logits, free.gate_logits)
        assert torch.equal(module(some), found.logits)
        routed = module.route(some, forced)
        assert torch.equal(routed.decisions, forced)
        assert_close(routed.logits, net(some, forced).logits)
        assert walked == sizes * 3
        walked.clear()


@torch.no_grad()
def test_choices_are_made_at_the_size_of_a_piece() -> None:
    net, images = built(SPECS["resnet, factored"]), random_images(40, 12)
    seen: dict[str, set[int]] = {"forms": set(), "actions": set(), "pieces": set(), "whole": set()}

    def time(arms: Arms) -> dict[str, Latency]:
        names = set(arms)
        what = "pieces" if "all" in names else "whole" if "layer by layer" in names else "forms"
        what = "actions" if "blend" in names else what
        for run in arms.values():
            output = run()
            seen[what].add(len(output if isinstance(output, Tensor) else output[0]))  # type: ignore[index]
        return dict(preferring("32", "two-sided", "gather")(arms))

    deploy(net, images, rates=[0.5] * 5, time=time)
    assert seen == {"forms": {32, 16}, "actions": {32}, "pieces": {40}, "whole": {40}}


@torch.no_grad()
def test_static_networks_are_wrapped_stored_and_exported(tmp_path: Path) -> None:
    net, images = built(SPECS["vgg, factored"]), random_images(20, 12)
    deployed = deploy(net, images, time=preferring("16", "dense"))
    assert isinstance(deployed.module, InPieces) and deployed.module.piece == 16 and "16" in str(deployed.report)
    assert_close(deployed.module(images), net(images).logits)
    save_deployed(deployed, run_of(SPECS["vgg, factored"]), tmp_path)
    loaded, _ = load_deployed(tmp_path)
    assert isinstance(loaded, InPieces) and loaded.piece == 16
    assert torch.equal(loaded(images), deployed.module(images))
    assert_close(export_program(deployed.module, images).module()(images), deployed.module(images))
    record = json.loads((tmp_path / "deploy.json").read_text())
    for piece in (0, "16"):
        record["report"]["piece"] = piece
        (tmp_path / "deploy.json").write_text(json.dumps(record))
        with pytest.raises(UserError, match=r"deploy\.json: not a deployed network"):
            load_deployed(tmp_path)


@pytest.mark.full
@torch.no_grad()
def test_gated_networks_are_stored_and_exported(tmp_path: Path) -> None:
    spec = SPECS["resnet, ff1"]
    net, images = built(spec), random_images(20, 12)
    deployed = deploy(net, images, time=preferring("16", "dense", "gather"))
    save_deployed(deployed, run_of(spec), tmp_path)
    loaded, _ = load_deployed(tmp_path)
    assert isinstance(loaded, DeployedNetwork) and loaded.piece == 16
    assert torch.equal(loaded(images), deployed.module(images))
    logits, decisions = export_program(deployed.module, images).module()(images)
    assert_close(logits, net(images).logits)
    assert torch.equal(decisions, net(images).decisions)
    assert isinstance(deployed.module, DeployedNetwork) and deployed.module.piece == 16, "exporting changes nothing"


class Together(nn.Module):
    """Normalises by the statistics of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm2d(3, track_running_stats=False), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x).flatten(1))


@torch.no_grad()
def test_images_that_depend_on_each_other_stay_together() -> None:
    torch.manual_seed(0)
    model, images = Together().eval(), random_images(20, 2)
    module, report = deploy(model, images, time=preferring("16"))
    assert report.pieces is None and report.piece is None
    assert_close(module(images), model(images))
