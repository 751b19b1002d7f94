"""`hybridprune.prune`, ``save`` and ``load`` of a user's own module: all methods and their options."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

import hybridprune
from benchmarks.device_cases.case import Case, Values, batches, numbers, plain, random_images
from hybridprune.config import CurvatureOptions, CutOptions, SparsityOptions
from hybridprune.config.options import METHOD_NAMES


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
            "sparsity": SparsityOptions(sparse_epochs=1),
            **options,
        },
    )
    with tempfile.TemporaryDirectory() as folder:
        hybridprune.save(found, folder)
        loaded = hybridprune.load(folder, device, into=plain(torch.device("cpu")))
    images = random_images(8, seed=1).to(device)
    with torch.no_grad():
        logits, again = found.module.eval()(images), loaded.eval()(images)
    return numbers(macs=found.spec.macs, params=found.spec.params, logits=logits, loaded=logits - again)


def _curvature(**options: Any) -> CurvatureOptions:
    return CurvatureOptions(curvature_images=24, moment_images=12, **options)


def _cut(**options: Any) -> CutOptions:
    return CutOptions(**{"refit_images": 24, **options})


CASES: Mapping[str, Case] = {
    **{method: partial(pruned, method=method) for method in METHOD_NAMES},
    **{
        f"{method}, {name}": partial(pruned, method=method, **options)
        for method in ("fisher-tucker", "eigendamage")
        for name, options in {
            "one ranking": {"cut": _cut(allocation="importance", normalize=True)},
            "one ranking per FLOP": {"cut": _cut(allocation="importance_per_flop")},
            "by rate and distortion": {"cut": _cut(allocation="rate_distortion", rank_multiple=2)},
            "by a ratio": {"cut": _cut(allocation="rate_distortion", allow_increase=True), "target_flops": None},
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
        pruned, method="bn-scale", cut=_cut(allocation="peel", peel_backbone="global-gamma"), target_flops=None
    ),
    "taylor, coupled": partial(pruned, method="taylor", cut=_cut(use_out_dependencies=True)),
    "masksparsity by energy": partial(
        pruned, method="masksparsity", sparsity=SparsityOptions(sparse_epochs=1, mask_rule="energy")
    ),
    "greg-2 from new weights": partial(
        pruned, method="greg-2", sparsity=SparsityOptions(sparse_epochs=1, sparse_start="scratch", greg_interval=1)
    ),
    "scratch": partial(pruned, cut=_cut(cut_weights="scratch"), method="l1"),
    "fine-tuned": partial(pruned, fine_tune=1.0, lr=0.01),
    "distilled": partial(pruned, fine_tune=1.0, lr=0.01, kd_weight=0.5),
}
