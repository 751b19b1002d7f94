"""Tiny networks, images and runs that the cases share, the same on every device."""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import itertools
import json
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from hybridprune.errors import Interrupted
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.models.spec import NetworkSpec
from hybridprune.stages import prune, rl_prune, sp

Values = Mapping[str, Tensor | float]
"""What was computed, by name; tensors are on the CPU."""
Case = Callable[[torch.device], Values]

CLASSES = 5
NETWORK = ("--network", "resnet", "--depth", "8", "--width", "4")
DATA = ("--dataset", "digits", "--resize", "8", "--max_train_samples", "100", "--bs", "25", "--num_workers", "0")
MAIN: Mapping[str, Callable[[list[str]], None]] = {"sp": sp.main, "prune": prune.main, "rl": rl_prune.main}
OWN: Mapping[str, tuple[str, ...]] = {
    "sp": ("--epochs", "1", "--lr", "0.05"),
    "prune": (
        *("--epochs_start", "1", "--epochs_end", "1", "--curvature_images", "50", "--moment_images", "25"),
        *("--refit_images", "50", "--target_flops", "0.6", "--sparse_epochs", "1"),
        *("--bcnet_population", "4", "--bcnet_generations", "2"),
    ),
    "rl": ("--epochs", "1", "--rl_warmup", "0"),
}
PARENTS = {"prune": ("sp",), "rl": ("sp", "prune")}
"""The stages before a stage."""


def random_images(count: int, size: int = 8, seed: int = 0) -> Tensor:
    """Normal noise ``[count, 3, size, size]``, on the CPU."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def random_labels(count: int, seed: int = 0) -> Tensor:
    """Class ids ``[count]``, on the CPU."""
    return torch.randint(CLASSES, (count,), generator=torch.Generator().manual_seed(seed))


def batches(count: int = 24, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    """Pairs of images and labels as a user's loader gives them: on the CPU, the last batch smaller."""
    return list(zip(random_images(count, size).split(10), random_labels(count).split(10), strict=True))


def network(spec: NetworkSpec, device: torch.device, seed: int = 0) -> GatedNetwork:
    """A gated network in eval mode that was made on the CPU; its gates decide differently per image."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = spec.build()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 1.5)
                nn.init.uniform_(module.weight, 0.5, 1.5)
        if net.num_gates:
            for layer in net.gate.scores():
                nn.init.normal_(layer.weight, 0, 3)
    return net.to(device).eval()


def resnet(device: torch.device) -> GatedNetwork:
    """A gated ResNet-8 of width 4."""
    return network(NetworkSpec("resnet", 8, 4, CLASSES), device)


def plain(device: torch.device) -> nn.Module:
    """A plain ResNet: that of `resnet` without its gates."""
    return resnet(device).backbone


def numbers(**values: Any) -> Values:
    """``values`` as tensors on the CPU or floats; lists become tensors, and what is nested gets a dotted name."""
    found: dict[str, Tensor | float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= numbers(**{f"{name}.{key}": each for key, each in value.items()})
        elif isinstance(value, Tensor):
            found[name] = value.detach().cpu()
        elif isinstance(value, list | tuple):
            found[name] = torch.tensor(value, dtype=torch.float64)
        elif value is not None:
            found[name] = float(value)
    return found


def weights(net: nn.Module) -> Values:
    """The state of a network."""
    return {name: value.detach().cpu() for name, value in net.state_dict().items()}


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, nothing is printed."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


@functools.cache
def _finished(stages: tuple[str, ...], flags: tuple[str, ...]) -> Path:
    """A folder of results with one run of each of these stages, made on the CPU; it lives as long as the process."""
    root = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    for stage in stages:
        run_stage(root, stage, torch.device("cpu"), flags)
    return root


def run_stage(root: Path, stage: str, device: torch.device, flags: tuple[str, ...]) -> Path:
    """Run a stage on what lies below ``root``; returns its run folder."""
    folders = ("--result_dir", str(root), "--cache_dir", str(root / "cache"), "--device", str(device))
    with quiet():
        MAIN[stage]([*DATA, *OWN[stage], *folders, *flags])
    return run_of(root, stage)


@contextmanager
def finished(*stages: str, flags: tuple[str, ...] = NETWORK) -> Iterator[Path]:
    """A copy of the results of these stages, each one's own settings and ``flags``, run on the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(shutil.copytree(_finished(stages, flags), Path(folder) / "results"))


def run_of(root: Path, stage: str) -> Path:
    """The folder of the only run of a stage below ``root``."""
    (found,) = root.glob(f"*/*-{stage}-seed0")
    return found


def stage(name: str, *flags: str, net: tuple[str, ...] = NETWORK) -> Case:
    """A stage with these flags, after the stages that come before it."""

    def case(device: torch.device) -> Values:
        with finished(*PARENTS.get(name, ()), flags=net) as root:
            return results(run_stage(root, name, device, (*net, *flags)))

    return case


def resumed(name: str, *flags: str, after: int) -> Case:
    """A stage that is interrupted after so many steps of an optimiser, and resumed."""

    def case(device: torch.device) -> Values:
        with finished(*PARENTS.get(name, ()), flags=NETWORK) as root:
            with _interrupt(after), contextlib.suppress(Interrupted):
                run_stage(root, name, device, (*NETWORK, *flags))
            return results(run_stage(root, name, device, (*NETWORK, *flags, "--resume")))

    return case


@contextmanager
def _interrupt(after: int) -> Iterator[None]:
    """Inside, Ctrl-C comes after so many steps of an optimiser."""
    steps = itertools.count(1)

    def count(*_: object) -> None:
        if next(steps) == after:
            signal.raise_signal(signal.SIGINT)

    hook = register_optimizer_step_post_hook(count)
    try:
        yield
    finally:
        hook.remove()


def image_tree(root: Path) -> tuple[str, ...]:
    """Write a small tree of PNG files below ``root``; the flags that name it."""
    draw = torch.Generator().manual_seed(0)
    for folder, count in (("train", 12), ("test", 4)):
        for label in ("ant", "bee"):
            (root / folder / label).mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(256, (12, 10, 3), generator=draw, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(root / folder / label / f"{number}.png")
    return ("--data_dir", str(root), "--resize", "8", "--bs", "8", "--num_workers", "0", "--max_train_samples", "16")


def results(run: Path) -> Values:
    """The figures of a finished run."""
    result = json.loads((run / "result.json").read_text())
    routed = result["test"]["routed"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return numbers(
        macs=result["macs"]["backbone"],
        params=result["params"]["backbone"],
        accuracy=result["test"]["always_on"]["accuracy"],
        loss=result["test"]["always_on"]["loss"],
        routed_loss=routed["loss"],
        rates=routed["block_rates"],
        epochs=len(lines),
        effective_sparsity=result["effective_sparsity"],
    )
