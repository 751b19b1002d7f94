"""Deployed cascades whose members share a trunk compute, count and hold it once, and change no answer."""

from __future__ import annotations

import copy
import itertools
import json
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from hybridprune.deployment import Deployed, DeployedCascade, deploy, load_deployed, save_deployed
from hybridprune.deployment.agreement import compare
from hybridprune.deployment.batch_splitting import InPieces
from hybridprune.deployment.cascade import Forked
from hybridprune.deployment.exported_engines import ENGINES
from hybridprune.deployment.onnx import onnx_bytes
from hybridprune.deployment.onnx_forms import nothing_is_faster, onnx_models
from hybridprune.deployment.program import export_program
from hybridprune.errors import UserError
from hybridprune.measure.cost import count
from hybridprune.models.cascade import Cascade
from hybridprune.models.cascade_spec import CascadeSpec
from hybridprune.models.spec import NetworkSpec
from tests.deployment.networks import FACTORED, assert_close, built, preferring
from tests.deployment.test_cascade import SIZE, part_images, run_of
from tests.models.test_trunk import joined
from tests.networks_and_images import random_images

SPEC = CascadeSpec((NetworkSpec("resnet", 8, 4, 5), NetworkSpec("resnet", 8, 4, 5, FACTORED[:3])), trunks=(0, 1))


def shared() -> tuple[Cascade, Cascade]:
    """A cascade with a trunk, and one of whole members of the same weights."""
    net = SPEC.joined([built(spec, seed).backbone for seed, spec in enumerate(SPEC.members)]).eval()
    net.temperatures.copy_(torch.tensor([0.5, 2.0]))
    part_images(net)
    apart = Cascade([copy.deepcopy(net.members[0]), built(SPEC.members[1], 1).backbone], 5).eval()
    apart.gate.load_state_dict(net.gate.state_dict())
    apart.temperatures.copy_(net.temperatures)
    return net, apart


def forked(module: nn.Module) -> tuple[DeployedCascade, Forked]:
    """A deployed cascade, and its first member."""
    assert isinstance(module, DeployedCascade)
    member = module.members[0]
    assert isinstance(member, Forked)
    return module, member


def assert_it_is(module: nn.Module, net: Cascade) -> None:
    """For all routes, for those that the gates choose, and for images one by one."""
    assert isinstance(module, DeployedCascade)
    x = random_images(12, SIZE).to(memory_format=torch.channels_last)
    routes = torch.tensor(list(itertools.product([0.0, 1.0], repeat=net.num_gates)))
    for some, wanted in ((x, None), *((one, None) for one in x[:4].split(1)), (x[: len(routes)], routes)):
        expected, found = net(some, wanted, "executed"), module.route(some, wanted)
        assert torch.equal(found.decisions, expected.decisions)
        assert_close(found.logits, expected.logits)


@pytest.mark.parametrize("trunks", [(0, 1), (0, 1, 0), (0, 0, 1), (0, 1, 1), (0, 1, 2)])
@torch.no_grad()
def test_it_goes_on_from_features_as_the_cascade_does(trunks: tuple[int, ...]) -> None:
    net, _ = joined("pyramidnet", trunks)
    part_images(net)
    members = [Forked(*parts) if len(parts) == 2 else next(iter(parts)) for parts in net.parts()]
    assert [isinstance(member, Forked) for member in members] == [end > 0 for end in (*trunks[1:], 0)]
    assert_it_is(DeployedCascade.of(net, members), net)


@pytest.mark.full
@pytest.mark.parametrize(("network", "trunks"), [("preresnet", (0, 1, 0)), ("pyramidnet", (0, 1, 2))])
@torch.no_grad()
def test_it_is_the_cascade(network: str, trunks: tuple[int, ...]) -> None:
    net, _ = joined(network, trunks)
    part_images(net)
    assert_it_is(deploy(net, random_images(12, SIZE), time=preferring("dense"), progress=False).module, net)


@pytest.fixture(scope="module")
def pair() -> tuple[Cascade, Deployed, Deployed]:
    """A cascade with a trunk, as deployed, and the one of whole members of the same weights, as deployed."""
    net, apart = shared()
    x = random_images(8, SIZE)
    ours, theirs = (deploy(each, x, rates=[0.25], time=nothing_is_faster, progress=False) for each in (net, apart))
    return net, ours, theirs


