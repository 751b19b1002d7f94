"""`hybridprune.prune`, ``save`` and ``load`` of a user's own module: all methods and their options."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hybridprune
from benchmarks.device_cases.case import (
    CLASSES,
    Case,
    Values,
    batches,
    numbers,
    plain,
    random_images,
    random_labels,
    weights,
)
from hybridprune.api.first_look import Task, look
from hybridprune.api.prunable import PlainNetwork
from hybridprune.config import CurvatureOptions, CutOptions, LatencyTarget, SparsityOptions
from hybridprune.config.methods import METHOD_NAMES
from hybridprune.curvature import likelihood_of
from hybridprune.latency.cache import TimeCache
from hybridprune.latency.engines import Eager
from hybridprune.latency.network_clock import DeployedClock
from hybridprune.measure.latency import Arms, Latency
from hybridprune.models.factored import Ranks


def pruned(device: torch.device, cut: CutOptions | None = None, **options: Any) -> Values:
    """Cut a network, save it, load it elsewhere, and give the loaded one's cost and logits."""
    net = plain(device)
    found = hybridprune.prune(
        net,
        batches(),
        cut=cut or CutOptions(refit_images=24),
        **{
            "target_flops": 0.6,
            "curvature": CurvatureOptions(curvature_images=24, moment_images=12),
            "sparsity": SparsityOptions(sparse_epochs=1, bcnet_population=4, bcnet_generations=2),
            **options,
        },
    )
    with tempfile.TemporaryDirectory() as folder:
        hybridprune.save(found, folder)
        loaded = hybridprune.restore(folder, into=plain(torch.device("cpu"))).to(device)
    images = random_images(8, seed=1).to(device)
    with torch.no_grad():
        logits, again = found.module.eval()(images), loaded.eval()(images)
    return numbers(macs=found.spec.macs, params=found.spec.params, logits=logits, loaded=logits - again)


def timed(device: torch.device, kind: str) -> Values:
    """Tables of a network's layers, and a cut beside it, by a clock that is told what to say; each arm runs once."""

    def told(arms: Arms) -> dict[str, Latency]:
        for run in arms.values():
            run()
        return {name: Latency(place, place, place, 1) for place, name in enumerate(arms, start=1)}

    net = plain(device)
    found, example = look(net, batches(), Task(likelihood_of("cross_entropy"), None))
    network = PlainNetwork(net, found, example, (), 0)
    names = [name for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    with tempfile.TemporaryDirectory() as folder:
        options, cache = LatencyTarget(batch=4), TimeCache(Path(folder))
        clock = DeployedClock(net, lambda module: module, example, options, Eager(device), told, told, cache)
        if kind == "forms":
            directions = clock.directions(network, names)
            times = [float(each.of(Ranks(2, 2))) for each in directions.layers.values()]
        else:
            times = [float(each.of(2, 2)) for each in clock.channels(network, names).layers.values()]
        reading = clock.read(net)
    return numbers(whole=clock.dense_ns, share=reading.share, points=clock.points, times=torch.tensor(times))


class _Twice(nn.Module):
    """A network of dictionaries: images and a second view of them, as one batch, to class ids and yes or no."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.net = plain(device)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        logits = self.net(batch["first"]) + self.net(batch["second"])
        return {"class": logits, "any": logits.sum(1)}


class _Dense(nn.Module):
    """Logits of every pixel, ``[B, 5, 8, 8]``."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
            self.head = nn.Conv2d(8, CLASSES, 1)
        self.to(device)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.net(images))


def with_loss(device: torch.device, loss: str) -> Values:
    """Prune and fine-tune for yes or no, for numbers, and for every pixel; targets lie on the CPU."""
    images = random_images(24).split(10)
    targets = {
        "bce": [(each[:, 0, 0, :CLASSES] > 0).float() for each in images],
        "mse": [each[:, 0, 0, :CLASSES] for each in images],
        "cross_entropy": [each.argmax(1) for each in images],
    }[loss]
    net = _Dense(device) if loss == "cross_entropy" else plain(device)
    found = hybridprune.prune(
        net,
        list(zip(images, targets, strict=True)),
        target_flops=0.6,
        loss=loss,
        fine_tune=1.0,
        lr=0.01,
        curvature=_curvature(),
        cut=_cut(),
    )
    with torch.no_grad():
        return numbers(macs=found.spec.macs, outputs=found.module.eval()(images[0].to(device)))


