"""Imitation: a cut network learns the features of its parent, stage by stage from the bottom (Zhou et al. 2020).

A stage is a run of blocks of one resolution. Where the cut network has fewer channels at a stage's end, a pair of
linear maps stands there: ``up [C, c]`` to the parent's width, where features are compared, and ``down [c, C]`` back,
which the next stage reads. Afterwards the pair is merged with the layers that read it, which is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridprune.data import Batch
from hybridprune.engine.modes import kept_modes
from hybridprune.engine.objective import Pass
from hybridprune.engine.parallel import average
from hybridprune.errors import UserError
from hybridprune.models.backbone import Backbone
from hybridprune.precision import full_precision

PAIRS = "imitation_pairs"
"""Name of the pairs in a backbone that imitates."""
Features = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Stages:
    """A backbone as stages; the first has the stem."""

    backbone: Backbone
    ends: Sequence[int]
    """The number of each stage's last block."""

    def blocks(self, stage: int) -> list[nn.Module]:
        """The blocks of a stage."""
        first = self.ends[stage - 1] + 1 if stage else 0
        return list(self.backbone.blocks[first : self.ends[stage] + 1])

    def __call__(self, x: Tensor, stage: int) -> Tensor:
        """The features behind a stage, of those before it, or of images for the first one."""
        x = x if stage else self.backbone.stem(x)
        for block in self.blocks(stage):
            x = block(x)
        return x


class Pair(nn.Module):
    """Two linear maps of channels, without biases: ``x -> down (up x)``."""

    def __init__(self, up: Tensor, down: Tensor) -> None:
        super().__init__()
        assert up.shape == down.T.shape, (up.shape, down.shape)
        self.up, self.down = nn.Parameter(up), nn.Parameter(down)

    def forward(self, x: Tensor) -> Tensor:
        """Features ``[B, c, H, W]`` as the next stage reads them; nothing learns to go up."""
        return mixed(mixed(x, self.up.detach()), self.down)


def mixed(x: Tensor, matrix: Tensor) -> Tensor:
    """``matrix [m, c]`` times the channels of ``x [B, c, H, W]``."""
    return F.conv2d(x, matrix[..., None, None])


def stage_ends(backbone: Backbone, image: Tensor) -> list[int]:
    """The blocks behind which features have another resolution, and the last one; ``image [1, 3, H, W]``."""
    sizes = []
    with torch.no_grad(), kept_modes(backbone):
        x = backbone.eval().stem(image)
        for block in backbone.blocks:
            x = block(x)
            sizes.append(x.shape[2:])
    return [i for i, size in enumerate(sizes) if i + 1 == len(sizes) or sizes[i + 1] != size]


def check_imitation(backbone: nn.Module, image: Tensor, coupled: bool) -> None:
    """Raise UserError, in flags, for a network of which no cut could imitate it.

    ``coupled``: whether the cut may narrow the ends of stages.
    """
    if not isinstance(backbone, Backbone):
        raise UserError(
            "--cut_weights imitate: compares features behind residual blocks, and this network has none; give inherit"
        )
    if coupled:
        for end in stage_ends(backbone, image):
            readers_of(backbone, end)


