"""Route images with somebody else's agent: PPO of stable-baselines3 decides instead of a run's own gates.

    pip install -e ".[agents]"
    python examples/third_party_agent.py RUN --alpha 2 --timesteps 50000
    hybridprune report RESULTS

RUN is a finished run of any stage. The backbone stays as it is; the agent learns on the training images and is measured
once on the test images, its own work counted. What it did is written as a run of stage "rl" beside its parent.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import hybridprune
from hybridprune.commands.finished_run import Parser
from hybridprune.data import EvalBatches
from hybridprune.engine.device import device_of
from hybridprune.engine.evaluate import Evaluation
from hybridprune.engine.run_data import load_dataset_of
from hybridprune.errors import UserError, run_command
from hybridprune.measure.cost import NetworkCost, count, count_module
from hybridprune.routing.env import GateRoutingVectorEnv
from hybridprune.stages.images import read_split
from hybridprune.store.files import sha256
from hybridprune.store.provenance import hardware, versions
from hybridprune.store.run_folder import FORMAT, RunFolder

try:
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import VecEnv
except ModuleNotFoundError as error:
    sys.exit(f'error: {error.name} is not installed; pip install -e ".[agents]"')

ENVS = 64
"""Images at once in training."""
Environment = Callable[..., GateRoutingVectorEnv]


class ImageVecEnv(VecEnv):
    """A `GateRoutingVectorEnv` as stable-baselines3 wants it: seeds before the reset, one info for each image."""

    def __init__(self, env: GateRoutingVectorEnv) -> None:
        self._env = env
        self._actions = np.zeros(env.num_envs, dtype=np.int64)
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> Any:
        observation, _ = self._env.reset(seed=self._seeds[0])
        self._reset_seeds()
        return observation

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> Any:
        observation, reward, ended, _, info = self._env.step(self._actions)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for own, last in zip(infos, info.get("final_obs", ()), strict=False):
            own.update({"terminal_observation": last, "TimeLimit.truncated": False})
        return observation, reward.astype(np.float32), ended, infos

    def close(self) -> None:
        self._env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self._env, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError("the images share one environment")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise NotImplementedError("the images share one environment")

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * len(list(self._get_indices(indices)))


def actor(agent: PPO) -> nn.Module:
    """The part of the agent that decides: ``[B, D]`` observations to ``[B, 2]`` logits of skipping and executing."""
    return nn.Sequential(agent.policy.mlp_extractor.policy_net, agent.policy.action_net).to("cpu")


def train(environment: Environment, gates: int, hidden: int, timesteps: int, seed: int) -> tuple[PPO, int, int]:
    """An agent that has learnt for ``timesteps`` decisions; the MACs of one, and the parameters that decide.

    One ``hidden`` layer decides. What judges in training only may be larger: it costs nothing later.
    """
    env = environment(ENVS)
    steps = 4 * gates  # whole episodes
    agent = PPO(
        "MlpPolicy",
        ImageVecEnv(env),
        n_steps=steps,
        batch_size=steps * ENVS // 4,
        policy_kwargs={"net_arch": {"pi": [hidden], "vf": [64, 64]}},
        gamma=1.0,  # rewards add up to what counts
        ent_coef=0.01,
        seed=seed,
        device="cpu",
    )
    macs, params = count_module(actor(agent), torch.zeros(1, *(env.single_observation_space.shape or ())))
    # Only now is it known what its own decisions cost.
    agent.set_env(ImageVecEnv(environment(ENVS, gate_macs=[macs] * gates)))
    agent.set_random_seed(seed)
    return agent.learn(timesteps), macs, params


@torch.no_grad()
def route(agent: PPO, env: GateRoutingVectorEnv, labels: Tensor) -> Evaluation:
    """Route each of an unshuffled environment's images (``labels [M]``) once, by what the agent holds for best."""
    images = len(labels)
    observation, _ = env.reset()
    policy = actor(agent)
    logits: list[Tensor] = []
    gate_logits: list[Tensor] = []
    while sum(map(len, logits)) < images:
        own: list[Tensor] = []
        ended, info = False, {}
        while not ended:
            skip, execute = policy(torch.from_numpy(observation)).unbind(1)
            own.append(execute - skip)
            observation, _, ends, _, info = env.step((own[-1] > 0).numpy())
            ended = bool(ends.all())
        logits.append(torch.from_numpy(info["final_info"]["logits"]))
        gate_logits.append(torch.stack(own, 1))
    # The last batch began with the first images again.
    decided = torch.cat(gate_logits)[:images]
    return Evaluation.of(torch.cat(logits)[:images], (decided > 0).float(), labels, decided)


