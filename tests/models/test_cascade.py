"""Cascades against the members run one by one."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hybridprune.measure.cost import count, count_module
from hybridprune.models.cascade import Answer, Cascade
from hybridprune.models.gates import above

CLASSES = 4


class Member(nn.Module):
    """A small network that notes how many images it was given."""

    def __init__(self, channels: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(nn.Conv2d(3, channels, 3), nn.Flatten(), nn.Linear(channels * 16, CLASSES))
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return 5 * self.layers(x)


def cascade(members: int = 3, answer: Answer = "average") -> Cascade:
    net = Cascade([Member(2 + 3 * k, k) for k in range(members)], CLASSES, answer).eval()
    net.temperatures.copy_(torch.linspace(0.5, 2, members))
    return net


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 4), st.sampled_from(["average", "last"]), st.integers(1, 9), st.data())
def test_masked_and_executed_are_the_members_run_one_by_one(
    members: int, answer: Answer, batch: int, data: st.DataObject
) -> None:
    net, x = cascade(members, answer), images(batch)
    route = st.lists(st.integers(0, 1), min_size=members - 1, max_size=members - 1)
    routes = data.draw(st.lists(route, min_size=batch, max_size=batch))
    wanted = torch.tensor(routes).float().reshape(batch, members - 1)
    taken = wanted.cumprod(1)  # stopping is final
    ran = 1 + taken.sum(1).long()
    with torch.no_grad():
        own = [member(x) / t for member, t in zip(net.members, net.temperatures, strict=True)]
        expected = torch.stack(
            [
                own[n - 1][i] if answer == "last" else torch.stack([each[i] for each in own[:n]]).mean(0)
                for i, n in enumerate(ran.tolist())
            ]
        )
        for mode in ("masked", "executed"):
            routed = net(x, wanted, mode)
            assert torch.equal(routed.decisions, taken)
            torch.testing.assert_close(routed.logits, expected)
        behind = net.answers(torch.stack(own) * net.temperatures.view(-1, 1, 1))
        stopped = torch.stack([behind[n - 1, i] for i, n in enumerate(ran.tolist())])
    torch.testing.assert_close(stopped, expected)


def test_executed_members_see_only_the_images_that_go_on_and_the_batch_stays_as_it_is() -> None:
    net, x = cascade(), images(5).contiguous(memory_format=torch.channels_last)
    before = x.clone()
    decisions = torch.tensor([[1, 1], [0, 0], [1, 0], [0, 1], [1, 1.0]])
    net(x, decisions, "executed")
    assert [member.seen for member in net.members if isinstance(member, Member)] == [[5], [3], [2]]
    assert torch.equal(x, before)
    net(x, torch.zeros(5, 2), "executed")
    assert [len(member.seen) for member in net.members if isinstance(member, Member)] == [2, 1, 1]


def test_gates_start_as_a_threshold_on_the_margin() -> None:
    net, x = cascade(2), images(64)
    with torch.no_grad():
        probabilities = (net.members[0](x) / net.temperatures[0]).softmax(1)
        top = probabilities.topk(2, 1).values
        margin = top[:, 0] - top[:, 1]
        routed = net(x, mode="executed")
        assert torch.equal(routed.decisions[:, 0] > 0, margin < 0.5)
        assert 0 < routed.decisions.mean() < 1
        wider = 3 * math.log(2 * 0.9)
        assert torch.equal(net(x, mode="executed", decide=above(wider)).decisions[:, 0] > 0, margin < 0.1)
        net.gate.shift(-wider)
        assert torch.equal(net(x, mode="executed").decisions[:, 0] > 0, margin < 0.1)


def test_stopped_images_are_beyond_every_threshold() -> None:
    net, x = cascade(), images(32)
    with torch.no_grad():
        routed = net(x, mode="executed", decide=above(1.0))
    stopped = routed.decisions[:, 0] == 0
    assert 0 < stopped.sum() < 32
    assert (routed.gate_logits[stopped, 1] == -torch.inf).all() and routed.gate_logits[~stopped].isfinite().all()
    assert torch.equal(routed.decisions, (routed.gate_logits > 1).float())


def test_soft_decisions_blend_the_answers_and_reach_gates_and_members() -> None:
    net, x = cascade(), images(6)
    net.train()
    routed = net(x, decide=torch.sigmoid)
    first, second = routed.decisions.unbind(1)
    p, q = routed.gate_logits.sigmoid().unbind(1)
    torch.testing.assert_close(first, p)
    torch.testing.assert_close(second, p * q)
    routed.logits.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in net.parameters())


def test_the_cost_counts_each_member_once_and_a_gate_with_the_member_before_it() -> None:
    net = cascade()
    macs = [count_module(member, images(1))[0] for member in net.members]
    gate = net.gate.inputs
    assert gate == 3 + CLASSES
    cost = count(net, 6)
    assert (cost.start_macs, cost.block_macs) == (macs[0], (macs[1] + gate, macs[2]))
    assert (cost.gate_macs, cost.head_macs, cost.shortcut_macs) == ((gate, 0), 0, (0, 0))
    # half of the images go on, half of these once more
    assert cost.expected_macs([0.5, 0.25]) == macs[0] + gate + 0.5 * (macs[1] + gate) + 0.25 * macs[2]
    assert cost.gate_params == 2 * (gate + 1)
    assert cost.backbone_params == sum(p.numel() for p in net.members.parameters())


def test_a_member_of_other_classes_is_refused() -> None:
    net = Cascade([Member(2, 0), nn.Sequential(Member(2, 1), nn.Linear(CLASSES, 1))], CLASSES)
    with pytest.raises(AssertionError):
        net(images(2))
