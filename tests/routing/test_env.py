"""The environment speaks gymnasium's vector API, and its rewards are the ones that were agreed."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hybridprune.routing.env import GateRoutingVectorEnv
from tests.cases import random_decisions
from tests.routing.cases import CLASSES, environment, labelled, shares, three_gates

BATCH = 6


def play(
    env: GateRoutingVectorEnv, images: Tensor, labels: Tensor, actions: Tensor
) -> tuple[list[Tensor], Tensor, dict]:
    """Observations before each step and after the last, rewards ``[B, N]`` and the last info."""
    observation, _ = env.reset(options={"images": images, "labels": labels})
    observations, rewards, info = [observation], [], {}
    for action in actions.unbind(1):
        observation, reward, _, _, info = env.step(action)
        observations.append(observation)
        rewards.append(reward)
    return observations, torch.stack(rewards, 1), info


def test_steps_have_the_shapes_of_their_spaces() -> None:
    net = three_gates()
    env = environment(net)
    assert isinstance(env, gymnasium.vector.VectorEnv)
    images, labels = labelled(BATCH)
    observation, info = env.reset(seed=0, options={"images": images, "labels": labels})
    assert env.num_envs == BATCH and info == {}
    for number in range(net.num_gates):
        assert observation.shape == (BATCH, max(net.backbone.block_channels))
        assert not observation.requires_grad
        assert env.observation_space.contains(observation.numpy())
        assert env.single_observation_space.contains(observation[0].numpy())
        action = torch.tensor([0, 1] * (BATCH // 2))
        assert env.action_space.contains(action.numpy())
        assert env.single_action_space.contains(np.int64(action[0]))
        observation, reward, terminated, truncated, info = env.step(action)
        last = number == net.num_gates - 1
        assert reward.shape == terminated.shape == truncated.shape == (BATCH,)
        assert terminated.dtype == truncated.dtype == torch.bool
        assert bool((terminated == last).all()) and not bool(truncated.any())
        assert set(info) == ({"logits", "cross_entropy"} if last else set())
    assert info["logits"].shape == (BATCH, CLASSES)
    with pytest.raises(AssertionError, match="reset"):
        env.step(torch.ones(BATCH))


def test_actions_of_another_shape_fail() -> None:
    env = environment(three_gates())
    with pytest.raises(AssertionError, match="reset"):
        env.step(torch.ones(BATCH))
    images, labels = labelled(BATCH)
    env.reset(options={"images": images, "labels": labels})
    for shape in ((BATCH, 1), (1,), (BATCH + 1,)):
        with pytest.raises(AssertionError):
            env.step(torch.ones(shape))
    with pytest.raises(AssertionError):
        GateRoutingVectorEnv(three_gates(), torch.ones(4), 1.0)


@pytest.mark.parametrize("seed", range(3))
def test_rewards_add_up_to_the_saving_minus_the_cross_entropy(seed: int) -> None:
    net = three_gates()
    images, labels = labelled(BATCH)
    actions = random_decisions(BATCH, net.num_gates, seed)
    _, rewards, info = play(environment(net, alpha=0.7), images, labels, actions)
    logits = net(images, actions).logits
    cross_entropy = torch.stack([F.cross_entropy(logits[i : i + 1], labels[i : i + 1]) for i in range(BATCH)])
    expected = 0.7 * (1 - actions) * shares(net)
    expected[:, -1] -= cross_entropy
    torch.testing.assert_close(rewards, expected, rtol=1e-5, atol=1e-6)
    assert not rewards.requires_grad
    torch.testing.assert_close(info["logits"], logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(info["cross_entropy"], cross_entropy, rtol=1e-5, atol=1e-6)


def test_the_cross_entropy_trains_the_backbone() -> None:
    net = three_gates()
    images, labels = labelled(BATCH)
    info = play(environment(net), images, labels, torch.ones(BATCH, 3))[2]
    info["cross_entropy"].mean().backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in net.backbone.parameters() if p.grad is not None)
    assert net.backbone.conv.weight.grad is not None
    assert all(p.grad is None for p in net.gate.parameters())


def test_the_label_is_not_observed() -> None:
    net = three_gates()
    images, labels = labelled(BATCH)
    actions = random_decisions(BATCH, net.num_gates)
    one, _, _ = play(environment(net), images, labels, actions)
    other, _, _ = play(environment(net), images, (labels + 1) % CLASSES, actions)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_number_of_images_may_change_between_episodes() -> None:
    net = three_gates()
    env = environment(net)
    for size in (4, 7, 1):
        images, labels = labelled(size)
        observations, rewards, _ = play(env, images, labels, torch.ones(size, 3))
        assert env.num_envs == size and rewards.shape == (size, 3)
        assert env.observation_space.contains(observations[-1].detach().numpy())
