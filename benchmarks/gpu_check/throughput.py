"""Images a second of each stage's own loop, and of the curvature passes, in the classic and the wide width."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu_check.check import Check, Found, Setting
from benchmarks.training import STAGES, Loops, network, objective_of
from hybridprune.batch import Batch
from hybridprune.curvature import collect_factors
from hybridprune.models.skipnet import GatedNetwork

BATCH = 128
KINDS: Mapping[str, tuple[str, bool, bool]] = {
    "fp32": ("fp32", False, False),
    "TF32": ("fp32", True, False),
    "bf16": ("bf16", False, False),
    "bf16 compiled": ("bf16", False, True),
}
"""Precision, whether TF32 is allowed, whether the network is compiled."""


def training(setting: Setting, stage: str, width: int, kind: str) -> Found:
    """An epoch of a stage's loop, the fastest of two after one that does not count."""
    precision, tf32, compile = KINDS[kind]
    batch, steps = (8, 1) if setting.quick else (BATCH, 24)
    loops = Loops(batch, steps, precision, compile, setting.device, tf32)
    pruned, options = STAGES[stage]
    net = network(4 if setting.quick else width, pruned).to(setting.device)
    frozen = options is not None and options.batchnorm == "frozen"
    with tempfile.TemporaryDirectory() as folder:
        epoch = loops.stage(net, objective_of(net, options, batch * steps, loops), frozen, Path(folder))
        seconds = [epoch() for _ in range(3)]
    return Found(images_per_second=batch * steps / min(seconds[1:]), note=_memory(setting.device))


def curvature(setting: Setting, width: int, passes: str) -> Found:
    """The factors of all layers, or these and the exact traces of their second moments, always in fp32."""
    batch, count = (4, 1) if setting.quick else (BATCH, 8)
    device = setting.device
    net = network(4 if setting.quick else width, False).to(device).eval()
    images = torch.randn(batch, 3, 32, 32, device=device)
    batches = [Batch(images, torch.zeros(batch, dtype=torch.int64, device=device))] * count
    seconds = [_timed(partial(_measure, net, batches, passes), device) for _ in range(2)]
    return Found(images_per_second=batch * count / seconds[-1], note=_memory(device))


def _measure(net: GatedNetwork, batches: list[Batch], passes: str) -> None:
    kinds = torch.nn.Conv2d, torch.nn.Linear
    layers = {name: layer for name, layer in net.backbone.named_modules() if isinstance(layer, kinds)}
    traced = sum(len(batch.images) for batch in batches) if passes == "traces" else 0
    collect_factors(
        _logits(net),
        layers,
        batches,
        fisher_type="true",
        moving_average=0.0,
        seed=0,
        sua=False,
        traced_images=traced,
    )


def _logits(net: GatedNetwork) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda images: net(images, mode="executed").logits


def _timed(run: Callable[[], None], device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _memory(device: torch.device) -> str:
    """The peak since this was asked last."""
    if device.type != "cuda":
        return ""
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return f"{peak / 2**30:.2f} GiB"


CHECKS: Mapping[str, Check] = {
    **{
        f"images/s: stage {stage}, width {width}, {kind}": Check(
            partial(training, stage=stage, width=width, kind=kind),
            seconds=150 if "compiled" in kind else 60,
            alone=True,
        )
        for width in (16, 64)
        for stage in ("1", "2", "3, counterfactual")
        for kind in KINDS
        if "compiled" not in kind or (stage, width) == ("1", 64)
    },
    **{
        f"images/s: {passes}, width {width}": Check(partial(curvature, width=width, passes=passes), alone=True)
        for width in (16, 64)
        for passes in ("factors", "traces")
    },
}
