"""Recipes of stage 2's fine-tuning, by name: values of options that go together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RECIPES: Mapping[str, Mapping[str, Any]] = {
    "default": {"lr": 0.03, "kd_weight": 0.7},
    "published": {"lr": 0.02, "kd_weight": 0.0},
    "masksparsity": {"lr": 5e-4, "kd_weight": 0.0, "epochs_start": 40, "epochs_end": 40, "sparse_lr": 0.03},
}
"""By key of config.json. The options have the values of ``default``, if nobody says.

``default`` distils from the dense network, and was tuned for direction and channel methods together
(``benchmarks/converged.py``). ``published`` is the training of EigenDamage (Wang et al. 2019): cross-entropy alone.
``masksparsity`` is the fine-tuning of Jiang et al. 2022, from a learning rate at which their trainings towards sparsity
would push nothing: these keep the one of ``default``.
"""
