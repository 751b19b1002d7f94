"""The environment speaks gymnasium's APIs, and its rewards add up to the accounting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from hybridprune.measure.cost import count
from hybridprune.models.confidence import confidence
from hybridprune.routing.env import GateRoutingEnv, GateRoutingVectorEnv
from tests.models.test_cascade import cascade
from tests.models.test_cascade import images as cascade_images
from tests.networks_and_images import random_decisions
from tests.routing.three_gates import CLASSES, SIZE, labelled, three_gates

IMAGES, ENVS, ALPHA = 10, 4, 0.7
NAME = "hybridprune/GateRouting-v0"


def vector(num_envs: int = ENVS, **options: Any) -> GateRoutingVectorEnv:
    net = three_gates()
    return GateRoutingVectorEnv(net, count(net, SIZE), *labelled(IMAGES), num_envs, **{"alpha": ALPHA, **options})


def play(env: GateRoutingVectorEnv, actions: np.ndarray) -> tuple[list[np.ndarray], np.ndarray, dict[str, Any]]:
    """Observations before each step and at the end, rewards ``[E, N]`` and the last info."""
    observations, rewards, info = [env.reset(seed=0)[0]], [], {}
    for action in actions.T:
        observation, reward, _, _, info = env.step(action)
        observations.append(np.stack(info["final_obs"]) if info else observation)
        rewards.append(reward)
    return observations, np.stack(rewards, 1), info


def arguments(images: int = IMAGES) -> dict[str, Any]:
    """What an environment made by its name needs."""
    net = three_gates()
    pixels, labels = labelled(images)
    return {"net": net, "cost": count(net, SIZE), "images": pixels, "labels": labels, "alpha": ALPHA}


def test_the_single_environment_passes_gymnasiums_checker() -> None:
    env = gymnasium.make(NAME, **arguments(6))
    assert isinstance(env.unwrapped, GateRoutingEnv)
    check_env(env.unwrapped, skip_render_check=True)
    # Its own, passive checker goes along with every step.
    env.reset(seed=0)
    assert [env.step(1)[2] for _ in range(3)] == [False, False, True]


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
    for wrong in (np.ones((ENVS, 1)), np.full(ENVS, 2), np.full(ENVS, 0.5)):
        with pytest.raises(AssertionError):
            env.step(wrong)
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


def test_what_is_observed() -> None:
    net = three_gates()
    cost, actions = count(net, SIZE), random_decisions(ENVS, 3, seed=4)
    env = vector(shuffle=False, budget=0.6)
    observations, rewards, _ = play(env, actions.numpy().astype(int))
    state = net.start(labelled(IMAGES)[0][:ENVS])
    width = max(net.backbone.block_channels)
    assert len({*net.backbone.block_channels}) > 1
    for gate, seen in enumerate(observations):
        pooled = net.observe(state).detach().numpy()
        np.testing.assert_allclose(seen[:, : pooled.shape[1]], pooled, rtol=1e-5, atol=1e-6)
        assert not seen[:, pooled.shape[1] : width].any()
        # The budget counts what is spent, of which the reward of step 0 is the first to tell.
        spent = np.full(ENVS, cost.start_macs / cost.backbone_macs)
        if gate:
            spent = -rewards[:, :gate].sum(1) / ALPHA if gate < 3 else seen[:, -2]
        np.testing.assert_allclose(seen[:, -2], spent, rtol=1e-5)
        np.testing.assert_allclose(seen[:, -1], 0.6 - seen[:, -2], rtol=1e-4, atol=1e-6)
        if gate < 3:
            state = net.advance(state, actions[:, gate], "masked")


def test_gymnasiums_statistics_are_the_accounting() -> None:
    net = three_gates()
    cost, (images, labels) = count(net, SIZE), labelled(IMAGES)
    env = RecordEpisodeStatistics(vector(shuffle=False))
    env.reset(seed=0)
    for turn in range(2):
        actions = random_decisions(ENVS, 3, seed=turn)
        info: dict[str, Any] = {}
        for action in actions.numpy().astype(int).T:
            info = env.step(action)[4]
        ids = slice(turn * ENVS, (turn + 1) * ENVS)
        losses = F.cross_entropy(net(images[ids], actions).logits.detach(), labels[ids], reduction="none").double()
        spent = torch.tensor([cost.expected_macs(row) for row in actions.tolist()], dtype=torch.float64)
        np.testing.assert_allclose(info["episode"]["r"], (-ALPHA * spent / cost.backbone_macs - losses), rtol=1e-5)
        assert info["episode"]["l"].tolist() == [3] * ENVS


def same(one: Any, other: Any) -> None:
    """Equal values of equal kinds, masks and arrays of arrays included."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            same(one[key], other[key])
        return
    assert one.dtype == other.dtype and one.shape == other.shape, (one.dtype, other.dtype, one.shape, other.shape)
    if one.dtype == object:
        for a, b in zip(one, other, strict=True):
            same(a, b)
    else:
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_it_is_gymnasiums_own_vector_of_single_environments() -> None:
    net = three_gates()
    cost, (images, labels) = count(net, SIZE), labelled(2 * ENVS)

    def single(first: int) -> Callable[[], GateRoutingEnv]:
        # The images that this place of the batch gets, in their order.
        mine = slice(first, None, ENVS)
        return lambda: GateRoutingEnv(net, cost, images[mine], labels[mine], alpha=ALPHA, shuffle=False)

    ours = GateRoutingVectorEnv(net, cost, images, labels, ENVS, alpha=ALPHA, shuffle=False)
    theirs = SyncVectorEnv([single(first) for first in range(ENVS)], autoreset_mode=AutoresetMode.SAME_STEP)
    assert ours.metadata["autoreset_mode"] == theirs.metadata["autoreset_mode"]
    assert ours.observation_space == theirs.observation_space and ours.action_space == theirs.action_space
    same(ours.reset(seed=0)[0], theirs.reset(seed=0)[0])
    for action in random_decisions(ENVS, 3 * 4, seed=3).numpy().astype(int).T:
        mine, other = ours.step(action), theirs.step(action)
        assert bool(mine[4]) == bool(mine[2].all())
        for a, b in zip(mine, other, strict=True):
            if isinstance(a, dict) and a:  # each of theirs has but its own images
                a["final_info"]["image"] //= ENVS
            same(a, b)


