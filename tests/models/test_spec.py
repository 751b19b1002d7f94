"""An architecture survives JSON: what is rebuilt takes the original's weights and computes the same."""

from __future__ import annotations

import json

import pytest
import torch

from hybridprune.config import NetworkOptions
from hybridprune.errors import UserError
from hybridprune.measure.cost import count
from hybridprune.models.architectures import gated_networks, is_network
from hybridprune.models.edits import FactorEdit
from hybridprune.models.factored import FactoredConv2d
from hybridprune.models.gates import FeedForwardGate
from hybridprune.models.shakedrop import ShakeDrop
from hybridprune.models.spec import NetworkSpec
from tests.networks_and_images import random_images, random_net

EDITS = (
    FactorEdit("backbone.blocks.1.conv1", 2, 3),
    FactorEdit("backbone.blocks.2.conv2", None, 5),
    FactorEdit("backbone.blocks.2.projection.0", 3, None),
)


@pytest.mark.parametrize("edits", [(), EDITS], ids=["dense", "factored"])
def test_round_trip(edits: tuple[FactorEdit, ...]) -> None:
    net = random_net(14, 4, 5, edits)
    spec = NetworkSpec("resnet", 14, 4, 5, edits)
    again = NetworkSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    rebuilt = again.build().eval()
    rebuilt.load_state_dict(net.state_dict())  # strict
    images = random_images(3)
    assert torch.equal(rebuilt(images).logits, net(images).logits)


def test_edits_are_really_made() -> None:
    net = NetworkSpec("resnet", 14, 4, 5, EDITS).build()
    factored = {name for name, module in net.named_modules() if isinstance(module, FactoredConv2d)}
    assert factored == {edit.layer for edit in EDITS}


@pytest.mark.parametrize("missing", ["network", "depth", "width", "classes", "edits"])
def test_incomplete_record_is_refused(missing: str) -> None:
    record = NetworkSpec("resnet", 8, 4, 5).to_json()
    del record[missing]
    with pytest.raises(KeyError, match=missing):
        NetworkSpec.from_json(record)


# --- the registry ---

OTHERS = {
    "preresnet20-w3-bottleneck": NetworkSpec("preresnet", 20, 3, 5, bottleneck=True),
    "pyramidnet14-w4-a7": NetworkSpec("pyramidnet", 14, 4, 5, pyramid_alpha=7),
    "pyramidnet20-w3-a9-bottleneck-shakedrop0.5": NetworkSpec(
        "pyramidnet", 20, 3, 5, bottleneck=True, pyramid_alpha=9, shakedrop=0.5
    ),
    "vgg11-w4": NetworkSpec("vgg", 11, 4, 5),
    "torchvision_squeezenet1_1": NetworkSpec("torchvision:squeezenet1_1", 32, 64, 5),
}


@pytest.mark.parametrize(("label", "spec"), OTHERS.items())
def test_round_trip_of_every_network(label: str, spec: NetworkSpec) -> None:
    again = NetworkSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    torch.manual_seed(0)
    net = spec.build().eval()
    torch.manual_seed(1)
    rebuilt = again.build().eval()
    images = random_images(3, 17)
    assert not torch.equal(rebuilt(images).logits, net(images).logits)
    rebuilt.load_state_dict(net.state_dict())
    assert torch.equal(rebuilt(images).logits, net(images).logits)


def test_options_reach_the_network() -> None:
    sizes = [
        sum(p.numel() for p in NetworkSpec.of(options, 5).build().backbone.parameters())
        for options in (
            NetworkOptions("pyramidnet", 20, 4),
            NetworkOptions("pyramidnet", 20, 4, pyramid_alpha=12),
            NetworkOptions("pyramidnet", 20, 4, bottleneck=True),
            NetworkOptions("preresnet", 20, 4),
            NetworkOptions("preresnet", 20, 4, bottleneck=True),
            NetworkOptions("preresnet", 20, 5),
            NetworkOptions("preresnet", 14, 4),
            NetworkOptions("vgg", 11, 4),
            NetworkOptions("vgg", 16, 4),
        )
    ]
    assert len(set(sizes)) == len(sizes)
    dropping = NetworkSpec.of(NetworkOptions("pyramidnet", 8, 4, shakedrop=0.25), 5).build()
    assert [m.drop for m in dropping.modules() if isinstance(m, ShakeDrop)] == [0.25 / 3, 0.5 / 3, 0.25]


@pytest.mark.parametrize(("label", "spec"), [("resnet8-w4", NetworkSpec("resnet", 8, 4, 5)), *OTHERS.items()])
def test_label(label: str, spec: NetworkSpec) -> None:
    assert spec.label == label


def test_in_words() -> None:
    assert str(NetworkSpec("resnet", 8, 4, 5)) == "resnet-8, width 4, gate rnn"
    assert str(OTHERS["torchvision_squeezenet1_1"]) == "torchvision:squeezenet1_1"
    assert str(OTHERS["pyramidnet14-w4-a7"]) == (
        "pyramidnet-14, width 4, pyramid_alpha 7, bottleneck False, shakedrop 0.0, gate rnn"
    )


