"""The environment speaks gymnasium's APIs, and its rewards add up to the accounting."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from hybridprune.measure.cost import count
from hybridprune.routing.env import GateRoutingEnv, GateRoutingVectorEnv
from tests.cases import random_decisions
from tests.routing.cases import CLASSES, SIZE, labelled, three_gates

IMAGES, ENVS, ALPHA = 10, 4, 0.7


def vector(num_envs: int = ENVS, **options: Any) -> GateRoutingVectorEnv:
    net = three_gates()
    return GateRoutingVectorEnv(net, count(net, SIZE), *labelled(IMAGES), num_envs, **{"alpha": ALPHA, **options})


def play(env: GateRoutingVectorEnv, actions: np.ndarray) -> tuple[list[np.ndarray], np.ndarray, dict[str, Any]]:
    """Observations before each step and at the end, rewards ``[E, N]`` and the last info."""
    observations, rewards, info = [env.reset(seed=0)[0]], [], {}
    for action in actions.T:
        observation, reward, _, _, info = env.step(action)
        observations.append(info["final_obs"] if info else observation)
        rewards.append(reward)
    return observations, np.stack(rewards, 1), info


@pytest.mark.filterwarnings("ignore:.*Box observation space")  # features have no bounds
def test_the_single_environment_passes_gymnasiums_checker() -> None:
    net = three_gates()
    env = gymnasium.make(
        "hybridprune/GateRouting-v0", net=net, cost=count(net, SIZE), images=labelled(6)[0], labels=labelled(6)[1]
    )
    check_env(env.unwrapped, skip_render_check=True)


def test_shapes_and_spaces() -> None:
    env = vector()
    observation, info = env.reset(seed=0)
    width = max(three_gates().backbone.block_channels) + 3
    assert info == {} and observation.shape == (ENVS, width) and observation.dtype == np.float32
    for step in range(3):
        assert env.observation_space.contains(observation)
        observation, reward, ended, truncated, info = env.step(env.action_space.sample())
        assert reward.shape == ended.shape == truncated.shape == (ENVS,)
        assert ended.dtype == bool and ended.all() == (step == 2) and not truncated.any()
        assert bool(info) == (step == 2)
    with pytest.raises(AssertionError):
        env.step(np.ones((ENVS, 1)))
    with pytest.raises(AssertionError, match="reset"):
        vector().step(np.ones(ENVS))


@pytest.mark.parametrize("terminal", ["cross_entropy", "accuracy"])
@pytest.mark.parametrize("gate_macs", [None, (0, 50, 100)])
def test_rewards_add_up_to_the_accounting(terminal: Any, gate_macs: tuple[int, ...] | None) -> None:
    net = three_gates()
    cost = count(net, SIZE)
    actions = random_decisions(ENVS, 3, seed=1)
    env = vector(terminal=terminal, gate_macs=gate_macs)
    observations, rewards, info = play(env, actions.numpy().astype(int))
    images, labels = labelled(IMAGES)
    ids = torch.from_numpy(info["final_info"]["image"])
    logits = net(images[ids], actions).logits.detach()
    losses = F.cross_entropy(logits, labels[ids], reduction="none").double()
    own = sum(cost.gate_macs)
    spent = [cost.expected_macs(row) - own + (own if gate_macs is None else sum(gate_macs)) for row in actions.tolist()]
    final = (logits.argmax(1) == labels[ids]).double() if terminal == "accuracy" else -losses
    expected = -ALPHA * torch.tensor(spent, dtype=torch.float64) / cost.backbone_macs + final
    np.testing.assert_allclose(rewards.sum(1), expected.numpy(), rtol=1e-5)
    assert info["final_info"]["spent_macs"].tolist() == spent
    np.testing.assert_allclose(info["final_info"]["logits"], logits.numpy(), rtol=1e-4, atol=1e-5)
    # Each step pays for its own gate and block.
    gates = cost.gate_macs if gate_macs is None else gate_macs
    first = cost.start_macs + gates[0] + cost.shortcut_macs[0] + cost.block_macs[0] * actions[:, 0].double()
    np.testing.assert_allclose(rewards[:, 0], (-ALPHA * first / cost.backbone_macs).numpy(), rtol=1e-9)
    # What is observed of it: how many gates have decided, what is spent, and what is left.
    assert [float(seen[0, -3]) for seen in observations] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(observations[-1][:, -2], np.array(spent) / cost.backbone_macs, rtol=1e-5)
    np.testing.assert_allclose(observations[-1][:, -1], 1 - observations[-1][:, -2], rtol=1e-4, atol=1e-6)


def test_gymnasiums_statistics_are_the_returns() -> None:
    actions = random_decisions(ENVS, 3, seed=2).numpy().astype(int)
    rewards = play(vector(), actions)[1]
    env = RecordEpisodeStatistics(vector())
    env.reset(seed=0)
    info: dict[str, Any] = {}
    for action in actions.T:
        _, _, _, _, info = env.step(action)
    np.testing.assert_allclose(info["episode"]["r"], rewards.sum(1), rtol=1e-6)
    assert info["episode"]["l"].tolist() == [3] * ENVS


def test_the_step_that_ends_episodes_starts_the_next_images() -> None:
    env = vector(shuffle=False)
    env.reset(seed=0)
    seen, observation, info = [], np.zeros(0), {}
    for _ in range(5):
        for _ in range(3):
            observation, _, _, _, info = env.step(np.ones(ENVS, dtype=int))
        seen += info["final_info"]["image"].tolist()
        assert (observation[:, -3] == 0).all() and (info["final_obs"][:, -3] == 1).all()
    assert seen == [*range(IMAGES), *range(IMAGES)]
    # After two rounds the first images are next: their first observations, once more.
    np.testing.assert_array_equal(observation, vector(shuffle=False).reset(seed=0)[0])


def test_seeds_choose_the_order_and_every_image_has_its_turn() -> None:
    def order(seed: int) -> list[int]:
        env, seen = vector(num_envs=5), []
        env.reset(seed=seed)
        for _ in range(2 * 3):
            info = env.step(np.ones(5, dtype=int))[4]
            seen += info["final_info"]["image"].tolist() if info else []
        return seen

    assert order(0) == order(0) != order(1)
    assert sorted(order(0)) == list(range(IMAGES))


def test_the_label_is_not_observed() -> None:
    net = three_gates()
    images, labels = labelled(IMAGES)
    actions = random_decisions(ENVS, 3).numpy().astype(int)
    one, other = (
        play(GateRoutingVectorEnv(net, count(net, SIZE), images, given, ENVS), actions)
        for given in (labels, (labels + 1) % CLASSES)
    )
    assert all(np.array_equal(a, b) for a, b in zip(one[0], other[0], strict=True))
    assert not np.array_equal(one[1], other[1])


def test_one_image_at_a_time_is_the_vector_environment() -> None:
    net = three_gates()
    cost, (images, labels) = count(net, SIZE), labelled(IMAGES)
    single = GateRoutingEnv(net, cost, images, labels, alpha=ALPHA)
    many = vector(num_envs=1)
    one, all_ = single.reset(seed=3)[0], many.reset(seed=3)[0]
    for step in range(3 * 4):
        np.testing.assert_array_equal(one, all_[0])
        action = step % 2
        one, reward, ended, truncated, info = single.step(action)
        all_, rewards, ends, _, final = many.step(np.array([action]))
        assert reward == rewards[0] and ended == ends[0] and not truncated
        if ended:
            np.testing.assert_array_equal(one, final["final_obs"][0])
            assert info["image"] == final["final_info"]["image"][0]
            one = single.reset()[0]
    single.step(1)
    given_up = single.reset()[0]
    assert given_up[-3] == 0


def test_vector_environments_by_their_name() -> None:
    net = three_gates()
    images, labels = labelled(IMAGES)
    options = {"net": net, "cost": count(net, SIZE), "images": images, "labels": labels}
    env = gymnasium.make_vec(
        "hybridprune/GateRouting-v0", num_envs=3, vectorization_mode="vector_entry_point", **options
    )
    assert env.reset(seed=0)[0].shape[0] == 3
