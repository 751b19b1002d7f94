"""The routing as a gymnasium environment for any agent: one image is one episode, one gate one step.

numpy in, numpy out, without gradients. It drives the same `Episode` as the trainers of this package.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
import torch.nn.functional as F
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from torch import Tensor

from hybridprune.engine.device import check_kind
from hybridprune.measure.cost import NetworkCost
from hybridprune.models.routed import RoutedNetwork
from hybridprune.routing.episode import Episode

Terminal = Literal["cross_entropy", "accuracy"]
Array = np.ndarray[Any, Any]
# Features have no bounds of their own; gymnasium's checkers warn of infinite ones.
LARGEST = float(np.finfo(np.float32).max)


class GateRoutingVectorEnv(gymnasium.vector.VectorEnv[Array, Array, Array]):
    """``E`` images at once on their way through a gated network or a cascade, in episodes of N steps (N gates).

    - Observation ``[E, D + 3]``: the last block's output, globally pooled and zero-padded to the widest block, or how
      sure the cascade's answer is (`confidence`); the share of gates passed; the FLOPs spent so far and the budget
      left, as shares of the backbone's. Never the label.
    - Action ``[E]``, integers: 1 executes the next block or member, 0 skips it, or stops for good.
    - Reward: minus ``alpha`` x the share of the backbone's FLOPs that the step really spent, deciding included; stem
      and block 0 count in the first step, the head in the last. The last step adds minus the image's own
      cross-entropy, or 1 if it is classified correctly. Rewards add up to ``- alpha x spent / backbone`` + that.
    - All episodes end together; the step that ends them already returns the next images' first observations. As in
      gymnasium's own same-step autoreset, ``info["final_obs"]`` has the ended ones' last observations (an array of
      arrays) and ``info["final_info"]`` their ``logits``, ``cross_entropy``, ``spent_macs`` and ``image`` (its
      index), each beside its mask.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 (gymnasium's own attribute)

    def __init__(
        self,
        net: RoutedNetwork,
        cost: NetworkCost,
        images: Tensor,
        labels: Tensor,
        num_envs: int = 1,
        *,
        alpha: float,
        budget: float | None = None,
        terminal: Terminal = "cross_entropy",
        gate_macs: Sequence[int] | None = None,
        shuffle: bool = True,
    ) -> None:
        """Route ``images [M, 3, H, W]``, normalised, with ``labels [M]``, on the device of ``net`` in eval mode.

        ``budget``, a share of the backbone's FLOPs, is only observed (none: all of them). ``gate_macs [N]``: what the
        agent's own deciding costs at each gate, by default what the network's gates cost. Without ``shuffle`` images
        come in their order, again and again.
        """
        assert net.num_gates > 0, "the network has no gates"
        assert len(images) == len(labels) > 0 and num_envs > 0, (len(images), len(labels), num_envs)
        check_kind(next(net.parameters()).device, "the network is on")
        self._net, self._cost = net.eval(), cost
        self._images, self._labels = images, labels
        self._alpha, self._budget, self._terminal = alpha, 1.0 if budget is None else budget, terminal
        self._gate_macs, self._shuffle = gate_macs, shuffle
        self._width = net.observation_size
        self.num_envs = num_envs
        self.single_observation_space = Box(-LARGEST, LARGEST, (self._width + 3,), np.float32)
        self.single_action_space = Discrete(2)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._episode: Episode | None = None
        self._order = torch.arange(0)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start the first images of a new order, which ``seed`` (an integer, or the first of a list) determines.

        One seed is enough for all: the images of a batch are drawn together, each once in an order.
        """
        super().reset(seed=seed[0] if isinstance(seed, list) else seed)
        self._order = torch.arange(0)
        return self.next_images(), {}

    @torch.no_grad()
    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Execute or skip the next block for each image."""
        episode = self._episode
        assert episode is not None, "reset first"
        chosen = torch.as_tensor(np.asarray(actions))
        assert chosen.shape == (self.num_envs,) and bool(((chosen == 0) | (chosen == 1)).all()), chosen
        before = 0 if episode.gate == 0 else episode.spent_macs
        episode.step(chosen.float().to(episode.spent_macs.device))
        reward = -self._alpha * (episode.spent_macs - before).cpu().double() / self._cost.backbone_macs
        observation, info = self._observation(), {}
        ended = np.full(self.num_envs, episode.done)
        if episode.logits is not None:
            labels = _picked(self._labels, self._current).to(episode.logits.device)
            cross_entropy = F.cross_entropy(episode.logits.float(), labels, reduction="none")
            last = (episode.logits.argmax(1) == labels) if self._terminal == "accuracy" else -cross_entropy
            reward = reward + last.cpu().double()
            final = {
                "logits": episode.logits,
                "cross_entropy": cross_entropy,
                "spent_macs": episode.spent_macs,
                "image": self._current,
            }
            info = _final(observation, {name: value.cpu().numpy() for name, value in final.items()})
            observation = self.next_images()
        return observation, reward.numpy(), ended, np.zeros_like(ended), info

    @torch.no_grad()
    def next_images(self) -> Array:
        """Send the next images in and observe them; a new order begins where the old one ends."""
        while len(self._order) < self.num_envs:
            count = len(self._images)
            more = torch.from_numpy(self.np_random.permutation(count)) if self._shuffle else torch.arange(count)
            self._order = torch.cat([self._order, more])
        self._current, self._order = self._order[: self.num_envs], self._order[self.num_envs :]
        device = next(self._net.parameters()).device
        images = _picked(self._images, self._current).to(device)
        self._episode = Episode(self._net, self._cost, images, gate_macs=self._gate_macs)
        return self._observation()

    @torch.no_grad()
    def _observation(self) -> Array:
        episode = self._episode
        assert episode is not None
        pooled = episode.observe().float()
        spent = (episode.spent_macs / self._cost.backbone_macs).float()
        passed = torch.full_like(spent, episode.gate / self._net.num_gates)
        rest = torch.stack([passed, spent, self._budget - spent], 1)
        return torch.cat([F.pad(pooled, (0, self._width - pooled.shape[1])), rest], 1).cpu().numpy()


def _picked(values: Tensor, index: Tensor) -> Tensor:
    """Those of ``values`` at ``index``, on the device of the values."""
    return values[index.to(values.device)]


def _final(observations: Array, values: dict[str, Array]) -> dict[str, Any]:
    """The info of episodes that all end, in the form of gymnasium's own vector environments."""
    everyone = np.ones(len(observations), dtype=bool)
    rows = np.empty(len(observations), dtype=object)
    for index, observation in enumerate(observations):
        rows[index] = observation
    masks = {f"_{name}": everyone.copy() for name in values}
    return {
        "final_obs": rows,
        "_final_obs": everyone,
        "final_info": {**values, **masks},
        "_final_info": everyone.copy(),
    }


class GateRoutingEnv(gymnasium.Env[Array, int]):
    """One image at a time: `GateRoutingVectorEnv` with one environment, whose arguments it takes."""

    metadata = {"render_modes": []}  # noqa: RUF012 (gymnasium's own attribute)

    def __init__(self, net: RoutedNetwork, cost: NetworkCost, images: Tensor, labels: Tensor, **options: Any) -> None:
        self._env = GateRoutingVectorEnv(net, cost, images, labels, 1, **options)
        self.observation_space = self._env.single_observation_space
        self.action_space = self._env.single_action_space
        self._first: Array | None = None
        """The first observation of the image that is in, while no step was taken with it."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Start the next image; with a ``seed``, the first of its order."""
        super().reset(seed=seed)
        if seed is not None:
            self._first = self._env.reset(seed=seed)[0]
        elif self._first is None:  # the very first, or the one before was given up
            self._first = self._env.next_images()
        return self._first[0], {}

    def step(self, action: int) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Execute or skip the next block."""
        observation, reward, ended, _, info = self._env.step(np.array([action]))
        self._first = None
        if not ended[0]:
            return observation[0], float(reward[0]), False, False, {}
        self._first = observation  # of the next image
        final = {name: value[0] for name, value in info["final_info"].items() if f"_{name}" in info["final_info"]}
        return info["final_obs"][0], float(reward[0]), True, False, final
