"""hybridprune.cascade: members by the letter, the budget, the estimate, and what does not fit together."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import hybridprune
from hybridprune.errors import UserError
from hybridprune.models.skipnet import GatedNetwork

CLASSES, WIDTH = 5, 8
SMALL, LARGE = CLASSES * 3 * WIDTH, 3 * WIDTH * 3 * WIDTH + CLASSES * 3 * WIDTH
GATE = 3 + CLASSES


def data(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images ``[M, 3, 1, 8]``: evidence of the class in the first two channels, stronger in the second."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=draw)
    images = torch.randn(count, 3, 1, WIDTH, generator=draw)
    truth = F.one_hot(labels, CLASSES)
    images[:, 0, 0, :CLASSES] += 2 * truth
    images[:, 1, 0, :CLASSES] += 3 * truth
    return images, labels


def reader(channel: int, deep: bool) -> nn.Sequential:
    """A network that reads one channel."""
    last = nn.Linear(3 * WIDTH, CLASSES, bias=False)
    first = nn.Linear(3 * WIDTH, 3 * WIDTH, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.eye(3 * WIDTH))
        last.weight.zero_()
        last.weight[:, channel * WIDTH : channel * WIDTH + CLASSES] = 2 * torch.eye(CLASSES)
    return nn.Sequential(nn.Flatten(), *([first] if deep else []), last)


def loader(count: int = 4000, seed: int = 0, size: int = 500) -> list[tuple[Tensor, Tensor]]:
    images, labels = data(count, seed)
    return list(zip(images.split(size), labels.split(size), strict=True))


@pytest.mark.parametrize("policy", ["learned", "margin"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_the_budget_is_hit_on_other_images_as_well_and_the_estimate_is_true(policy: str, share: float) -> None:
    small, large = reader(0, deep=False), reader(1, deep=True)
    found = hybridprune.cascade(small, large, loader(), target_flops=share, policy=policy)  # type: ignore[arg-type]
    assert found.budget_macs == share * LARGE and found.dense_macs == LARGE
    assert found.macs == pytest.approx(share * LARGE, rel=0.01)
    assert [m.macs for m in found.members] == [SMALL, LARGE] and found.members[0].rate == 1
    assert found.macs == pytest.approx(SMALL + GATE + found.members[1].rate * LARGE)
    images, labels = data(4000, 1)
    routed = found.module(images, mode="executed")
    assert torch.equal(found(images), routed.logits)
    assert float(routed.decisions.mean()) == pytest.approx(found.members[1].rate, abs=0.03)
    assert found.accuracy == pytest.approx(float((routed.logits.argmax(1) == labels).double().mean()), abs=0.025)
    assert found.accuracy == pytest.approx(hybridprune.accuracy(found, loader(seed=1)), abs=0.025)
    for member, module in zip(found.members, (small, large), strict=True):
        assert member.accuracy == hybridprune.accuracy(module, loader())
    # the small network alone is all that fits beside it
    assert found.ahead.mean == pytest.approx(found.accuracy - found.members[0].accuracy) and found.pays


class Chain(nn.Sequential):
    """A random network as dear as it is told, that notes how many images it was given."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(3 * WIDTH, width), nn.Linear(width, CLASSES))
        self.seen = 0

    def forward(self, input: Tensor) -> Tensor:
        self.seen += len(input)
        return 20 * super().forward(input)

    @property
    def macs(self) -> int:
        """Of one image."""
        return sum(layer.weight.numel() for layer in self if isinstance(layer, nn.Linear))


@settings(max_examples=10)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=4, unique=True), st.floats(0.05, 0.95), st.integers(0, 99))
@pytest.mark.filterwarnings("ignore:the cascade spends")
def test_the_expected_macs_are_those_of_members_that_run_and_gates_that_are_asked(
    widths: list[int], spend: float, seed: int
) -> None:
    torch.manual_seed(seed)
    members = [Chain(width) for width in sorted(widths)]
    macs = [member.macs for member in members]
    budget = (1 - spend) * (macs[0] + GATE) + spend * sum(macs)
    images, labels = data(150, seed)
    found = hybridprune.cascade(
        members[0],
        members[-1],
        [(images, labels)],
        target_flops=2 * budget,
        between=members[1:-1],
        policy="margin",
    )
    joined = [member for member in found.module.members if isinstance(member, Chain)]
    for member in joined:
        member.seen = 0
    found(images)
    ran = [member.seen for member in joined]
    assert ran == [round(member.rate * 150) for member in found.members] and ran[0] == 150
    asked = sum(ran[:-1])  # behind each member but the last, by every image that it ran on
    assert found.macs == pytest.approx((sum(n * m for n, m in zip(ran, macs, strict=True)) + GATE * asked) / 150)


def test_members_are_run_once_for_their_logits_and_once_for_their_cost() -> None:
    small, large = Chain(3), Chain(9)
    seen: list[int] = []
    for member in (small, large):
        member.register_forward_pre_hook(lambda _, images: seen.append(len(images[0])))
    hybridprune.cascade(small, large, loader(64, size=32), target_flops=0.8)
    assert sorted(seen) == [1, 1, 32, 32, 32, 32]


