"""Deployed cascades decide, answer and count as the cascades that they come from, and skip what these skip."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import hybridprune
from hybridprune.deployment import (
    Deployed,
    DeployedCascade,
    Harden,
    deploy,
    evaluate_module,
    load_deployed,
    save_deployed,
)
from hybridprune.deployment.agreement import compare
from hybridprune.deployment.batch_splitting import InPieces, in_one
from hybridprune.deployment.exported_engines import ENGINES
from hybridprune.deployment.onnx import onnx_bytes, opened, session
from hybridprune.deployment.program import export_program
from hybridprune.errors import UserError
from hybridprune.measure.cost import count, count_module
from hybridprune.models.cascade import Answer, Cascade
from hybridprune.models.cascade_spec import CascadeSpec
from hybridprune.store.run_folder import RunSpec
from tests.damaged_json import damage, quickly
from tests.deployment.networks import SPECS, assert_close, built, preferring
from tests.deployment.test_onnx import SINGLE, executed
from tests.models.test_cascade import Member, cascade, images
from tests.networks_and_images import batches_of, random_images

SIZE = 12
NAMES = ("vgg, factored", "resnet, factored", "preresnet")
SPEC = CascadeSpec(tuple(SPECS[name] for name in NAMES))


@torch.no_grad()
def real(names: tuple[str, ...] = NAMES, answer: Answer = "average") -> Cascade:
    """Whole networks, and gates that each send on half of the images that come as far."""
    net = Cascade([built(SPECS[name], seed).backbone for seed, name in enumerate(names)], 5, answer).eval()
    net.temperatures.uniform_(0.5, 2)
    part_images(net)
    return net


@torch.no_grad()
def part_images(net: Cascade) -> None:
    """Let each gate send on half of the images that come as far."""
    for layer in net.gate.scores():
        nn.init.normal_(layer.weight)
    x, everywhere = random_images(60, SIZE), torch.ones(60, net.num_gates)
    scores = net(x, everywhere, "masked").gate_logits
    going = torch.ones(60, dtype=torch.bool)
    for k, layer in enumerate(net.gate.scores()):
        ranked = scores[going, k].sort().values
        middle = ranked[len(ranked) // 2 - 1 :][:2].mean()  # between two, so that rounding changes no decision
        layer.bias -= middle
        going &= scores[:, k] > middle


def ungated(net: Cascade) -> DeployedCascade:
    """The deployed form with the members as they are."""
    return DeployedCascade.of(net, list(net.members))


@given(st.integers(1, 4), st.sampled_from(["average", "last"]), st.integers(1, 9), st.data())
@torch.no_grad()
def test_it_is_the_cascade(members: int, answer: Answer, batch: int, data: st.DataObject) -> None:
    net, x = cascade(members, answer), images(batch, data.draw(st.integers(0, 9)))
    for layer in net.gate.scores():
        nn.init.normal_(layer.weight)
    route = st.lists(st.integers(0, 1), min_size=members - 1, max_size=members - 1)
    routes = data.draw(st.lists(route, min_size=batch, max_size=batch))
    module = ungated(net)
    for wanted in (None, torch.tensor(routes).float().reshape(batch, members - 1)):
        found = module.route(x, wanted)
        for mode in ("masked", "executed"):
            expected = net(x, wanted, mode)
            assert torch.equal(found.decisions, expected.decisions)
            torch.testing.assert_close(found.logits, expected.logits)
        asked = found.gate_logits > -torch.inf
        torch.testing.assert_close(found.gate_logits[asked], expected.gate_logits[asked])
        came = torch.cat([torch.ones(batch, 1), expected.decisions], 1)[:, : members - 1] > 0
        assert torch.equal(asked, came)
    assert torch.equal(module(x), module.route(x).logits)


@torch.no_grad()
def test_its_gates_are_those_of_the_cascade_bit_by_bit() -> None:
    net = cascade(3)
    for layer in net.gate.scores():
        nn.init.normal_(layer.weight)
    answers = 9 * torch.randn(2000, net.classes)
    for index, gate in enumerate(ungated(net).gates):
        assert torch.equal(gate(answers, None)[0], net.gate(index, answers, None)[0])
        for one in answers[:50].split(1):
            assert torch.equal(gate(one, None)[0] > 0, net.gate(index, one, None)[0] > 0)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(gate(answers, None)[0], net.gate(index, answers, None)[0])


class Waits(TorchDispatchMode):
    """Counts what makes a program wait for its device, and what takes or puts rows."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = self.rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        self.waits += "nonzero" in name or "_local_scalar_dense" in name
        self.rows += "index" in name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("batch", [1, 5])
