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
    },
    elsewhere=TORCHVISION,
)
"""The one list of them, beside torchvision's; the models find them through it, which these options cannot import."""
