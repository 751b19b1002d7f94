"""Small networks with everything that troubles curvature code, and brute-force oracles for them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridprune.curvature.geometry import Geometry

GEOMETRIES = [
    Geometry(3, 1, 1),
    Geometry(1),
    Geometry(1, 2),
    Geometry(3, 2, 1),
    Geometry(3, 1, 0),
    Geometry(5, 1, 2),
    Geometry(3, 1, 2, 2),
    Geometry((3, 1), (1, 2), (1, 0)),
    Geometry((2, 3), (2, 1), (0, 2), (1, 2)),
    Geometry(7, 3, 3),
]


class Residual(nn.Module):
    """Block with in-place ReLU, in-place sum and strided projection; its branch can be masked per image."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c_in, 5, 3, stride, 1, bias=False), nn.BatchNorm2d(5)
        self.conv2, self.bn2 = nn.Conv2d(5, c_out, (3, 1), 1, (1, 0)), nn.BatchNorm2d(c_out)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))
        self.mask: Tensor | None = None
        self.execute: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.shortcut(x)
        if self.execute is not None:
            kept = self.execute.nonzero().flatten()
            return self.relu(y.index_add(0, kept, self.branch(x[kept])))
        branch = self.branch(x)
        if self.mask is not None:
            branch = branch * self.mask.view(-1, 1, 1, 1)
        y += branch
        return self.relu(y)

    def branch(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))


class ResidualNet(nn.Module):
    """Stem, two residual blocks and a classifier with 6 classes, for images ``[B, 3, 8, 7]``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.block1, self.block2 = Residual(4, 6, 2), Residual(6, 7, 1)
        self.classifier = nn.Linear(7, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.block2(self.block1(self.stem(x))).mean((2, 3)))


def residual_net(seed: int = 0) -> ResidualNet:
    """Return a double-precision `ResidualNet` in eval mode with random batch-norm statistics."""
    torch.manual_seed(seed)
    model = ResidualNet().double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_var, module.weight.data):
                assert values is not None
                values.uniform_(0.5, 1.5)
            for values in (module.running_mean, module.bias.data):
                assert values is not None
                values.normal_(0, 0.3)
    return model


def leaves(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}


def own_bases(layers: dict[str, nn.Module]) -> dict[str, tuple[Tensor, Tensor, Tensor | None]]:
    """The coordinates that the layers have anyway."""
    found: dict[str, tuple[Tensor, Tensor, Tensor | None]] = {}
    for name, layer in layers.items():
        weight = layer.get_parameter("weight")
        c_out, c_in = weight.shape[:2]
        found[name] = torch.eye(c_out).to(weight), torch.eye(c_in).to(weight), None
    return found


def random_batch(size: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 3, 8, 7, generator=generator, dtype=torch.float64)
    return images, torch.randint(6, (size,), generator=generator)


def per_image_gradients(
    forward: Callable[[Tensor], Tensor], weights: list[Tensor], images: Tensor, labels: Tensor
) -> list[Tensor]:
    """Return the gradients ``[B, *weight.shape]`` of each image's cross-entropy, image by image."""
    rows = [
        torch.autograd.grad(F.cross_entropy(forward(images[n : n + 1]), labels[n : n + 1]), weights)
        for n in range(len(images))
    ]
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def inputs_and_output_gradients(
    model: nn.Module, layer: nn.Module, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Return a layer's input and the gradient in its output of the *sum* of cross-entropies."""
    seen: list[Tensor] = []

    def store(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen.extend([args[0].detach().clone(), output])

    hook = layer.register_forward_hook(store)
    loss = F.cross_entropy(model(images), labels, reduction="sum")
    hook.remove()
    return seen[0], torch.autograd.grad(loss, seen[1])[0]


def unfolded(x: Tensor, geometry: Geometry) -> Tensor:
    """Return the input that each output position reads at each offset, ``[B, S, k^2, C]``."""
    kernel_size, stride, padding, dilation = geometry
    columns = F.unfold(x, kernel_size, dilation=dilation, padding=padding, stride=stride)
    return columns.unflatten(1, (x.shape[1], -1)).permute(0, 3, 2, 1)
