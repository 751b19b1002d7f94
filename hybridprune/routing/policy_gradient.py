"""REINFORCE on the gates, one return per image and gate, beside the backbone's cross-entropy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridprune.data import Batch
from hybridprune.engine.draws import Draws
from hybridprune.engine.modes import kept_modes
from hybridprune.engine.objective import Pass
from hybridprune.engine.parallel import batch_mean
from hybridprune.models.gates import greedy
from hybridprune.models.routed import RoutedNetwork
from hybridprune.processes import total
from hybridprune.routing.loss import RoutingTerms, gate_bounds, route_metrics
from hybridprune.routing.regular import entropy
from hybridprune.routing.rollout import (
    Choose,
    Rollout,
    choose_branching,
    choose_by,
    choose_flipping,
    choose_greedily,
    rollout,
)

MOMENTUM = 0.9


def returns(skip_rewards: Tensor, cross_entropy: Tensor, gamma: float) -> Tensor:
    """``R_i = sum_{j >= i} gamma^(j - i) r_j - gamma^(N - i) CE_n``, ``[B, N]``, for each image on its own.

    ``skip_rewards [B, N]``, ``cross_entropy [B]`` (Williams 1992; SkipNet, Wang et al. 2018, equation 4).
    """
    batch, gates = skip_rewards.shape
    assert cross_entropy.shape == (batch,), (cross_entropy.shape, skip_rewards.shape)
    following = -cross_entropy
    columns = []
    for i in reversed(range(gates)):
        following = skip_rewards[:, i] + gamma * following
        columns.append(following)
    return torch.stack(columns[::-1], 1)


def policy_loss(log_probs: Tensor, advantages: Tensor) -> Tensor:
    """``- mean over images of sum_i log pi(a_i) A_i``; both are ``[B, N]``, advantages are constants."""
    assert log_probs.shape == advantages.shape, (log_probs.shape, advantages.shape)
    return -(log_probs * advantages.detach()).sum(1).mean()


class PolicyGradient:
    """The objective of stage 3: mean cross-entropy of explored routes + ``rl_weight`` x policy loss.

    With the baselines ``none``, ``moving_average`` and ``self_critical``, and with ``counterfactual`` from sampled
    routes and unscaled, the policy loss's gradient is in the mean minus that of the policy's expected return. By
    default (``counterfactual`` from greedy routes, scaled) it is another one: see ``_flip_greedy`` and ``_credit``.

    The actions of an image in an epoch depend on (seed, epoch, image) only. With ``batchnorm`` trained, rollouts are
    made in eval mode for the gates alone, and the backbone learns in a pass of its own through the routes they took.
    """

    def __init__(
        self,
        net: RoutedNetwork,
        terms: RoutingTerms,
        *,
        images: int,
        seed: int,
        learn_from: Callable[..., Rollout] = rollout,
    ) -> None:
        """``images`` is the size of the image set that batches index into.

        ``learn_from``: `rollout`, perhaps compiled, for the rollouts that the backbone learns from.
        """
        self._net = net
        self._terms = terms
        self._options, self._price = terms.options, terms.price
        self._separate = terms.options.batchnorm == "trained"
        self._backbone_learns = terms.options.train != "gates"
        self._samples_flips = terms.options.flip_from == "sampled" and terms.options.baseline == "counterfactual"
        # The last one says which gate is flipped.
        self._draws = Draws(images, net.num_gates + self._samples_flips, seed, "actions")
        self._learn_from = learn_from
        self._average = torch.zeros_like(terms.block_shares)
        self._scale = torch.zeros_like(terms.block_shares)

    def __call__(self, forward: Pass, batch: Batch, passes: float) -> tuple[Tensor, dict[str, Tensor]]:
        uniform = self._draws(int(passes), batch.ids)
        if self._separate:
            with kept_modes(self._net):
                self._net.eval()
                episode, reward, advantage = self._explore(batch, uniform)
            logits = forward(batch.images, episode.actions).logits
            cross_entropy = F.cross_entropy(logits.float(), batch.labels)
        else:
            episode, reward, advantage = self._explore(batch, uniform)
            logits, cross_entropy = episode.logits, episode.cross_entropy.mean()
        share = self._terms.flops_share(greedy(episode.gate_logits.detach()))
        if self._weight(passes) > 0 and not self._price.held:  # processes need not agree on it where it stays
            self._price.spend(batch_mean(share, batch.weight))
        gates = policy_loss(episode.log_probs, advantage)
        if self._options.entropy_bonus > 0:
            gates = gates - self._options.entropy_bonus * entropy(episode.execute)
        loss = (
            self._terms.backbone_loss(cross_entropy, logits, batch)
            + self._weight(passes) * gates
            + gate_bounds(episode.execute, batch, self._options, passes)
        )
        metrics = route_metrics(logits, batch, cross_entropy, episode.actions, share)
        metrics |= {"return": reward[:, 0].mean(), "advantage": advantage.abs().mean()}
        metrics["price"] = self._price.value
        return loss, {name: value.detach() for name, value in metrics.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"average": self._average, "scale": self._scale, "price": self._price.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._average = state["average"].to(self._average.device)
        self._scale = state["scale"].to(self._scale.device)
        self._price.load_state_dict(state["price"])

    def _weight(self, passes: float) -> float:
        """``rl_weight`` after the warm-up: skipping looks costly until the backbone has seen skipped blocks.

        Where the gates learn alone there is nothing to wait for.
        """
        warmup = self._options.rl_warmup if self._backbone_learns else 0.0
        return self._options.rl_weight if passes >= warmup * self._options.epochs else 0.0

    def _explore(self, batch: Batch, uniform: Tensor) -> tuple[Rollout, Tensor, Tensor]:
        """Routes that differ from the greedy ones, their returns ``[B, N]`` and the advantages ``[B, N]``."""
        if self._options.baseline == "counterfactual":
            return self._flip_sampled(batch, uniform) if self._samples_flips else self._flip_greedy(batch, uniform)
        episode = self._rollout(batch, choose_by(uniform))
        reward = self._returns(episode)
        return episode, reward, reward - self._baseline(batch, reward)

    def _rollout(self, batch: Batch, choose: Choose, backbone_grad: bool = True) -> Rollout:
        options = self._options
        backbone_grad = backbone_grad and self._backbone_learns and not self._separate
        walk = self._learn_from if backbone_grad else rollout  # the others skip, which no compiler likes
        return self._terms.precision(walk)(
            self._net,
            self._terms.cost,
            batch.images,
            batch.labels,
            choose,
            mode="masked" if backbone_grad else "executed",
            backbone_grad=backbone_grad,
            exploration=options.exploration,
            temperature=options.temperature,
        )

    def _returns(self, episode: Rollout) -> Tensor:
        skip_rewards = self._price.value * self._terms.block_shares * (1 - episode.actions)
        return returns(skip_rewards, episode.cross_entropy.detach(), self._options.gamma)

    def _greedy_returns(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            return self._returns(self._rollout(batch, choose_greedily, backbone_grad=False))

    def _flip_greedy(self, batch: Batch, uniform: Tensor) -> tuple[Rollout, Tensor, Tensor]:
        """In half of the images one random gate decides otherwise; the difference to the greedy return is its credit.

        Without the scale (see ``_credit``) the gradient is exactly that of the sum over gates of the expected return
        when that gate alone is sampled and all others decide greedily, those behind it on the features that they then
        see. No noise of other gates is in it, nor of the gate's own: that is why it learns faster than the gradient of
        the policy's own expected return, which `_flip_sampled` estimates, and inference is greedy as well. The two
        objectives differ where gates undo or rely on what others sample.

        The other half of the images stays greedy, so that the backbone does not forget the routes that inference takes.
        """
        gates = self._net.num_gates
        drawn = (uniform[:, 0] * 2 * gates).long()
        explored = (drawn < gates).nonzero().squeeze(1)
        episode = self._rollout(batch, choose_flipping(drawn))
        reward = self._returns(episode)
        gain = reward[explored]
        if len(explored) > 0:
            others = Batch(batch.images[explored], batch.labels[explored], batch.ids[explored])
            gain = gain - self._greedy_returns(others)
        advantage = torch.zeros_like(reward)
        # Also where nothing was explored: the scale is that of all processes.
        advantage[explored] = self._credit(episode.log_probs[explored], gain, drawn[explored], 2 * gates)
        return episode, reward, advantage

    def _flip_sampled(self, batch: Batch, uniform: Tensor) -> tuple[Rollout, Tensor, Tensor]:
        """The policy's own routes; in each image one random gate is flipped, and what that changes is its credit.

        Behind the flipped gate the same policy goes on sampling, by the same numbers. Given the route before gate i,
        the difference of the two returns is, whichever action the route took, an unbiased estimate of
        ``Q_i(1) - Q_i(0)`` (up to the sign that belongs to the action), and the gradient of the expected return is
        ``sum_i E[(Q_i(1) - Q_i(0)) grad p_i]`` over the routes before i: so without the scale (see ``_credit``) the
        estimate is unbiased, though recurrent gates answer the flip (Sutton et al. 1999, theorem 1, with both actions
        tried). With ``gamma`` < 1, it is the gradient that discounted returns give all baselines.
        """
        gates = self._net.num_gates
        drawn = (uniform[:, gates] * gates).long()
        episode = self._rollout(batch, choose_by(uniform))
        with torch.no_grad():
            flipped = self._rollout(batch, choose_branching(episode.actions, drawn, uniform), backbone_grad=False)
            reward, other = self._returns(episode), self._returns(flipped)
        return episode, reward, self._credit(episode.log_probs, reward - other, drawn, gates)

    def _credit(self, log_probs: Tensor, gain: Tensor, gate: Tensor, times: int) -> Tensor:
        """Advantages of the one gate of each image that was tried, ``gate [M]`` with chance 1 / ``times``, else 0.

        ``gain [M, N]`` is what the action of ``log_probs [M, N]`` returned above the other one. It is weighted by the
        action's probability, since ``pi grad log pi = grad pi``: the actions were not sampled to be compared.

        With ``credit_scale``, each gate's gains are divided by their own running root mean square: gates share an LSTM,
        and a block that must not be skipped (gains of -2 nats) would otherwise push all gates open before the small
        gains of those that may be skipped (0.05 nats) are heard. What a batch gives through one gate is then the
        unscaled gradient through that gate times one positive number, but their sum is no longer the gradient of one
        objective.
        """
        assert log_probs.shape == gain.shape and gate.shape == gain.shape[:1], (log_probs.shape, gain.shape, gate.shape)
        # Not one_hot: it may read the largest number first.
        tried = (gate[:, None] == torch.arange(gain.shape[1], device=gate.device)).to(gain)
        weight = times * tried * log_probs.detach().exp()
        if not self._options.credit_scale:
            return weight * gain
        self._update_scale((tried * gain.square()).sum(0), tried.sum(0))
        return weight * gain / self._scale.sqrt().clamp(min=1e-8)

    def _update_scale(self, squares: Tensor, counts: Tensor) -> None:
        """Running mean square of the gains per gate ``[N]``, from this batch's sums; starts at the first ones seen."""
        total([squares, counts])
        mean = squares / counts.clamp(min=1)
        moved = torch.where(self._scale > 0, MOMENTUM * self._scale + (1 - MOMENTUM) * mean, mean)
        self._scale = torch.where(counts > 0, moved, self._scale)

    def _baseline(self, batch: Batch, reward: Tensor) -> Tensor:
        """``b_i [B, N]``; depends on nothing that the sampled actions of gates >= i decide."""
        if self._options.baseline == "none":
            return torch.zeros_like(reward)
        if self._options.baseline == "self_critical":
            return self._greedy_returns(batch)
        before = self._average
        self._average = MOMENTUM * before + (1 - MOMENTUM) * batch_mean(reward.mean(0), batch.weight)
        return before.expand_as(reward)
