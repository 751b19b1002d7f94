"""Newly initialised weights for a network of any shape."""

from __future__ import annotations

from torch import nn

from hybridprune.ambient import CPU, seeded
from hybridprune.engine.modes import always_on
from hybridprune.models.resnet import initialise_convolutions
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.store.seeds import stream_seed


def initialise(net: nn.Module, seed: int, purpose: str) -> None:
    """Draw all weights of ``net`` anew, in place: each module's own way, convolutions as He et al. 2015 (fan out).

    Gates start open. For a network whose constructor would not give its present shape. The same seed and purpose give
    the same weights.
    """
    device = next((parameter.device for parameter in net.parameters()), CPU)
    with seeded(stream_seed(seed, "initialisation", purpose), device):
        for module in net.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
        initialise_convolutions(always_on(net))
        if isinstance(net, GatedNetwork):
            net.gate.open()