def with_own_loss(device: torch.device) -> Values:
    """Prune what takes and gives dictionaries, by a loss and a pass of the user's own."""
    batches = [
        {"first": images, "second": -images, "labels": labels}
        for images, labels in zip(random_images(24).split(10), random_labels(24).split(10), strict=True)
    ]

    def loss(output: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        return F.cross_entropy(output["class"], batch["labels"]) + output["any"].square().mean()

    found = hybridprune.prune(
        _Twice(device),
        batches,
        target_flops=0.6,
        method="taylor",
        loss=loss,
        forward=lambda model, batch: model(batch),
        fine_tune=1.0,
        lr=0.01,
        curvature=_curvature(),
        cut=_cut(),
    )
    return numbers(macs=found.spec.macs, weights=weights(found.module))


def _curvature(**options: Any) -> CurvatureOptions:
    return CurvatureOptions(curvature_images=24, moment_images=12, **options)


def _cut(**options: Any) -> CutOptions:
    return CutOptions(**{"refit_images": 24, **options})


CASES: Mapping[str, Case] = {
    "times of forms": partial(timed, kind="forms"),
    "times of channels": partial(timed, kind="channels"),
    **{method: partial(pruned, method=method) for method in METHOD_NAMES},
    **{
        f"{method}, {name}": partial(pruned, method=method, **options)
        for method in ("fisher-tucker", "eigendamage")
        for name, options in {
            "one ranking": {"cut": _cut(allocation="importance", normalize=True)},
            "one ranking per FLOP": {"cut": _cut(allocation="importance_per_flop")},
            "by rate and distortion": {"cut": _cut(allocation="rate_distortion", rank_multiple=2)},
            "refit of the network": {"cut": _cut(refit="network")},
            "by a ratio": {
                "cut": _cut(allocation="rate_distortion", allow_increase=True, prune_ratio=0.5),
                "target_flops": None,
            },
            "by parameters": {"target_flops": None, "target_params": 0.5, "curvature": _curvature(sua=True)},
            "by orthogonal iteration": {"cut": _cut(decomp_method="tucker", hooi_sweeps=2)},
            "full covariance": {"curvature": _curvature(use_full_cov_a=True)},
            "homogeneous": {"curvature": _curvature(use_bias=True, correct_eigenvalues=True)},
            "entries": {"curvature": _curvature(correct_eigenvalues=True, sua=True)},
        }.items()
    },
    **{
        f"kron-obs, {name}": partial(pruned, method="kron-obs", **options)
        for name, options in {
            "homogeneous": {"curvature": _curvature(use_bias=True)},
            "channels only": {"curvature": _curvature(sua=True), "cut": _cut(use_out_dependencies=True)},
        }.items()
    },
    "bn-scale, peel": partial(pruned, method="bn-scale", cut=_cut(allocation="peel", round_to=2)),
    "bn-scale, peel from a ranking": partial(
        pruned,
        method="bn-scale",
        cut=_cut(allocation="peel", peel_backbone="global-gamma", prune_ratio=0.5),
        target_flops=None,
    ),
    "taylor, coupled": partial(pruned, method="taylor", cut=_cut(use_out_dependencies=True)),
    "masksparsity by energy": partial(
        pruned, method="masksparsity", sparsity=SparsityOptions(sparse_epochs=1, mask_rule="energy")
    ),
    "greg-2 from new weights": partial(
        pruned, method="greg-2", sparsity=SparsityOptions(sparse_epochs=1, sparse_start="scratch", greg_interval=1)
    ),
    **{f"loss {name}": partial(with_loss, loss=name) for name in ("bce", "mse", "cross_entropy")},
    "loss of one's own": with_own_loss,
    "scratch": partial(pruned, cut=_cut(cut_weights="scratch"), method="l1"),
    "fine-tuned": partial(pruned, fine_tune=1.0, lr=0.01),
    "distilled": partial(pruned, fine_tune=1.0, lr=0.01, kd_weight=0.5),
}