def test_images_that_stop_have_the_answer_of_the_small_network_alone() -> None:
    small, large = reader(0, deep=False), reader(1, deep=True)
    found = hybridprune.cascade(small, large, loader(), target_flops=0.6, answer="last")
    images, _ = data(200, 2)
    routed = found.module(images, mode="executed")
    stops = routed.decisions[:, 0] == 0
    temperatures = found.module.temperatures
    assert 0 < stops.sum() < 200
    torch.testing.assert_close(routed.logits[stops], small(images)[stops] / temperatures[0])
    torch.testing.assert_close(routed.logits[~stops], large(images)[~stops] / temperatures[1])


def test_the_members_are_copies_and_a_third_goes_in_between() -> None:
    small, large, third = reader(0, deep=False), reader(1, deep=True), reader(2, deep=True)
    same = nn.Linear(CLASSES, CLASSES, bias=False)
    nn.init.eye_(same.weight)
    dearer = nn.Sequential(large, same)
    found = hybridprune.cascade(small, dearer, loader(), target_flops=0.8, between=[third])
    assert [m.name for m in found.members] == ["small", "between[0]", "large"]
    assert [m.macs for m in found.members] == [SMALL, LARGE, LARGE + CLASSES**2]
    assert found.macs == pytest.approx(0.8 * (LARGE + CLASSES**2), rel=0.01)
    assert all(mine is not theirs for mine, theirs in zip(found.module.members, (small, third, dearer), strict=True))
    assert small.training and not found.module.training


def test_a_network_that_fits_alone_is_what_it_is_compared_with() -> None:
    """Nothing is gained over a large network that is within the budget."""
    small, large = nn.Sequential(reader(2, deep=False)), reader(1, deep=True)
    found = hybridprune.cascade(small, large, loader(), target_flops=1.0)
    assert found.ahead.mean < 0 and not found.pays
    assert re.search(r"-\d+\.\d\d \[-", str(found))


def test_the_budget_may_be_flops_and_a_share_is_of_the_uncut_network() -> None:
    conv = nn.Sequential(nn.Conv2d(3, 16, (1, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 6, CLASSES))
    large = hybridprune.prune(conv, loader(256, size=64), target_flops=0.6, progress=False)
    small = reader(0, deep=False)
    share = hybridprune.cascade(small, large, loader(512), target_flops=0.3)
    flops = hybridprune.cascade(small, large, loader(512), target_flops=0.6 * large.spec.dense_macs)
    assert share.dense_macs == flops.dense_macs == large.spec.dense_macs > share.members[1].macs == large.spec.macs
    assert share.budget_macs == pytest.approx(flops.budget_macs) == pytest.approx(0.3 * large.spec.dense_macs)


def test_the_table_names_the_members(capsys: pytest.CaptureFixture[str]) -> None:
    found = hybridprune.cascade(reader(0, deep=False), reader(1, deep=True), loader(), target_flops=0.5)
    found.summary()
    shown = capsys.readouterr().out
    assert "small" in shown and "large" in shown and f"{LARGE:,}" in shown and str(found) in shown
    assert str(found).startswith("cascade of 2: ") and "(50.0% of 696)" in str(found)


def test_it_is_deployed_whole() -> None:
    found = hybridprune.cascade(reader(0, deep=False), reader(1, deep=True), loader(512), target_flops=0.5)
    images, _ = data(64, 3)
    deployed = hybridprune.deploy(found, images, "cpu", progress=False)
    torch.testing.assert_close(deployed.module(images), found(images))
    assert len(deployed.report.members) == 2 and deployed.report.macs_before == pytest.approx(found.macs, rel=0.2)


BATCHES = loader(64, size=32)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target_flops": 0.1}, r"target_flops 0\.1: .* between 0\.1[78]\d* and 1\.1[89]\d* of the FLOPs of large"),
        ({"target_flops": 50}, "50 is taken as 50 FLOPs"),
        ({"target_flops": -1}, "target_flops -1"),
        ({"target_flops": 2.0}, "target_flops 2.0"),
        ({"policy": "random"}, 'policy "random": must be one of learned, margin'),
        ({"answer": "first"}, 'answer "first": must be one of average, last'),
        (
            {"small": reader(1, deep=True)},
            "large: takes 696 MACs and the member before it 696; give",
        ),
        ({"large": 3}, "large: is a int; give a torch.nn.Module"),
        ({"large": GatedNetwork(nn.Flatten())}, "large: decides for each image itself"),
        ({"large": nn.Sequential(reader(1, deep=True), nn.Linear(5, 4))}, r"the members answer with small \[32, 5\], "),
        ({"large": nn.Conv2d(3, 400, 1)}, r"batch 1: large gives no logits \[B, classes\]"),
        ({"large": nn.Linear(99, 5)}, r"batch 1: large fails on it"),
        ({"calibration_loader": []}, "calibration_loader: gives too few images"),
        ({"calibration_loader": [(BATCHES[0][0],)]}, "batch 1: is not a pair of images"),
        ({"calibration_loader": [(BATCHES[0][0], BATCHES[0][1] + 1)]}, "class ids are not all from 0 to 4"),
        ({"calibration_loader": [(BATCHES[0][0] / 0, BATCHES[0][1])]}, "not all finite"),
    ],
)
def test_what_does_not_fit_together_is_told_in_one_line(change: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {
        "small": reader(0, deep=False),
        "large": reader(1, deep=True),
        "calibration_loader": BATCHES,
        "target_flops": 0.5,
    }
    make: Callable[..., Any] = hybridprune.cascade
    with pytest.raises(UserError, match=said) as error:
        make(**{**given, **change})
    assert "\n" not in str(error.value)