def test_the_step_that_ends_episodes_starts_the_next_images() -> None:
    env = vector(shuffle=False)
    env.reset(seed=0)
    seen, observation, info = [], np.zeros(0), {}
    for _ in range(5):
        for _ in range(3):
            observation, _, _, _, info = env.step(np.ones(ENVS, dtype=int))
        seen += info["final_info"]["image"].tolist()
        assert (observation[:, -3] == 0).all() and all(last[-3] == 1 for last in info["final_obs"])
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


def test_more_environments_than_images() -> None:
    env = vector(num_envs=2 * IMAGES + 1, shuffle=False)
    actions = np.ones((2 * IMAGES + 1, 3), dtype=int)
    assert play(env, actions)[2]["final_info"]["image"].tolist() == [*range(IMAGES), *range(IMAGES), 0]


def test_the_label_is_not_observed() -> None:
    net = three_gates()
    images, labels = labelled(IMAGES)
    actions = random_decisions(ENVS, 3).numpy().astype(int)
    one, other = (
        play(GateRoutingVectorEnv(net, count(net, SIZE), images, given, ENVS, alpha=ALPHA), actions)
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
    own = gymnasium.make_vec(NAME, num_envs=3, **arguments())
    assert isinstance(own, GateRoutingVectorEnv) and own.reset(seed=0)[0].shape[0] == 3
    theirs = gymnasium.make_vec(NAME, num_envs=2, vectorization_mode="sync", **arguments())
    assert isinstance(theirs, SyncVectorEnv) and theirs.reset(seed=0)[0].shape[0] == 2


def test_nothing_is_learnt_on_the_way() -> None:
    env = vector()
    net = env._net.train()
    env = GateRoutingVectorEnv(net, count(net, SIZE), *labelled(IMAGES), ENVS, alpha=ALPHA)
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    play(env, np.ones((ENVS, 3), dtype=int))
    assert not net.training and before
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())
    episode = env._episode
    assert episode is not None and not episode.state.features.requires_grad


def test_a_cascade_is_an_environment_too() -> None:
    net, x, labels = cascade(), cascade_images(5), torch.arange(5) % 4
    cost = count(net, 6)
    env = GateRoutingVectorEnv(net, cost, x, labels, 5, alpha=0.3, shuffle=False)
    first, _ = env.reset()
    assert first.shape == (5, net.gate.inputs + 3)
    start = cost.start_macs + cost.gate_macs[0]
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(first[:, :-3]), confidence(net.members[0](x) / net.temperatures[0]))
    _, one, ended, _, _ = env.step(np.array([1, 0, 1, 0, 1]))
    assert not ended.any()
    _, two, ended, _, info = env.step(np.array([1, 1, 0, 0, 1]))  # the second image has stopped: its 1 is none
    decisions = torch.tensor([[1, 1], [0, 0], [1, 0], [0, 0], [1, 1.0]])
    with torch.no_grad():
        routed = net(x, decisions, "executed")
    spent = start + (decisions @ torch.tensor(cost.block_macs, dtype=torch.float32)).long()
    final = info["final_info"]
    assert ended.all() and final["spent_macs"].tolist() == spent.tolist()
    np.testing.assert_allclose(final["logits"], routed.logits.numpy(), rtol=1e-5)
    cross_entropy = F.cross_entropy(routed.logits, labels, reduction="none").double()
    np.testing.assert_allclose(one + two, -0.3 * spent.double() / cost.backbone_macs - cross_entropy, rtol=1e-5)
