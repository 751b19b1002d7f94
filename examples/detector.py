"""A detector of torchvision, pruned by the losses of its whole task, saved, restored, and with its backbone deployed.

    python examples/detector.py ssdlite 320 0.7

Weights are random and boxes synthetic: it shows that the way is open, not what it is worth.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.ops.misc import FrozenBatchNorm2d

import hybridprune
from hybridprune.config import CurvatureOptions
from hybridprune.errors import run_command

BUILD = {
    "ssdlite": detection.ssdlite320_mobilenet_v3_large,
    "fasterrcnn": detection.fasterrcnn_mobilenet_v3_large_320_fpn,
    "retinanet": detection.retinanet_resnet50_fpn,
}
REGIONS = 16
"""That the second stage of Faster R-CNN is trained on, of each picture."""


def detector(name: str, size: int, frozen: bool = False) -> nn.Module:
    """A detector of three classes with random weights, for pictures of this size.

    ``frozen``: with constant BatchNorms in its backbone, as those that start from trained weights have.
    """
    net = BUILD[name](weights=None, weights_backbone=None, num_classes=3)
    net.transform.fixed_size = (size, size)
    if name == "fasterrcnn":
        # As many regions as there are in any case: else the head's work would depend on what is found.
        net.roi_heads.fg_bg_sampler.batch_size_per_image = REGIONS
    if frozen:
        freeze_norms(net.backbone)
    return net.eval()


def freeze_norms(module: nn.Module) -> None:
    """Make every BatchNorm constant, in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            constant = FrozenBatchNorm2d(child.num_features, child.eps)
            constant.load_state_dict(child.state_dict())
            setattr(module, name, constant)
        else:
            freeze_norms(child)


def losses(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """The dictionary of losses, which torchvision's detectors give in training mode; BatchNorm and dropout stand still.

    In training (fine-tuning), these two are in the mode that they are found in.
    """
    modes = {module: module.training for module in model.modules()}
    for module in modes:
        module.training |= not isinstance(module, nn.BatchNorm2d | nn.Dropout)
    try:
        return model(*batch)
    finally:
        for module, mode in modes.items():
            module.training = mode


def whole_task(output: dict[str, Tensor], batch: Any) -> Tensor:
    """The sum of all losses: of boxes, of classes and of whatever else the detector has."""
    return torch.stack(list(output.values())).sum()


def scenes(size: int, images: int = 2) -> list[Any]:
    """One batch of pictures with a box each."""
    corner = torch.tensor([[0.1, 0.1, 0.7, 0.8]]) * size
    targets = [{"boxes": corner.clone(), "labels": torch.tensor([1 + n % 2])} for n in range(images)]
    return [([torch.rand(3, size, size) for _ in range(images)], targets)]


class Flat(nn.Module):
    """A backbone that gives its maps in one tensor ``[B, n]``, as `hybridprune.deploy` takes it."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([each.flatten(1) for each in self.backbone(x).values()], 1)


class Maps(nn.Module):
    """The maps again, for a detector; its pictures have the size of ``example``."""

    def __init__(self, flat: nn.Module, like: dict[str, Tensor]) -> None:
        super().__init__()
        self.flat, self.shapes = flat, {name: each.shape[1:] for name, each in like.items()}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        parts = self.flat(x).split([shape.numel() for shape in self.shapes.values()], 1)
        named = zip(self.shapes.items(), parts, strict=True)
        return OrderedDict((name, part.unflatten(1, shape)) for (name, shape), part in named)


@torch.no_grad()
def deploy_backbone(net: Any, size: int) -> nn.Module:
    """The deployed backbone of a detector, in whose place it may stand."""
    image = torch.rand(1, 3, size, size)
    return Maps(hybridprune.deploy(Flat(net.backbone), image, progress=False).module, net.backbone(image))


def main(name: str, size: int, method: str = "saliency", frozen: bool = False, share: float = 0.7) -> dict[str, float]:
    """Prune to a share of the FLOPs, save, restore and deploy; what came of it.

    The share, the number of edits, how many numbers of the restored detector's outputs differ, and how far the deployed
    backbone's maps are apart from its own (relative, largest).
    """
    torch.manual_seed(0)
    net, loader, few = detector(name, size, frozen), scenes(size), CurvatureOptions(curvature_images=2, moment_images=2)
    pruned = hybridprune.prune(
        net, loader, target_flops=share, method=method, forward=losses, loss=whole_task, curvature=few, progress=False
    )
    with tempfile.TemporaryDirectory() as folder:
        hybridprune.save(pruned, folder)
        restored: Any = hybridprune.restore(folder, into=detector(name, size, frozen))
    pictures = loader[0][0]
    with torch.no_grad():
        before, after = pruned.module(pictures), restored(pictures)
        maps = restored.backbone(torch.stack(pictures))
        restored.backbone = deploy_backbone(restored, size)
        deployed = restored.backbone(torch.stack(pictures))
        restored(pictures)
    return {
        "flops": pruned.spec.macs / pruned.spec.dense_macs,
        "edits": len(pruned.spec.edits),
        "restored": max(float((a[key] != b[key]).sum()) for a, b in zip(before, after, strict=True) for key in a),
        "deployed": max(float((deployed[k] - maps[k]).abs().max() / maps[k].abs().max()) for k in maps),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Prune a detector of torchvision by the losses of its whole task.")
    parser.add_argument("name", choices=BUILD, help="the detector")
    parser.add_argument("size", type=int, help="height and width of its pictures, e.g. 320")
    parser.add_argument("share", type=float, help="of the FLOPs that may be left, e.g. 0.7")
    given = parser.parse_args()
    sys.exit(run_command(lambda: print(main(given.name, given.size, share=given.share))))
