"""Test images of a run, routed once: the gallery is made of them, and a cascade's rates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hybridprune.data import Batch, EvalBatches, ImageSet
from hybridprune.engine.evaluate import Evaluation, evaluate_routes
from hybridprune.engine.run_data import load_dataset_of
from hybridprune.measure.cost import NetworkCost, count
from hybridprune.models.cascade import Cascade
from hybridprune.models.routed import Routed
from hybridprune.store.run_folder import RunFolder, RunSpec

BATCH = 128


@dataclass(frozen=True)
class RoutedImages:
    """M test images of a run, and what its network made of each."""

    spec: RunSpec
    cost: NetworkCost
    test: ImageSet
    ids: Tensor
    """Their places among the test images, ``[M]``."""
    routed: Evaluation
    first: Tensor | None
    """The answers of a cascade's first member, calibrated logits ``[M, classes]``; None with gated blocks."""

    def class_of(self, prediction: int | Tensor) -> str:
        """The name of a class."""
        return self.spec.class_names[int(prediction)]

    @property
    def margins(self) -> Tensor | None:
        """The confidence of a cascade's first member, ``[M]``: how far its two highest probabilities are apart."""
        if self.first is None:
            return None
        highest = self.first.softmax(1).topk(min(2, self.first.shape[1]), 1).values
        return highest[:, 0] - highest[:, 1:].sum(1)


@torch.no_grad()
def route_images(run: RunFolder, limit: int, data_dir: str | None, device: str | torch.device) -> RoutedImages:
    """Route up to ``limit`` test images, evenly spaced.

    Raises UserError if the network or its images cannot be read.
    """
    net, spec = run.load_network()
    test = load_dataset_of(run, spec, data_dir).test
    ids = torch.arange(len(test))
    if len(ids) > limit:
        ids = torch.linspace(0, len(test) - 1, limit).round().long()
    cost = count(net, spec.input_size)
    batches = EvalBatches(test, ids, batch_size=BATCH, mean=spec.mean, std=spec.std, device=device, channels_last=True)
    net = net.to(device).eval()
    answers: list[Tensor] = []

    def route(batch: Batch, start: int) -> Routed:
        state = net.start(batch.images)
        if isinstance(net, Cascade):
            answers.append(state.features.cpu())
        return net.route(state, mode="executed")

    routed = evaluate_routes(route, batches)
    return RoutedImages(spec, cost, test, ids, routed, torch.cat(answers) if answers else None)