def main(argv: Sequence[str]) -> None:
    """The command."""
    arguments = _parser().parse_args(argv)
    run = RunFolder.named(arguments.run)
    out = RunFolder(arguments.out or run.path.with_name(f"{run.path.name}-ppo-seed{arguments.seed}"))
    if out.path.exists():
        raise UserError(f"--out {out.path}: exists already; name a new folder")
    for name in ("timesteps", "hidden"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} {getattr(arguments, name)}: must be at least 1")
    device = device_of(arguments.device)
    model = hybridprune.load(run.path, device)
    net, spec = model.network, model.spec
    if net.num_gates == 0:
        raise UserError(f"{run.path}: {spec.network.network} has no blocks to skip; name a run of a residual network")
    cost = count(net, spec.input_size)
    train_set, test_set = _images(run, arguments.data_dir)

    def environment(num_envs: int, **options: Any) -> GateRoutingVectorEnv:
        return GateRoutingVectorEnv(net, cost, *train_set, num_envs, alpha=arguments.alpha, **options)

    started = time.perf_counter()
    agent, decision_macs, params = train(
        environment, net.num_gates, arguments.hidden, arguments.timesteps, arguments.seed
    )
    seconds = time.perf_counter() - started
    own = dataclasses.replace(cost, gate_macs=(decision_macs,) * net.num_gates, gate_params=params)
    images, labels = test_set
    batch = min(500, len(images))
    test_env = GateRoutingVectorEnv(net, own, images, labels, batch, alpha=arguments.alpha, shuffle=False)
    found = route(agent, test_env, labels)

    out.path.mkdir(parents=True)
    agent.save(out.path / "agent.zip")
    save_file(
        {"logits": found.logits, "decisions": found.decisions, "labels": found.labels}, out.path / "routes.safetensors"
    )
    _finish(out, run, own, cost, found, arguments, seconds, hardware(device))
    routed = found.routed_summary(own)
    print(f"finished: {out.path}")
    print(
        f"  routed by the agent: test accuracy {found.accuracy:.2%}, expected "
        f"{2 * routed['expected_macs'] / 1e9:.4f} GFLOPs, its decisions counted; mean rate {routed['mean_rate']:.3f}"
    )
    print(f"  execution rates: {' '.join(f'{rate:.2f}' for rate in found.block_rates)}")


Labelled = tuple[Tensor, Tensor]


def _images(run: RunFolder, data_dir: str | None) -> tuple[Labelled, Labelled]:
    """The images the run was trained on and its test images, normalised ``[M, 3, H, W]``, with labels, on the CPU."""
    spec = run.read_spec()
    dataset = load_dataset_of(run, spec, data_dir)

    def all_of(data: Any, ids: Tensor | None) -> Labelled:
        batches = EvalBatches(
            data, ids, batch_size=500, mean=spec.mean, std=spec.std, device="cpu", channels_last=False
        )
        pairs = [(batch.images, batch.labels) for batch in batches]
        return torch.cat([images for images, _ in pairs]), torch.cat([labels for _, labels in pairs])

    return all_of(dataset.train, read_split(run).train), all_of(dataset.test, None)


def _finish(
    out: RunFolder,
    parent: RunFolder,
    own: NetworkCost,
    cost: NetworkCost,
    found: Evaluation,
    arguments: argparse.Namespace,
    seconds: float,
    hardware: dict[str, Any],
) -> None:
    """Write what ``hybridprune report`` reads: the parent's record, but for who decides."""
    before = parent.read_json("result.json")
    config = {"agent": "ppo", "alpha": arguments.alpha, "hidden": arguments.hidden, "timesteps": arguments.timesteps}
    spec = dataclasses.replace(parent.read_spec(), stage="rl", run_id=uuid.uuid4().hex)
    out.write_json("spec.json", spec.to_json())
    keep = ("dataset", "network", "dense")
    out.write_json(
        "result.json",
        {
            "format": FORMAT,
            "stage": spec.stage,
            "run_id": spec.run_id,
            "exp_name": "ppo",
            "seed": arguments.seed,
            # Repeated runs differ by their seeds only.
            "group": hashlib.sha256((json.dumps(config) + before["group"]).encode()).hexdigest()[:16],
            **{key: before[key] for key in keep},
            "params": {"backbone": own.backbone_params, "gates": own.gate_params},
            "macs": {"backbone": own.backbone_macs, "gates": sum(own.gate_macs)},
            # fp32: the agent's deciding part is stored in place of the gates.
            "stored_bytes": before["stored_bytes"] + 4 * (own.gate_params - cost.gate_params),
            "model_sha256": sha256(out.path / "agent.zip"),
            "test": {
                "images": len(found.labels),
                "always_on": before["test"]["always_on"],
                "routed": found.routed_summary(own),
            },
            "seconds": round(seconds, 1),
            "versions": versions(),
            "hardware": hardware,
            "config": config,
            "parent": {
                "path": str(parent.path),
                "run_id": parent.read_spec().run_id,
                "model_sha256": before["model_sha256"],
            },
        },
    )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=50_000, help="decisions to learn from, default: %(default)s")
    parser.add_argument("--alpha", type=float, default=2.0, help="nats for all FLOPs, default: %(default)s")
    parser.add_argument("--hidden", type=int, default=16, help="units of the net that decides, default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--out", type=Path, help="folder to write (default: beside RUN)")
    return parser


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