@torch.no_grad()
def test_the_trunk_runs_once_and_the_rest_of_the_large_member_on_those_that_go_on(
    pair: tuple[Cascade, Deployed, Deployed],
) -> None:
    net, deployed, apart = pair
    x = random_images(40, SIZE)
    module, member = forked(deployed.module)
    seen: dict[str, list[int]] = {"trunk": [], "rest": [], "tail": []}

    def note(counts: list[int], module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        counts.append(len(inputs[0]))

    with ExitStack() as stack:
        for name, each in (("trunk", member.trunk), ("rest", member.rest), ("tail", module.members[1])):
            stack.enter_context(each.register_forward_pre_hook(partial(note, seen[name])))
        assert_close(module(x), apart.module(x))
    going = int(net(x, mode="executed").decisions.sum())
    assert seen == {"trunk": [40], "rest": [40], "tail": [going]} and 0 < going < 40


def test_macs_and_parameters_of_the_trunk_are_counted_once(pair: tuple[Cascade, Deployed, Deployed]) -> None:
    net, (module, report), (_, whole) = pair
    assert report.macs_before == report.macs_after == count(net, SIZE).expected_macs([0.25])
    trunk = report.members[0].trunk
    assert trunk is not None and trunk.macs_before == trunk.macs_after > 0
    assert trunk in list(report.parts())
    assert report.members[0].macs_before == report.members[0].macs_after == count(net, SIZE).start_macs
    assert whole.macs_after - report.macs_after == 0.25 * trunk.macs_after
    assert whole.params_after - report.params_after == trunk.params_after
    assert whole.params_before - report.params_before == trunk.params_before
    assert report.params_after == sum(each.params_after for each in report.members) + net.gate.inputs + 1
    assert trunk.params_after == sum(p.numel() for p in forked(module)[1].trunk.parameters())
    assert trunk.folded == {"backbone.bn": "backbone.conv.rotate_out"} | {
        f"backbone.blocks.0.bn{k}": f"backbone.blocks.0.conv{k}{end}" for k, end in ((1, ".rotate_out"), (2, ""))
    }
    assert "trunk, which the next member goes on from:\n        batch 8" in str(report)


@torch.no_grad()
def test_forms_and_pieces_of_the_trunk_are_stored_and_loaded(tmp_path: Path) -> None:
    net, _ = shared()
    x = random_images(40, SIZE)
    deployed = deploy(net, x, time=preferring("16", "input-sided"), progress=False)
    trunk = deployed.report.members[0].trunk
    assert trunk is not None and trunk.forms["backbone.blocks.0.conv1"].chosen == "input-sided"
    module, member = forked(deployed.module)
    assert isinstance(member.trunk, InPieces) and isinstance(member.rest, InPieces)
    assert_close(module(x), net(x, mode="executed").logits)
    save_deployed(deployed, run_of(SPEC), tmp_path)
    loaded, _ = load_deployed(tmp_path)
    assert isinstance(forked(loaded)[1].trunk, InPieces)
    assert torch.equal(loaded(x), deployed.module(x))
    models = onnx_models(net, Deployed(module, deployed.report), x, lambda module: b"")
    assert len(models) == 2, "the trunk's forms are others than those of the pruned network"
    record = json.loads((tmp_path / "deploy.json").read_text())
    del record["report"]["members"][0]["trunk"]
    (tmp_path / "deploy.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="not a deployed network"):
        load_deployed(tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("single", [True, False])
@torch.no_grad()
def test_exported_ones_are_the_same(single: bool) -> None:
    net, x = shared()[0], random_images(20, SIZE)
    module = deploy(net, x, time=preferring("16", "two-sided"), progress=False).module
    content = onnx_bytes(module, x, single=single)
    assert any(node.op_type == "If" for node in onnx.load_from_string(content).graph.node) == single
    for engine in ENGINES.values():
        for batch in (1,) if single else (1, 20):
            found = compare(engine.opened(*engine.files(content, "")), module, x.split(batch))
            assert found.good and found.images == 20 and not found.classes, found


@pytest.mark.full
@pytest.mark.parametrize("single", [True, False])
@torch.no_grad()
def test_a_trunk_behind_another_is_gathered_of_single_images_too(single: bool) -> None:
    (net, _), x = joined("resnet", (0, 1, 1)), random_images(20, SIZE)
    part_images(net)
    program = export_program(deploy(net, x, time=preferring("dense"), progress=False).module, x, single=single)
    for some in x.split(1) if single else (x[:1], x):
        logits, decisions = program.module()(some)
        expected = net(some, mode="executed")
        assert torch.equal(decisions, expected.decisions)
        assert_close(logits, expected.logits)
