"""The networks by name, and where each stands."""

from __future__ import annotations

from hybridprune.config.registry import Registry

TORCHVISION = "torchvision"
"""``torchvision:NAME`` is that classifier of torchvision's."""
CASCADE = "cascade"
"""The network of a run that joins the networks of others."""

NETWORKS = Registry(
    group="hybridprune.networks",
    built_in={
        "resnet": "hybridprune.models.resnet:ResNet",
        "preresnet": "hybridprune.models.preresnet:PreResNet",
        "pyramidnet": "hybridprune.models.pyramidnet:PyramidNet",
        "vgg": "hybridprune.models.vgg:VGG",
        "resnet18-gated": "hybridprune.models.imagenet_resnet:resnet18",
        "resnet34-gated": "hybridprune.models.imagenet_resnet:resnet34",
        "resnet50-gated": "hybridprune.models.imagenet_resnet:resnet50",
        "resnet101-gated": "hybridprune.models.imagenet_resnet:resnet101",
        "resnet152-gated": "hybridprune.models.imagenet_resnet:resnet152",
    },
    elsewhere=TORCHVISION,
)
"""The one list of them, beside torchvision's; the models find them through it, which these options cannot import."""
