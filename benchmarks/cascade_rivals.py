"""The arms of `benchmarks.cascade_arms` that have to be trained: gates at blocks, and members that share a trunk.

Both start from trained networks, learn beside the outputs of the published one, and are trained by the recipe of all
others. Their states are kept in the work folder after each epoch.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.cascade_choices import Found, Images, Member, Search, gated
from benchmarks.cascade_members import EPOCHS, Networks
from benchmarks.recipe import CPU, answered, save
from hybridprune.config import RoutingOptions
from hybridprune.data import Batch
from hybridprune.engine.batchnorm import recalibrate
from hybridprune.engine.draws import Draws
from hybridprune.engine.evaluate import evaluate
from hybridprune.engine.threshold import threshold_for
from hybridprune.measure.cost import count
from hybridprune.models.backbone import Backbone
from hybridprune.models.gates import logistic, straight_through
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.models.trunk import Trunk, graft
from hybridprune.routing.gumbel import TARGET_WEIGHT
from hybridprune.routing.loss import RoutingTerms
from hybridprune.routing.price import Price
from hybridprune.routing.subset import start_from_subset

GATED: Mapping[float, str] = {0.25: "56@0.32", 0.4: "56", 0.55: "56", 0.75: "56"}
"""By budget, the network whose blocks get gates."""
GATE_EPOCHS = 2
FIRST, SHARED = "20@0.5", 3
"""The first member that goes on from the trunk, and the blocks of that trunk."""
ONTO: Mapping[float, str] = {0.25: "56@0.32", 0.4: "56@0.32", 0.55: "56", 0.75: "56"}
"""By budget, the second member, of which the trunk is."""
BATCH = 128
SEARCH_IMAGES, STATISTICS_IMAGES, TOLERANCE = 512, 4096, 0.002


@dataclass(frozen=True)
class Relaxed:
    """Answers along sampled routes, and what they miss a budget by (as in `GumbelRouting`)."""

    terms: RoutingTerms
    target: float
    """Share of the backbone's MACs, gates counted."""
    draws: Draws

    def __call__(self, net: nn.Module, batch: Batch, epoch: int) -> tuple[Tensor, Tensor]:
        routed = net(batch.images, decide=straight_through, noise=logistic(self.draws(epoch, batch.ids)))
        share = self.terms.flops_share(routed.decisions)
        return routed.logits, TARGET_WEIGHT * (share - self.target).square()


def gates_at_blocks(networks: Networks, images: Images, budget: float, macs: float) -> Found:
    """A network whose gates skip blocks: they start from the best subset for the budget, and all is trained.

    A threshold meets the budget on the images for choices.
    """
    name, shown = GATED[budget], networks.bench.images
    net = GatedNetwork(networks.build(name)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    cost = count(net, next(iter(shown.sample(0, 1))).images.shape[-1])
    folder = networks.bench.work / f"gates-{name}-{budget:g}-seed{networks.seed}"
    start = folder / "start.pt"
    if not start.is_file():
        lessons = shown.training(networks.seed, BATCH)
        start_from_subset(net, cost, macs, shown.sample(networks.seed, SEARCH_IMAGES), lessons)
        save(start, {"net": net.state_dict()})
    net.load_state_dict(torch.load(start, weights_only=True)["net"])
    draws = Draws(len(shown.dataset.train), net.num_gates, networks.seed, "gumbel")
    target = macs / cost.backbone_macs
    answer = Relaxed(RoutingTerms.of(cost, RoutingOptions(), Price(1.0, target, 0.0, CPU), CPU), target, draws)
    networks.teach(net, GATE_EPOCHS, folder / f"{GATE_EPOCHS}.pt", answer)
    point = threshold_for(net, shown.of_test(images.choices), cost, macs, TOLERANCE)
    found = evaluate(net, shown.of_test(images.report), threshold=point.threshold)
    return Found(
        (f"{name}, its blocks",),
        found.predictions == found.labels,
        torch.zeros_like(images.report),
        cost.expected_macs(found.block_rates),
        point.evaluation.accuracy,
    )


def shared_trunk(networks: Networks, images: Images, budget: float, macs: float) -> Found:
    """Two members, the first of which goes on from the first blocks of the second one; learned gates."""
    return gated(Search(members_on_trunk(networks, ONTO[budget]), images), macs, "average", learned=True)


def members_on_trunk(networks: Networks, onto: str) -> tuple[Member, Member]:
    """A cut network that was trained to go on from the frozen trunk of another one, and the rest of that one.

    The trunk's MACs are the first one's.
    """
    shown, path = networks.bench.images, networks.bench.work / f"logits-{FIRST}-on-{onto}-seed{networks.seed}.pt"
    names = f"{FIRST} from block {SHARED} of {onto}", onto
    if not path.is_file():
        parent = networks.build(onto)
        assert isinstance(parent, Backbone)
        trunk_macs = networks.macs(Trunk(copy.deepcopy(parent), SHARED))
        second = networks.macs(parent) - trunk_macs
        whole = shown.logits(parent)
        first, _ = graft(parent, networks.build(FIRST), SHARED)
        trunk = nn.ModuleList([*(getattr(first, name) for name in first.stem_parts), *first.blocks[:SHARED]])
        trunk.requires_grad_(False)
        own = copy.deepcopy(trunk.state_dict())
        recalibrate(first, shown.sample(networks.seed, STATISTICS_IMAGES, BATCH))
        trunk.load_state_dict(own)

        def mode(net: nn.Module) -> None:
            net.train()
            trunk.eval()

        folder = networks.bench.work / f"trunk-{FIRST}-on-{onto}-seed{networks.seed}"
        networks.teach(first, EPOCHS, folder / f"{EPOCHS}.pt", answered, mode)
        logits = torch.stack([shown.logits(first), whole])
        save(path, {"logits": logits, "macs": [networks.macs(first), second]})
    found = torch.load(path, weights_only=True)
    first_member, second_member = (Member(*x) for x in zip(names, found["logits"], found["macs"], strict=True))
    return first_member, second_member
