"""Networks whose training matters: hooks, auxiliary heads, checkpointing, frozen parts, calls that differ."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.foreign.network import CLASSES, Net


def plain(*, width: int = 16) -> nn.Sequential:
    """Three convolutions with norms, and a classifier."""
    layers: list[nn.Module] = []
    for narrow, wide in ((3, width), (width, width), (width, width)):
        layers += [nn.Conv2d(narrow, wide, 3, padding=1), nn.BatchNorm2d(wide), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES))


def scaled(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """A forward hook that changes what its module gives."""
    return output * 1.5


def hooked() -> nn.Module:
    """Hooks of every kind on its layers, as those who watch activations and clip gradients have."""
    model = plain()
    model[0].register_forward_hook(scaled)
    model[3].register_forward_pre_hook(lambda module, args: (args[0].clamp(-2, 2),))
    model[6].register_full_backward_hook(lambda module, inputs, outputs: None)
    model.get_parameter("3.weight").register_hook(lambda grad: grad.clamp(-1, 1))
    return model


class Auxiliary(nn.Module):
    """A small GoogLeNet: a second head that runs in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.left, self.right = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 3, padding=1)
        self.aux = nn.Sequential(nn.Conv2d(16, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.aux_head = nn.Linear(4, CLASSES)
        self.last, self.head = nn.Conv2d(16, 24, 3, padding=1), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        x = F.relu(torch.cat([self.left(x), self.right(x)], 1))
        main = self.head(F.relu(self.last(x)).mean((2, 3)))
        return (main, self.aux_head(self.aux(x).mean((2, 3)))) if self.training else main


def main_and_half_of_aux(output: Any, batch: Any) -> Tensor:
    """GoogLeNet's loss."""
    if not isinstance(output, tuple):
        return F.cross_entropy(output, batch[1])
    return F.cross_entropy(output[0], batch[1]) + 0.5 * F.cross_entropy(output[1], batch[1])


class Checkpointed(nn.Module):
    """Computes its middle again in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.stem, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, CLASSES)
        self.middle = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(self.middle, self.stem(x), use_reentrant=self.reentrant)
        return self.head(x.mean((2, 3)))


class FixedFeatures(nn.Module):
    """A backbone under ``torch.no_grad()``, and a head that learns."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 4, 3, padding=1))
        wide = [nn.Linear(576, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()]
        self.head = nn.Sequential(*wide, nn.Linear(256, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.backbone(x)
        return self.head(x.flatten(1))


def frozen_backbone() -> nn.Module:
    """Only the last two layers are trained."""
    model = plain()
    model[:6].requires_grad_(False)
    return model


class FrozenNorms(nn.Module):
    """Keeps its BatchNorms in eval mode whatever is asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = plain()
        self.train()

    def train(self, mode: bool = True) -> FrozenNorms:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.training = False
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Greedy(nn.Module):
    """Changes its input in place, as those do who save memory."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = plain()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.sub_(0.1))


class LayerDrop(nn.Module):
    """Leaves blocks out at random in training, and by what it sees in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 16, 3, padding=1)) for _ in range(3)
        )
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            if not self.training or torch.rand(()) > 0.5:
                x = x + block(F.relu(x))
        return self.head(F.relu(x).mean((2, 3)))


class Stateful(nn.Module):
    """Buffers that change in forward, extra state, and a buffer that is not saved."""

    seen: Tensor
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layers = plain()
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.1), persistent=False)
        self.note: dict[str, float] = {"temperature": 1.0}

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.note["temperature"])

    def set_extra_state(self, state: Any) -> None:
        self.note = {"temperature": float(state)}

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen = self.seen + len(x)
        return self.layers(x - self.mean) / self.note["temperature"]


class Stubs(nn.Module):
    """Prepared for quantisation, as torchvision's quantisable networks are."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()
        self.layers = plain()

    def forward(self, x: Tensor) -> Tensor:
        return self.dequant(self.layers(self.quant(x)))


def lazy() -> nn.Module:
    """Layers that learn their input channels from the first batch, or from the weights that are loaded."""
    return nn.Sequential(
        nn.LazyConv2d(12, 3, padding=1),
        nn.LazyBatchNorm2d(),
        nn.ReLU(),
        nn.LazyConv2d(16, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LazyLinear(CLASSES),
    )


NETS = {
    "hooks": Net(hooked),
    "auxiliary head": Net(Auxiliary, loss=main_and_half_of_aux),
    "checkpointing": Net(lambda: Checkpointed(reentrant=False)),
    "reentrant checkpointing": Net(lambda: Checkpointed(reentrant=True)),
    "features without gradient": Net(FixedFeatures, alone=("backbone",)),
    "frozen backbone": Net(frozen_backbone),
    "frozen norms": Net(FrozenNorms),
    "changes its input": Net(Greedy),
    "layer drop": Net(LayerDrop),
    "state of its own": Net(Stateful),
    "quantisation stubs": Net(Stubs),
    "lazy layers": Net(lazy),
}
