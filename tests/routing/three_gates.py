"""A network of three gates, small enough to enumerate its routes, and its objective."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hybridprune.config import RoutingOptions
from hybridprune.data import Batch
from hybridprune.engine.distill import Distillation
from hybridprune.measure.cost import count
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.routing.loss import RoutingTerms
from hybridprune.routing.policy_gradient import PolicyGradient
from hybridprune.routing.price import Price
from tests.networks_and_images import random_images, random_net

SIZE, CLASSES = 8, 5


def three_gates(seed: int = 0) -> GatedNetwork:
    """Four blocks (two of them projecting), three gates that decide differently per image, in eval mode."""
    net = random_net(14, 4, CLASSES, seed=seed)
    net.backbone.blocks = nn.ModuleList(net.backbone.blocks[index] for index in (0, 2, 4, 5))
    small = GatedNetwork(net.backbone)
    for parameter in small.gate.parameters():
        nn.init.normal_(parameter, 0, 0.7)
    return small.eval()


def labelled(images: int) -> tuple[Tensor, Tensor]:
    """Random images and their labels."""
    return random_images(images, SIZE), torch.arange(images) % CLASSES


def objective(
    net: GatedNetwork, images: int, seed: int = 0, distillation: Distillation | None = None, **options: Any
) -> PolicyGradient:
    """The objective over an image set of this size."""
    cost = count(net, SIZE)
    options = {"rl_warmup": 0.0, **options}
    resolved = RoutingOptions(**options)
    price = Price(resolved.reward_scale, resolved.target_flops, resolved.price_step, torch.device("cpu"))
    terms = RoutingTerms.of(cost, resolved, price, torch.device("cpu"), distillation)
    return PolicyGradient(net, terms, images=images, seed=seed)


def batch_of(ids: Tensor, images: Tensor, labels: Tensor) -> Batch:
    """The images ``ids`` of an image set."""
    return Batch(images[ids], labels[ids], ids)
