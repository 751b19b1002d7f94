"""The deployed network computes what the trained one does, whatever forms and actions the clock prefers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from hybridprune.deployment import DeployedNetwork, deploy
from hybridprune.measure.cost import count
from hybridprune.measure.latency import Arms, Latency
from hybridprune.models.edits import Edit, FactorEdit, ResizeEdit, apply_edits
from hybridprune.models.factored import FactoredLayer
from hybridprune.models.spec import NetworkSpec
from tests.deployment.networks import SPECS, assert_close, built, preferring
from tests.networks_and_images import random_decisions, random_images, random_net, randomise

SIZE = 12
# Form and action; what has no factored layers knows no more than the actions.
CHOICES = [("dense", "gather"), ("two-sided", "blend"), ("input-sided", "blend"), ("output-sided", "gather")]
CASES = [
    pytest.param(spec, *choice, id=f"{name}: {' and '.join(choice)}")
    for name, spec in SPECS.items()
    for choice in CHOICES[: 4 if spec.edits else 2 if "vgg" not in name else 1]
]


@pytest.mark.parametrize(("spec", "form", "action"), CASES)
@torch.no_grad()
def test_the_same_logits_for_the_same_decisions(spec: NetworkSpec, form: str, action: str) -> None:
    net, images = built(spec), random_images(6, 12)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    module, report = deploy(net, images, time=preferring(form, action))
    assert all(choice.chosen == form for choice in report.forms.values() if form in choice.latencies)
    if isinstance(module, DeployedNetwork):
        assert {choice.chosen for choice in report.blocks.values()} == {action}
        for batch in (6, 3, 1):
            free, own = net(images[:batch]), module.route(images[:batch])
            assert torch.equal(own.decisions, free.decisions)
            assert_close(own.logits, free.logits)
            assert_close(own.gate_logits, free.gate_logits)
            assert torch.equal(module(images[:batch]), own.logits)
            for forced in (*(random_decisions(batch, net.num_gates, seed) for seed in range(3)), own.decisions * 0):
                routed = module.route(images[:batch], forced)
                assert torch.equal(routed.decisions, forced)
                assert_close(routed.logits, net(images[:batch], forced).logits)
    else:
        assert not net.num_gates and report.blocks == {}
        assert_close(module(images), net(images).logits)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("edited", ["factored", "channels"])
@torch.no_grad()
def test_a_module_of_a_users_own_that_was_pruned(edited: str) -> None:
    torch.manual_seed(0)
    own = resnet18(num_classes=5).eval()
    randomise(own)
    if edited == "factored":
        edits: list[Edit] = [FactorEdit("layer1.0.conv1", 8, 9), FactorEdit("layer2.0.conv1", None, 9)]
        edits += [FactorEdit("layer2.0.downsample.0", 8, 16), FactorEdit("fc", 20, None)]
    else:
        edits = [ResizeEdit("layer1.0.conv1", 64, 20), ResizeEdit("layer1.0.bn1", 20, 20)]
        edits += [ResizeEdit("layer1.0.conv2", 20, 64)]
    apply_edits(own, edits)
    for edit in edits:
        for parameter in own.get_submodule(edit.layer).parameters():
            nn.init.normal_(parameter, 0, 0.2)
    randomise(own)
    images = random_images(2, 32)
    module, report = deploy(own, images, time=preferring("dense"))
    assert_close(module(images), own(images))
    assert len(report.folded) == 20 and not report.kept
    assert len(report.forms) == (4 if edited == "factored" else 0)
    assert not any(isinstance(each, FactoredLayer) for each in module.modules())


@torch.no_grad()
def test_channel_pruned_networks() -> None:
    edits = (
        ResizeEdit("backbone.blocks.1.conv1", 4, 2),
        ResizeEdit("backbone.blocks.1.bn1", 2, 2),
        ResizeEdit("backbone.blocks.1.conv2", 2, 4),
        FactorEdit("backbone.blocks.1.conv2", None, 2),
    )
    net, images = random_net(edits=edits), random_images(5)
    for parameter in net.backbone.blocks[1].parameters():
        nn.init.normal_(parameter)
    module, report = deploy(net, images, time=preferring("output-sided"))
    assert isinstance(module, DeployedNetwork)
    routed, expected = module.route(images), net(images)
    assert torch.equal(routed.decisions, expected.decisions)
    assert_close(routed.logits, expected.logits)
    assert not report.kept and report.forms["backbone.blocks.1.conv2"].chosen == "output-sided"


@torch.no_grad()
def test_the_costs_are_those_that_are_counted_elsewhere() -> None:
    net, images = built(SPECS["resnet, factored"]), random_images(4, SIZE)
    rates = [0.25, 0.5, 0.0, 1.0, 0.75]
    cost = count(net, SIZE)
    kept = deploy(net, images, rates=rates, time=preferring("two-sided", "gather")).report
    assert kept.rates == tuple(rates) and kept.macs_before == cost.expected_macs(rates)
    # Each gate: an embedding of C x 10, two products of 10 x 40 and a score become C x 40, 10 x 40 and a score.
    folding = sum(channels * 40 - channels * 10 - 400 for channels in net.backbone.block_channels[:-1])
    assert kept.macs_after == pytest.approx(kept.macs_before + folding)
    blended = deploy(net, images, rates=rates, time=preferring("two-sided", "blend")).report
    assert blended.macs_after == pytest.approx(cost.expected_macs([1.0] * 5) + folding)
    dense = deploy(net, images, rates=rates, time=preferring("dense", "gather")).report
    unpruned = count(built(SPECS["resnet"]), SIZE)
    assert dense.macs_after == pytest.approx(unpruned.expected_macs(rates) + folding)


@torch.no_grad()
def test_layers_are_timed_on_the_images_that_will_reach_them() -> None:
    net, images = built(SPECS["resnet, factored"]), random_images(8, SIZE)
    seen: list[int] = []

    def time(arms: Arms) -> dict[str, Latency]:
        outputs = [run() for run in arms.values()]
        if isinstance(outputs[0], torch.Tensor):
            seen.append(len(outputs[0]))
        return dict(preferring("two-sided", "gather")(arms))

    deploy(net, images, rates=[0.5, 0.0, 0.75, 1.0, 1.0], time=time)
    # Stem, block 0, two layers of block 1, two of block 2, one of block 3, the classifier; then the blocks, those of
    # the network with dense layers, too.
    assert seen == [8, 8, 4, 4, 1, 1, 6, 8] + [8] * 5 * 2


@pytest.mark.parametrize(
    ("batch", "rate", "counts", "median"), [(1, 0.3, (0, 1), 1.6), (4, 0.5, (2, 3), 3), (4, 1, (3, 4), 5)]
)
@torch.no_grad()
def test_gathering_is_timed_at_its_rate(batch: int, rate: float, counts: tuple[int, int], median: float) -> None:
    net = random_net(depth=8)

    def time(arms: Arms) -> dict[str, Latency]:
        assert list(arms) == [f"gather {counts[0]}", f"gather {counts[1]}", "blend"]
        return {name: Latency(ms, ms, ms, 1) for name, ms in zip(arms, TIMES[counts], strict=True)}

    module, report = deploy(net, random_images(batch), rates=[rate, rate], time=time)
    assert [choice.latencies["gather"].median_ms for choice in report.blocks.values()] == pytest.approx([median] * 2)
    expected = "gather" if median < 2.5 else "blend"
    assert isinstance(module, DeployedNetwork)
    assert [module.step(i).action for i in (1, 2)] == [expected] * 2


TIMES = {(0, 1): (1.0, 3.0, 2.5), (2, 3): (3.0, 9.0, 2.5), (3, 4): (3.0, 5.0, 2.5)}


@torch.no_grad()
def test_by_the_real_clock() -> None:
    net, images = built(SPECS["pyramidnet, factored"]), random_images(2, SIZE).to(memory_format=torch.channels_last)
    found = deploy(net, images)
    assert isinstance(found.module, DeployedNetwork)
    assert_close(found.module(images), net(images).logits)
    whole = found.report.whole
    by_layer = whole is None or whole.chosen == "layer by layer"
    for name, choice in (*found.report.forms.items(), *found.report.blocks.items()):
        allowed = [each for each in choice.latencies if by_layer or name not in found.report.forms or "dense" in each]
        assert min(allowed, key=lambda each: choice.latencies[each].median_ms) == choice.chosen
        assert all(
            each.lower_quartile_ms <= each.median_ms <= each.upper_quartile_ms for each in choice.latencies.values()
        )
    text = str(found.report)
    assert all(name in text for name in (*found.report.folded, *found.report.forms, "block 5", "expected MACs"))


@torch.no_grad()
def test_autocast_leaves_gates_in_full_precision() -> None:
    net, images = random_net(depth=8), random_images(4)
    module = deploy(net, images, time=preferring("gather")).module
    assert isinstance(module, DeployedNetwork)
    with torch.autocast("cpu", torch.bfloat16):
        routed = module.route(images, torch.ones(4, 2))
    assert routed.gate_logits.dtype == torch.float32 and routed.logits.isfinite().all()


@torch.no_grad()
def test_a_network_whose_blocks_gather_images_is_compiled_for_several() -> None:
    """The number of images that a block gathers varies, and sizes of what it computes are no plain numbers then."""
    net, images = built(SPECS["resnet"]), random_images(6, 12)
    module = deploy(net, images, time=preferring("dense", "gather")).module
    compiled = torch.compile(module, backend="eager")
    assert_close(compiled(images), module(images))
