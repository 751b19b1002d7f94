"""Stage 3 as a command, with every estimator, and the environment for agents."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from benchmarks.device_cases.case import Case, Values, numbers, random_images, random_labels, resnet, resumed, stage
from hybridprune.measure.cost import count
from hybridprune.routing.env import GateRoutingEnv, GateRoutingVectorEnv


def environment(device: torch.device) -> Values:
    """Episodes of three images at once, and of one, whose blocks are executed in turns."""
    net = resnet(device)
    cost, images, labels = count(net, 8), random_images(6), random_labels(6)
    envs = GateRoutingVectorEnv(net, cost, images, labels, 3, alpha=0.5, budget=0.7)
    seen, rewards = [envs.reset(seed=0)[0]], []
    for step in range(2 * net.num_gates):
        observation, reward, *_ = envs.step(np.arange(3) % 2 == step % 2)
        seen.append(observation)
        rewards.append(reward)
    one = GateRoutingEnv(net, cost, images.to(device), labels.to(device), alpha=0.5, terminal="accuracy")
    one.reset(seed=0)
    total = sum(one.step(gate % 2)[1] for gate in range(net.num_gates))
    return numbers(
        seen=torch.from_numpy(np.stack(seen)), rewards=torch.from_numpy(np.stack(rewards)), total_of_one=total
    )


_FLAGS: Mapping[str, tuple[str, ...]] = {
    "counterfactual": (),
    "counterfactual, sampled": ("--flip_from", "sampled", "--no-credit_scale", "--temperature", "2"),
    "counterfactual to a budget": ("--target_flops", "0.5", "--rate_bound", "0.4"),
    "self-critical": ("--baseline", "self_critical", "--target_flops", "0.5", "--batchnorm", "trained"),
    "moving average": ("--baseline", "moving_average", "--entropy_bonus", "0.1", "--gamma", "0.9"),
    "no baseline": ("--baseline", "none", "--precision", "bf16"),
    "gumbel": ("--estimator", "gumbel", "--rate_bound", "0.4"),
    "gumbel to a budget": ("--estimator", "gumbel", "--target_flops", "0.5", "--kd_weight", "0.5"),
    "gates only": ("--train", "gates", "--target_flops", "0.5", "--gate_start", "subset"),
    "gates only, gumbel": ("--train", "gates", "--estimator", "gumbel", "--batchnorm", "frozen"),
    "distilled": ("--kd_weight", "0.5", "--batchnorm", "trained", "--exploration", "0.2"),
    "warm-up": ("--rl_warmup", "1"),
    "fp16": ("--precision", "fp16"),
}
_RESUMED = ("counterfactual to a budget", "moving average", "gumbel to a budget")

CASES: Mapping[str, Case] = {
    "environment": environment,
    **{f"rl, {name}, resumed": resumed("rl", *_FLAGS[name], after=2) for name in _RESUMED},
    **{f"rl, {name}": stage("rl", *flags) for name, flags in _FLAGS.items()},
}
