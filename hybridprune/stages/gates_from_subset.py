"""The start of stage 3 from a fixed subset of blocks (``--gate_start subset``)."""

from __future__ import annotations

from hybridprune.data import EvalBatches
from hybridprune.measure.cost import NetworkCost
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.routing.subset import Subset, start_from_subset
from hybridprune.stages.images import RunImages

SEARCH_IMAGES = 2000


def search_images(images: RunImages) -> EvalBatches:
    """The training images that subsets of blocks are compared on."""
    return images.sample(SEARCH_IMAGES, images.eval_batch, "subset", shared=True)


def gates_from_subset(
    net: GatedNetwork, cost: NetworkCost, budget: float, images: RunImages, alpha: float
) -> tuple[Subset, float]:
    """Let the gates start from the best subset of blocks for ``budget`` MACs, gates counted.

    Gives that subset and the price of the whole backbone (nats) at which it pays, or ``alpha`` if none does.
    """
    subset = start_from_subset(net, cost, budget, search_images(images), images.training("lessons"))
    return subset, subset.price * cost.backbone_macs or alpha
