"""`hybridprune.train` and `hybridprune.prune_finetune`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

import hybridprune
from benchmarks.device_cases.case import Case, Values, numbers
from hybridprune.config import DataOptions


def trained_and_cut(device: torch.device, method: str) -> Values:
    """A network trained for its cut, cut and fine-tuned."""
    data = DataOptions(dataset="digits", resize=8, max_train_samples=100)
    options = {"epochs": 1, "lr": 0.05, "batch_size": 25, "device": str(device)}
    net, logs = hybridprune.train(data, "resnet8-w4", method, **options)
    cut, after = hybridprune.prune_finetune(net, data, method, 0.5, **options)
    del cut
    names = ("flops", "params", "flops_before")
    return numbers(
        train_loss=logs[-1]["train_loss"], loss=after[-1]["train_loss"], **{name: after[0][name] for name in names}
    )


CASES: Mapping[str, Case] = {method: partial(trained_and_cut, method=method) for method in ("rni", "slimming", "ucs")}