@torch.no_grad()
def test_it_waits_once_a_gate_and_copies_only_where_images_part(batch: int) -> None:
    net = cascade(3)
    module, x = ungated(net), images(batch)
    some = torch.ones(batch, 2)
    some[: batch // 2] = 0
    for routes, waits, rows, seen in (
        (torch.ones(batch, 2), 2, 0, [batch] * 3),
        (torch.zeros(batch, 2), 1, 0, [batch]),
        (some, 2, 0 if batch == 1 else 6, [batch] + [batch - batch // 2] * 2),
    ):
        for member in net.members:
            assert isinstance(member, Member)
            member.seen.clear()
        with Waits() as counted:
            module._walk(x, routes)
        assert (counted.waits, counted.rows) == (waits, rows)
        assert [n for member in net.members if isinstance(member, Member) for n in member.seen] == seen


@pytest.mark.parametrize("answer", ["average", "last"])
@pytest.mark.parametrize("format", [torch.channels_last, torch.contiguous_format])
@torch.no_grad()
def test_real_networks(answer: Answer, format: torch.memory_format) -> None:
    net, x = real(answer=answer), random_images(40, SIZE).to(memory_format=format)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    module, report = deploy(net, x, time=preferring("16", "input-sided"))
    assert isinstance(module, DeployedCascade) and not module.training
    assert not any(p.requires_grad for p in module.parameters())
    for batch in (1, 2, 7, 40):
        for some in x.split(batch):
            expected, found = net(some, mode="executed"), module.route(some)
            assert torch.equal(found.decisions, expected.decisions)
            assert_close(found.logits, expected.logits)
    assert {name: value for name, value in net.state_dict().items() if not torch.equal(value, before[name])} == {}
    rates = net(x, mode="executed").decisions.mean(0).tolist()
    assert report.rates == pytest.approx(rates) and 0.2 < rates[1] < rates[0] < 0.8
    assert [each.batch for each in report.members] == [40, round(40 * rates[0]), round(40 * rates[1])]
    assert [each.piece for each in report.members] == [16, 16, None]
    assert [isinstance(member, InPieces) for member in module.members] == [True, True, False]
    assert report.members[0].folded and report.members[1].forms and not report.forms and not report.folded


@torch.no_grad()
def test_macs_and_parameters_are_those_of_the_members_at_their_rates() -> None:
    net, x = real(), random_images(8, SIZE)
    module, report = deploy(net, x, rates=(0.5, 0.25), time=preferring("dense"))
    gate = net.gate.inputs
    assert report.macs_before == count(net, SIZE).expected_macs([0.5, 0.25])
    first, second, third = [count_module(member, x[:1])[0] for member in in_one(module).members]  # type: ignore[attr-defined]
    assert report.macs_after == first + gate + 0.5 * (second + gate) + 0.25 * third
    assert [each.macs_after for each in report.members] == [first, second, third]
    assert report.params_before == sum(p.numel() for p in net.parameters())
    assert report.params_after == sum(each.params_after for each in report.members) + 2 * (gate + 1)
    assert re.findall(r"member (\d) at rate ([\d.]+):", str(report)) == [("0", "1.000"), ("1", "0.500"), ("2", "0.250")]


@torch.no_grad()
def test_rates_and_what_changed_are_those_of_validation() -> None:
    net, x = real(), random_images(60, SIZE)
    batches = batches_of(x, torch.zeros(60, dtype=torch.int64), 25)
    module, report = deploy(net, x[:10], validation=batches, time=preferring("dense"))
    expected = evaluate_module(net, batches)
    assert list(report.rates) == expected.block_rates and report.validated is not None
    assert report.validated.changed_decisions == report.validated.changed_classes == 0
    assert evaluate_module(module, batches).accuracy == hybridprune.accuracy(net, [(x, torch.zeros(60).long())])
    assert hybridprune.accuracy(Deployed(module, report), [(x, torch.zeros(60).long())]) == expected.accuracy


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rates": [0.5]}, "rates: are 1, and the network has 2 members behind the first"),
        ({"rates": [0.5, 1.5]}, "rates: that of member 2 is 1.5"),
        ({"rates": [0.5, 0.6]}, "rates: that of member 2 is above the one before it"),
        ({"harden": Harden(), "validation": []}, "harden: is for gated blocks"),
    ],
)
def test_what_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        deploy(real(), random_images(2, SIZE), **options)


def test_images_that_the_members_do_not_take_are_refused() -> None:
    with pytest.raises(UserError, match="example_input: the network fails on it"):
        deploy(real(), torch.randn(2, 1, SIZE, SIZE))


@pytest.mark.full
@pytest.mark.parametrize("single", SINGLE)
@torch.no_grad()
def test_exporters_run_what_the_images_need(single: bool, tmp_path: Path) -> None:
    names = ("vgg, factored", "vgg")
    x = random_images(1 if single else 6, SIZE)
    module = deploy(real(names), x, time=preferring("dense")).module
    content = onnx_bytes(module, x, single=single, forced=True)
    for number in (0, 1) if single else (0, 2, 6):
        decisions = (torch.arange(len(x)) < number).float().unsqueeze(1)
        passed = executed(content, tmp_path, {"images": x, "decisions": decisions})
        assert sorted(n for n in passed if n) == sorted([len(x)] * 8 + ([number] * 8 if number else []))
        logits, taken = session(content).run(None, {"images": x.numpy(), "decisions": decisions.numpy()})
        assert np.array_equal(taken, decisions.numpy())
        assert isinstance(module, DeployedCascade)
        assert_close(torch.from_numpy(logits), module.route(x, decisions).logits)


@pytest.mark.full
@pytest.mark.parametrize("single", [True, False])
@torch.no_grad()
def test_exported_cascades_are_the_same(single: bool) -> None:
    net, x = real(), random_images(40, SIZE)
    module = deploy(net, x, time=preferring("16", "two-sided")).module
    content, program = onnx_bytes(module, x, single=single), export_program(module, x, single=single).module()
    for batch in (1,) if single else (1, 7, 40):
        for engine in ENGINES.values():
            found = compare(engine.opened(*engine.files(content, "")), module, x.split(batch))
            assert found.good and found.images == 40 and found.difference < 1e-4 and not found.classes, found
        for some in x.split(batch):
            logits, decisions = program(some)
            expected = net(some, mode="executed")
            assert torch.equal(decisions, expected.decisions)
            assert_close(logits, expected.logits)
    other = real()
    other.gate.shift(5)
    assert not compare(opened(content), deploy(other, x, time=preferring("dense")).module, x.split(1)).good


def run_of(network: CascadeSpec) -> RunSpec:
    return RunSpec("rl", "0", network, tuple("abcde"), SIZE, (0.5,) * 3, (0.25,) * 3, "digits", "0")


@torch.no_grad()
def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    x = random_images(40, SIZE)
    deployed = deploy(real(), x, time=preferring("16", "output-sided"))
    save_deployed(deployed, run_of(SPEC), tmp_path)
    module, spec = load_deployed(tmp_path)
    assert spec == run_of(SPEC) and isinstance(module, DeployedCascade) and not module.training
    assert [getattr(member, "piece", None) for member in module.members] == [16, 16, None]
    assert torch.equal(module(x), deployed.module(x))


@pytest.mark.full
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_folder_of_a_stranger(data: st.DataObject, tmp_path: Path) -> None:
    file = tmp_path / "deploy.json"
    if not file.is_file():
        save_deployed(deploy(real(), random_images(40, SIZE), time=preferring("16")), run_of(SPEC), tmp_path)
        (tmp_path / "whole.json").write_bytes(file.read_bytes())
    record = json.loads((tmp_path / "whole.json").read_text())
    kept = ("folded", "forms", "folded_inputs", "steps", "piece")  # what is read again
    members = [{key: member[key] for key in kept} for member in record["report"]["members"]]
    record["report"] = {"members": members}
    file.write_text(json.dumps(damage(record, data)))
    quickly(lambda: load_deployed(tmp_path))