@dataclass(frozen=True)
class Imitation:
    """The mean squared error between the features of a stage and the parent's, ``mean (up x - y)^2``.

    The stages are learnt one after another. Those below stay as they are, their BatchNorms at rest.
    """

    student: Stages
    teacher: Stages
    epochs: int
    """Of each stage."""
    precision: Callable[[Features], Features] = lambda run: run
    """Runs a pass in the precision of the training."""

    def __call__(self, forward: Pass, batch: Batch, passes: float) -> tuple[Tensor, dict[str, Tensor]]:
        del forward
        stage = min(int(passes) // self.epochs, len(self.student.ends) - 1)
        self.student.backbone.train(stage == 0)
        for block in self.student.blocks(stage):
            block.train()
        return self.error(batch.images, stage), {}

    def error(self, images: Tensor, stage: int) -> Tensor:
        """The error of a stage (0-d), in the modes that the network is in."""
        with torch.no_grad():
            y = self.precision(lambda x: self._parent(x, stage))(images)
        return F.mse_loss(self.precision(lambda x: self._raised(x, stage))(images).float(), y.float())

    @full_precision()
    def validate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """The error of each stage, by name; all processes give their shares of the images."""
        errors: list[Tensor] = []
        backbone = self.student.backbone
        with torch.no_grad(), kept_modes(backbone):
            backbone.eval()
            for batch in batches:
                mean = torch.stack([self.error(batch.images, stage) for stage in range(len(self.student.ends))])
                errors.append(torch.cat([mean, mean.new_ones(1)]).double() * len(batch.images))
        start = torch.zeros(len(self.student.ends) + 1, dtype=torch.float64, device=next(backbone.parameters()).device)
        total = sum(errors, start=start)
        average([total])
        means = (total[:-1] / total[-1]).tolist()
        return {f"imitation_{number}": mean for number, mean in enumerate(means, start=1)}

    def answer(self, images: Tensor) -> Tensor:
        """Logits ``[B, classes]`` of the network with its pairs."""
        x = images
        for stage in range(len(self.student.ends)):
            x = self._joined(self.student(x, stage), stage)
        return self.student.backbone.head(x)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        del state

    def _pair(self, stage: int) -> Pair | None:
        pairs, name = getattr(self.student.backbone, PAIRS), str(self.student.ends[stage])
        return cast(Pair, pairs[name]) if name in pairs else None

    def _joined(self, x: Tensor, stage: int) -> Tensor:
        """What the next stage reads of the features behind this one."""
        pair = self._pair(stage)
        return x if pair is None else pair(x)

    def _raised(self, x: Tensor, stage: int) -> Tensor:
        """Features of images as wide as the parent's; they depend on this stage, what it reads by, and ``up``."""
        with torch.no_grad():
            for each in range(stage):
                x = self.student(x if each == 0 else self._joined(x, each - 1), each)
        x = self.student(self._joined(x, stage - 1) if stage else x, stage)
        pair = self._pair(stage)
        return x if pair is None else mixed(x, pair.up)

    def _parent(self, x: Tensor, stage: int) -> Tensor:
        for each in range(stage + 1):
            x = self.teacher(x, each)
        return x


@torch.no_grad()
@full_precision()
def add_pairs(student: Stages, teacher: Stages, sample: Iterable[Batch], fitted: bool = True) -> None:
    """Put a pair behind each stage whose end is narrower than the parent's, in place.

    ``up`` is the least-squares map from the features of the ``sample`` to the parent's, ``down`` its pseudo-inverse:
    the network computes what it did. Not ``fitted``, both are 0: a network whose weights are still to be loaded has no
    features. Raises UserError where a pair could not be merged.
    """
    moments: dict[int, list[Tensor]] = {}
    with kept_modes(student.backbone):
        student.backbone.eval()
        for batch in sample:
            x = y = batch.images
            for stage, end in enumerate(student.ends):
                x, y = student(x, stage), teacher(y, stage)
                if x.shape != y.shape:
                    a, b = (each.movedim(1, -1).flatten(0, -2).double().cpu() for each in (x, y))
                    known = moments.setdefault(end, [a.new_zeros(()), a.new_zeros(())])
                    moments[end] = [known[0] + a.T @ a, known[1] + b.T @ a]
    pairs = nn.ModuleDict()
    for end, (own, cross) in moments.items():
        readers_of(student.backbone, end)
        up = cross @ torch.linalg.pinv(own, hermitian=True) if fitted else torch.zeros_like(cross)
        like = next(student.backbone.parameters())
        pairs[str(end)] = Pair(up.to(like), torch.linalg.pinv(up).to(like))
    setattr(student.backbone, PAIRS, pairs)


@torch.no_grad()
def merge_pairs(backbone: Backbone) -> None:
    """Remove the pairs, in place: each reader's kernels ``W`` become ``W (down up)``, and the outputs stay the same."""
    for end, pair in cast(nn.ModuleDict, getattr(backbone, PAIRS)).items():
        assert isinstance(pair, Pair)
        joint = pair.down.double() @ pair.up.double()
        for reader in readers_of(backbone, int(end)):
            merged = torch.einsum("oi...,ij->oj...", reader.weight.double(), joint)
            reader.weight.copy_(merged.to(reader.weight.dtype))
    delattr(backbone, PAIRS)


def readers_of(backbone: Backbone, block: int) -> list[nn.Conv2d | nn.Linear]:
    """The layers that read the features behind a block, linear in them; UserError, in flags, where others do."""
    names = backbone.linear_readers(block)
    layers = [backbone.get_submodule(name) for name in names or ()]
    plain = [layer for layer in layers if isinstance(layer, nn.Conv2d | nn.Linear) and getattr(layer, "groups", 1) == 1]
    if not layers or len(plain) < len(layers):
        raise UserError(
            f"--cut_weights imitate: what reads the features behind block {block} is no plain convolution, so that a "
            "narrower stage cannot be compared with its parent; give inherit, or leave out --use_out_dependencies"
        )
    return plain