def test_records_of_older_versions_take_the_defaults() -> None:
    old = {"network": "resnet", "depth": 14, "width": 4, "classes": 5, "edits": [edit.to_json() for edit in EDITS]}
    assert NetworkSpec.from_json(old) == NetworkSpec("resnet", 14, 4, 5, EDITS, gate="rnn")


@pytest.mark.parametrize(
    ("field", "value"),
    [("network", "resnt"), ("network", "torchvision:resnt"), ("network", None), ("network", ["resnet"]),
     ("depth", 8.0), ("depth", "8"), ("width", True), ("classes", None), ("bottleneck", 0), ("pyramid_alpha", 1.5),
     ("shakedrop", "0.5"), ("shakedrop", None), ("gate", "ff3"), ("gate", None), ("colour", 1)],
)  # fmt: skip
def test_wrong_records_are_refused(field: str, value: object) -> None:
    with pytest.raises((TypeError, ValueError), match=field):
        NetworkSpec.from_json({**NetworkSpec("resnet", 8, 4, 5).to_json(), field: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (NetworkOptions("resnt"), "--network resnt: must be one of resnet, preresnet, pyramidnet, vgg, resnet18-gated, "
         "resnet34-gated, resnet50-gated, resnet101-gated, resnet152-gated or torchvision:NAME, did you mean resnet?"),
        (NetworkOptions("resnet50"), "--network resnet50: is torchvision's; give --network torchvision:resnet50, or "
         "resnet50-gated, which has gates"),
        (NetworkOptions("vgg16"), "--network vgg16: is torchvision's; give --network torchvision:vgg16"),
        (NetworkOptions("zzz"), "torchvision:NAME"),
        (NetworkOptions("torchvision:resnet5"), "--network torchvision:resnet5: torchvision has no such classifier"),
        (NetworkOptions("resnet", bottleneck=True), "--bottleneck True: --network resnet does not read it; leave it "
         "out, or use preresnet or pyramidnet"),
        (NetworkOptions("preresnet", shakedrop=0.5), "--shakedrop 0.5: --network preresnet does not read it; leave it "
         "out, or use pyramidnet"),
        (NetworkOptions("torchvision:resnet18", pyramid_alpha=7), "--pyramid_alpha 7: --network torchvision:resnet18"),
        (NetworkOptions("vgg", 11, gate="ff1"), "--gate ff1: --network vgg does not read it; leave it out, or use "
         "resnet or preresnet or pyramidnet"),
        (NetworkOptions("torchvision:resnet18", gate="ff2"), "--gate ff2: --network torchvision:resnet18"),
    ],
)  # fmt: skip
def test_options_that_name_no_network(options: NetworkOptions, message: str) -> None:
    with pytest.raises(UserError) as caught:
        NetworkSpec.of(options, 5)
    assert message in str(caught.value)


def test_what_is_a_network_and_what_has_gates() -> None:
    assert is_network("vgg") and is_network("torchvision:resnet50")
    assert not is_network("resnet50") and not is_network("torchvision:") and not is_network(3)
    imagenet = [f"resnet{depth}-gated" for depth in (18, 34, 50, 101, 152)]
    assert gated_networks() == ["resnet", "preresnet", "pyramidnet", *imagenet]
    for label, spec in OTHERS.items():
        assert (spec.build().num_gates > 0) == (spec.network in gated_networks()), label


def test_a_network_may_be_without_gates() -> None:
    spec = NetworkSpec("resnet", 8, 4, 5, gate="none")
    assert spec.label == "resnet8-w4-none" and NetworkSpec.from_json(spec.to_json()) == spec
    assert NetworkSpec.of(NetworkOptions("resnet", 8, 4, gate="none"), 5) == spec
    net, images = spec.build().eval(), random_images(3)
    assert net.num_gates == 0 and not list(net.gate.parameters())
    gated = NetworkSpec("resnet", 8, 4, 5).build().eval()
    gated.backbone.load_state_dict(net.backbone.state_dict())
    routed = net(images)
    assert routed.decisions.shape == (3, 0) and routed.mean_rate == 1
    torch.testing.assert_close(routed.logits, gated(images, torch.ones(3, 2)).logits)
    own, other = count(net, 8), count(gated, 8)
    assert (own.backbone_macs, own.backbone_params) == (other.backbone_macs, other.backbone_params)
    assert own.expected_macs([]) == own.backbone_macs


@pytest.mark.parametrize("gate", ["ff1", "ff2"])
def test_the_kind_of_gate_is_part_of_the_network(gate: str) -> None:
    spec = NetworkSpec("resnet", 8, 4, 5, gate=gate)
    assert spec.label == f"resnet8-w4-{gate}" and NetworkSpec("resnet", 8, 4, 5).label == "resnet8-w4"
    assert NetworkSpec.from_json(spec.to_json()) == spec
    net = spec.build()
    routed = net(torch.zeros(2, 3, 8, 8))
    assert isinstance(net.gate, FeedForwardGate) and routed.gate_logits.shape == (2, net.num_gates)
    rebuilt = NetworkSpec.from_json(json.loads(json.dumps(spec.to_json()))).build()
    rebuilt.load_state_dict(net.state_dict())  # strict
    images = random_images(3)
    assert torch.equal(rebuilt.eval()(images).gate_logits, net.eval()(images).gate_logits)
    assert NetworkSpec.of(NetworkOptions("resnet", 8, 4, gate=gate), 5) == spec
