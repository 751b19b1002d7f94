"""Results of a method's own code, checked where they are used: a method may be a user's."""

from __future__ import annotations

import torch
from torch import Tensor

from hybridprune.errors import UserError
from hybridprune.pruning.directions.decomposition import Decomposition


def checked_scores(scores: object, method: object, layer: str, channels: int) -> Tensor:
    """Scores ``[channels]`` of a group, named by its first layer; UserError if they are not these, or not finite."""
    if not isinstance(scores, Tensor) or scores.shape != (channels,):
        raise UserError(
            f"--method {method}: {_described(scores)} as scores for {channels} channels of {layer}; give a tensor "
            f"[{channels}], one for each"
        )
    if not bool(scores.isfinite().all()):
        raise UserError(
            f"--method {method}: a score for the {channels} channels of {layer} is not finite; look at the method, and "
            "at the layer's weights"
        )
    return scores


def checked_decomposition(found: object, method: object, layer: str, weight: Tensor) -> Decomposition:
    """The decomposition of a layer's weight ``[C_out, C_in, kh, kw]``; UserError if a part has another shape.

    Or if it is not finite, or not on the CPU where it has to be.
    """
    if not isinstance(found, Decomposition):
        raise UserError(f"--method {method}: a {type(found).__name__} for {layer}; return a Decomposition")
    outputs, inputs = weight.shape[:2]
    wanted = {
        "out_basis": (outputs, outputs),
        "core": tuple(weight.shape),
        "in_basis": (inputs, inputs),
        "out_scale": (outputs, outputs),
        "in_scale": (inputs, inputs),
        "importance": (outputs, inputs),
    }
    for name, shape in wanted.items():
        part = getattr(found, name)
        if not isinstance(part, Tensor) or part.shape != shape:
            raise UserError(f"--method {method}: {_described(part)} as {name} of {layer}; give a tensor {list(shape)}")
        if not bool(part.isfinite().all()):
            raise UserError(
                f"--method {method}: {name} of {layer} is not finite; look at the method, and at the layer's weights"
            )
    if found.importance.device != torch.device("cpu"):
        raise UserError(
            f"--method {method}: importance of {layer} is on {found.importance.device}; plans are made on the CPU, so "
            "give importance.cpu()"
        )
    return found


def _described(value: object) -> str:
    return f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
