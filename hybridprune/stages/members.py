"""Runs that can be joined to a cascade, and what they must have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hybridprune.store.run_folder import RunSpec

JOINED = ("sp", "prune")
"""Stages whose runs can be members."""


def in_common(spec: RunSpec, validation: Tensor) -> Mapping[str, Any]:
    """The facts that are equal for all members, by their names: the images, and how they are seen and validated.

    ``validation`` are the ids of the run's validation images.
    """
    return {
        "data set": (spec.dataset_digest, spec.input_size),
        "classes": spec.class_names,
        "normalisation": (spec.mean, spec.std),
        "cropping": spec.centre_crop,
        "validation split": sorted(validation.tolist()),
    }


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """The first thing that two members do not have in common (`in_common`), or None."""
    return next((name for name in one if one[name] != other[name]), None)
