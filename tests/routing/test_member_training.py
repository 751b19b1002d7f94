"""Members that learn, against their losses put together image by image; alone and in two processes."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridprune.data import Batch, Share
from hybridprune.engine.parallel import average_gradients
from hybridprune.models.cascade import Answer, Cascade
from hybridprune.processes import count as processes
from hybridprune.processes import rank
from hybridprune.routing.member_training import MemberTraining
from tests.models.test_cascade import CLASSES, cascade, images
from tests.process_groups import together

BATCH, FLOOR, TEMPERATURE = 9, 0.3, 2.0
SHARES = torch.tensor([0.5, 0.5, 0.1])


def moved(net: Cascade) -> Cascade:
    """A copy with other weights."""
    other = copy.deepcopy(net)
    torch.manual_seed(9)
    with torch.no_grad():
        for parameter in other.members.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return other


def objective(policy: Cascade, net: Cascade) -> MemberTraining:
    return MemberTraining(policy, net.own_logits, policy.own_logits, SHARES, TEMPERATURE, FLOOR)


def whole(answer: Answer = "average") -> tuple[Cascade, Cascade, Tensor, Tensor]:
    policy = cascade(3, answer)
    labels = torch.randint(CLASSES, (BATCH,), generator=torch.Generator().manual_seed(1))
    return policy, moved(policy), images(BATCH), labels


def test_the_loss_is_put_together_from_each_image_and_member() -> None:
    for kind in ("average", "last"):
        policy, net, x, labels = whole(kind)
        loss, metrics = objective(policy, net)(net, Batch(x, labels, torch.arange(BATCH)), 0.0)
        with torch.no_grad():
            own = [member(x) / t for member, t in zip(policy.members, policy.temperatures, strict=True)]
            goes = [
                policy.gate(k, own[k] if kind == "last" else sum(own[: k + 1]) / (k + 1), None)[0].sigmoid()
                for k in (0, 1)
            ]
            stops = torch.stack([1 - goes[0], goes[0] * (1 - goes[1]), goes[0] * goes[1]], 1)
            weights = (1 - FLOOR) * stops + FLOOR / 3
            teacher = ((own[0] + own[1] + own[2]) / 3 / TEMPERATURE).softmax(1)
            expected = torch.zeros(())
            for k, member in enumerate(net.members):
                student = member(x)
                for i in range(BATCH):
                    hard = F.cross_entropy(student[i], labels[i])
                    soft = (teacher[i] * (teacher[i].log() - (student[i] / TEMPERATURE).log_softmax(0))).sum()
                    each = (1 - SHARES[k]) * hard + SHARES[k] * TEMPERATURE**2 * soft
                    expected += weights[i, k] / weights[:, k].mean() * each / BATCH
            right = torch.stack([member(x).argmax(1) == labels for member in net.members])
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(metrics["accuracy"], right.float().mean())


def test_members_learn_and_gates_and_the_policy_do_not() -> None:
    policy, net, x, labels = whole()
    objective(policy, net)(net, Batch(x, labels, torch.arange(BATCH)), 0.0)[0].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.members.parameters())
    assert all(p.grad is None for p in [*net.gate.parameters(), *policy.parameters()])


def learned() -> dict[str, Tensor]:
    """Weights after some steps, each on this process's share of the images."""
    policy, net, x, labels = whole()
    learning, optimizer = objective(policy, net), torch.optim.SGD(net.members.parameters(), lr=0.05)
    share = Share.of(BATCH, rank(), processes())
    for _ in range(3):
        ids = torch.arange(BATCH)[share.start : share.stop]
        batch = Batch(x[ids], labels[ids], ids, share)
        optimizer.zero_grad()
        (learning(net, batch, 0.0)[0] * batch.weight).backward()
        average_gradients(net.parameters())
        optimizer.step()
    return net.state_dict()


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    ended = together(tmp_path, learned)
    assert [each[0] for each in ended] == [0, 0], ended[0][3] + ended[1][3]
    alone = learned()
    for found in (ended[0][1], ended[1][1]):
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)
    assert not torch.equal(alone["members.0.layers.0.weight"], whole()[1].state_dict()["members.0.layers.0.weight"])
