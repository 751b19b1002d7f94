"""Actions, by the clock: how each gated block is run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from hybridprune.deployment.choice import Choice
from hybridprune.deployment.network import ACTIONS, Action, DeployedNetwork, Step
from hybridprune.measure.latency import Latency, Stopwatch
from hybridprune.models.backbone import ResidualBlock
from hybridprune.models.gates import Hidden
from hybridprune.progress_bar import Steps


def choose_actions(
    net: DeployedNetwork, images: Tensor, rates: Sequence[float], time: Stopwatch, or_run: bool
) -> dict[str, Choice]:
    """Let each block that has something to decide be gathered or blended, whichever is faster at its rate.

    Asking the gate is timed with it. With ``or_run``, running the block for every image without asking is a third
    alternative; where it is the fastest it is returned as the choice, but not yet made.
    """
    choices: dict[str, Choice] = {}
    hidden: Hidden | None = None
    x = net.step(0)(net.backbone.stem(images), None)
    for i, rate in enumerate(Steps(rates, "timing blocks", "block"), start=1):
        step = net.step(i)
        block = cast(ResidualBlock, step.block)
        if step.decides:
            latencies = _latencies(step, x, hidden, rate, time, or_run)
            choices[str(i)] = Choice.fastest(latencies, before="gather")
            asking = {name: each for name, each in latencies.items() if name in ACTIONS}
            step.action = "blend" if Choice.fastest(asking, "gather").chosen == "blend" else "gather"
        if step.gate is not None:
            hidden = step.gate(x, hidden)[1]
        x = block.skip(x) if step.action == "skip" else block(x)
    return choices


def _latencies(
    step: Step, x: Tensor, hidden: Hidden | None, rate: float, time: Stopwatch, or_run: bool
) -> dict[str, Latency]:
    """Latencies of the actions on ``x [B, C, H, W]``, of which ``rate`` images execute the block on average.

    The times of gathering for the whole numbers of images on both sides of ``rate x B`` are interpolated.
    """
    block = cast(ResidualBlock, step.block)

    def ask(action: Action, count: int) -> Callable[[], object]:
        # Spread over the batch, as they will be.
        order = torch.linspace(0, len(x) - 1, count, device=x.device).round().long()
        decision = torch.zeros(len(x), dtype=torch.bool, device=x.device).index_fill_(0, order, True)

        def run() -> object:
            assert step.gate is not None
            step.gate(x, hidden)
            return ACTIONS[action](block, x, decision)

        return run

    few = min(math.floor(rate * len(x)), len(x) - 1)
    arms = {
        f"gather {few}": ask("gather", few),
        f"gather {few + 1}": ask("gather", few + 1),
        "blend": ask("blend", few),
    }
    found = time({**arms, "run": lambda: block(x)} if or_run else arms)
    between = _between(found[f"gather {few}"], found[f"gather {few + 1}"], rate * len(x) - few)
    others = {name: found[name] for name in ("blend", "run") if name in found}
    return {"gather": between, **others}


def _between(low: Latency, high: Latency, share: float) -> Latency:
    def mean(a: float, b: float) -> float:
        return (1 - share) * a + share * b

    return Latency(
        mean(low.median_ms, high.median_ms),
        mean(low.lower_quartile_ms, high.lower_quartile_ms),
        mean(low.upper_quartile_ms, high.upper_quartile_ms),
        low.rounds,
    )
