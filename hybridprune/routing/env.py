"""The routing of a batch of images as a gymnasium environment: one image is one episode, one gate one step.

The environment works on torch tensors, so that the cross-entropy at the end of an episode can be differentiated
through the executed blocks. It drives the network's own step machine.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
import torch.nn.functional as F
from gymnasium.spaces import Box, Discrete
from gymnasium.vector.utils import batch_space
from torch import Tensor

from hybridprune.models.skipnet import GatedNetwork, Mode, RoutingState


class GateRoutingVectorEnv(gymnasium.vector.VectorEnv[Tensor, Tensor, Tensor]):
    """``B`` images on their way through the blocks of a gated network.

    - Observation: the last block's output, globally pooled and zero-padded to the widest block, ``[B, C_max]``,
      detached. Never the label.
    - Action: 1 executes the next block, 0 skips it, ``[B]``.
    - Reward of gate ``j``: ``alpha w_j (1 - a_j)``; the last step adds minus the image's own cross-entropy ``[B]``.
    - All episodes end together after N steps; ``info`` then holds ``logits [B, classes]`` and
      ``cross_entropy [B]``, both differentiable.

    ``reset`` takes ``options={"images": [B, 3, H, W], "labels": [B]}``, which set the number of environments.
    """

    metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.DISABLED}  # noqa: RUF012 (gymnasium's own attribute)

    def __init__(self, net: GatedNetwork, block_shares: Tensor, alpha: float, mode: Mode = "executed") -> None:
        """``block_shares [N]`` are each gated block's avoidable share of the network's FLOPs, ``alpha`` their price.

        ``mode`` says how blocks are skipped, which changes the speed and nothing else: masked is the faster one where
        gradients are needed and most blocks run.
        """
        assert block_shares.shape == (net.num_gates,), block_shares.shape
        self._net = net
        self._mode: Mode = mode
        self._prices = alpha * block_shares
        self._width = max(net.backbone.block_channels)
        self.single_observation_space = Box(-np.inf, np.inf, (self._width,), np.float32)
        self.single_action_space = Discrete(2)
        self._state: RoutingState | None = None

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Start one episode for each image; nothing here is random, ``seed`` is gymnasium's signature."""
        super().reset(seed=seed if isinstance(seed, int) else None)
        assert options is not None, "options must hold images and labels"
        images, self._labels = options["images"], options["labels"]
        if len(images) != getattr(self, "num_envs", None):
            self.num_envs = len(images)
            self.observation_space = batch_space(self.single_observation_space, self.num_envs)
            self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._state = self._net.start(images)
        return self._observation(self._state), {}

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Execute or skip the next block for each image ``[B]``."""
        assert self._state is not None, "reset first"
        gate = self._state.blocks_done - 1
        assert gate < self._net.num_gates, "the episodes are over: reset first"
        assert actions.shape == (self.num_envs,), actions.shape
        self._state = state = self._net.advance(self._state, actions, self._mode)
        reward = self._prices[gate] * (1 - actions.float())
        info: dict[str, Any] = {}
        done = gate == self._net.num_gates - 1
        if done:
            logits = self._net.finish(state)
            cross_entropy = F.cross_entropy(logits.float(), self._labels, reduction="none")
            assert cross_entropy.shape == reward.shape
            reward = reward - cross_entropy.detach()
            info = {"logits": logits, "cross_entropy": cross_entropy}
        ended = torch.full((self.num_envs,), done, device=actions.device)
        return self._observation(state), reward, ended, torch.zeros_like(ended), info

    def _observation(self, state: RoutingState) -> Tensor:
        pooled = self._net.observe(state).detach()
        return F.pad(pooled, (0, self._width - pooled.shape[1]))
