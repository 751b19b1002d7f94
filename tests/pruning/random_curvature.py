"""Random curvature, spaces with random scores, and the materialised Fisher."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hybridprune.batch import Batch
from hybridprune.curvature import CROSS_ENTROPY, LayerFactors, Likelihood, SecondMoments
from hybridprune.measure.cost import count, count_module
from hybridprune.models.edits import FactorEdit
from hybridprune.models.factored import DENSE, Ranks
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.models.spec import NetworkSpec
from hybridprune.pruning.budget.space import Cost, Space, pick
from hybridprune.pruning.directions.decomposition import Decomposition
from hybridprune.pruning.directions.layer_forms import ConvShape
from hybridprune.pruning.directions.layers import PrunableLayer, prunable_layers
from hybridprune.pruning.directions.space import DirectionCell, direction_space
from hybridprune.pruning.method import DirectionMethod
from hybridprune.pruning.methods import eigendamage, fisher_tucker

SIZE = 8
TINY = 1e-36
"""Damping that is below every tolerance here, also when it is split between two or three factors."""
DIRECTION_METHODS: Mapping[str, DirectionMethod] = {
    "fisher-tucker": fisher_tucker.METHOD,
    "eigendamage": eigendamage.METHOD,
}


@dataclasses.dataclass(frozen=True)
class PlainNetwork:
    """A `PrunableNetwork` without images: any module, all of it."""

    model: nn.Module
    example: Tensor
    exclude: tuple[str, ...] = ()
    channels: Mapping[str, int] = dataclasses.field(default_factory=dict)
    seed: int = 0
    shared: bool = False
    measurements: None = None
    likelihood: Likelihood = CROSS_ENTROPY

    @property
    def cost(self) -> Cost:
        """Of the module as it is now."""
        return self.measure(self.model)

    def logits(self, images: Tensor) -> Tensor:
        """Its output."""
        return self.model(images)

    def run(self, model: nn.Module, images: Tensor) -> Tensor:
        """Its output."""
        return model(images)

    def sample(self, images: int, purpose: str) -> Iterable[Batch]:
        """None."""
        del images, purpose
        return []

    def judge(self, model: nn.Module) -> float:
        """Not judged."""
        raise AssertionError(model)

    def measure(self, model: nn.Module) -> Cost:
        """All of it."""
        return Cost(*count_module(model, self.example))

    def counts(self, name: str) -> bool:
        """Every layer does."""
        del name
        return True


def source(seed: int) -> torch.Generator:
    """A generator of this seed."""
    return torch.Generator().manual_seed(seed)


def random_weight(c_out: int, c_in: int, kernel: int, seed: int = 0) -> Tensor:
    """Normal noise ``[c_out, c_in, kernel, kernel]`` in double precision."""
    return torch.randn(c_out, c_in, kernel, kernel, generator=source(seed), dtype=torch.float64)


def random_factor(size: int, rank: int, seed: int) -> Tensor:
    """A random positive semi-definite matrix ``[size, size]`` of the given rank, in double precision."""
    root = torch.randn(size, rank, generator=source(seed), dtype=torch.float64)
    return root @ root.T


def random_curvature(weight: Tensor, seed: int, offsets: bool = False) -> tuple[LayerFactors, SecondMoments]:
    """Well-conditioned factors of a layer, and a trace and entries that do not follow from them."""
    (c_out, c_in), area = weight.shape[:2], weight[0, 0].numel()
    k = random_factor(area, area + 3, seed + 3)
    factors = LayerFactors(
        input_factor=random_factor(c_in, c_in + 3, seed),
        gradient_factor=random_factor(c_out, c_out + 3, seed + 1),
        positions=5,
        input_mean=torch.zeros(c_in, dtype=torch.float64),
        offset_factor=k * (area / k.trace()) if offsets else None,
    )
    entries = torch.rand(weight.shape, generator=source(seed + 2), dtype=torch.float64)
    return factors, SecondMoments(float(entries.sum()), entries)


def fisher(factors: LayerFactors, kernel_area: int) -> Tensor:
    """The Kronecker approximation as a matrix on ``weight.flatten()``."""
    a, g, k = factors.input_factor, factors.gradient_factor, factors.offset_factor
    if k is None:  # offsets are independent and alike
        k = torch.eye(kernel_area, dtype=a.dtype)
    matrix = torch.einsum("op,ij,kl->oikpjl", g, a, k)
    return factors.positions * matrix.reshape((len(g) * len(a) * kernel_area,) * 2)


def random_decompositions(
    layers: Sequence[PrunableLayer],
    method: str = "fisher-tucker",
    damping: float = 1e-4,
    seed: int = 0,
    offsets: bool = False,
) -> dict[str, Decomposition]:
    """Decompositions of the layers as they are now, by random curvature."""
    return {
        layer.name: DIRECTION_METHODS[method].decompose(
            layer.weight, *random_curvature(layer.weight, seed + 10 * number, offsets), damping
        )
        for number, layer in enumerate(layers)
    }


def valued(importance: Tensor) -> Decomposition:
    """A decomposition of which nothing but its scores is known: its directions are put in their order."""
    importance = importance[importance.sum(1).argsort(descending=True, stable=True)]
    importance = importance[:, importance.sum(0).argsort(descending=True, stable=True)]
    nothing = torch.empty(0)
    return Decomposition(nothing, nothing, nothing, nothing, nothing, importance)


def random_importance(c_out: int, c_in: int, draw: torch.Generator) -> Tensor:
    """Pairs of directions ``[c_out, c_in]`` whose worth falls over a few orders of magnitude, as in real layers."""
    sides = [torch.exp(-4 * torch.rand(side, generator=draw, dtype=torch.float64)) for side in (c_out, c_in)]
    return torch.outer(*sides) * torch.rand(c_out, c_in, generator=draw, dtype=torch.float64)


def layers_of(net: GatedNetwork, size: int = SIZE) -> list[PrunableLayer]:
    """The layers of a gated network that can be cut, classifier included."""
    example = torch.zeros(1, 3, size, size, device=next(net.parameters()).device)
    return prunable_layers(net, lambda: net.backbone(example))


def cost_of(net: GatedNetwork, size: int = SIZE) -> Cost:
    """The backbone's cost."""
    cost = count(net, size)
    return Cost(cost.backbone_macs, cost.backbone_params)


def space_of(
    layers: Sequence[PrunableLayer], decompositions: Mapping[str, Decomposition], whole: Cost, **options: Any
) -> Space:
    """``direction_space`` with the usual options."""
    return direction_space(
        layers, decompositions, whole, **{"limit": 0.9, "normalize": False, "allow_increase": False, **options}
    )


@functools.cache
def _resnet(depth: int, width: int, edits: tuple[FactorEdit, ...]) -> tuple[list[PrunableLayer], Cost]:
    """Layers and cost of a gated ResNet without values."""
    with torch.device("meta"):
        net = NetworkSpec("resnet", depth, width, 10, edits).build()
    return layers_of(net), cost_of(net)


def random_space(
    depth: int = 8, width: int = 8, edits: tuple[FactorEdit, ...] = (), seed: int = 0, **options: Any
) -> Space:
    """The space of a gated ResNet with random scores."""
    (layers, whole), draw = _resnet(depth, width, edits), source(seed)
    importances = {
        layer.name: valued(random_importance(layer.weight.shape[0], layer.weight.shape[1], draw)) for layer in layers
    }
    return space_of(layers, importances, whole, **options)


def toy_layer(name: str, shape: ConvShape, form: Ranks = DENSE) -> PrunableLayer:
    """A layer of which nothing but its geometry matters."""
    rank_in, rank_out, _ = form
    leaf = nn.Conv2d(
        shape.in_channels if rank_in is None else rank_in,
        shape.out_channels if rank_out is None else rank_out,
        1,
        device="meta",
    )
    return PrunableLayer(name, leaf, shape, form, None, None, None, (1, 1))


def toy_space(shapes: Mapping[str, ConvShape], importances: Mapping[str, Tensor], **options: Any) -> Space:
    """The space of some dense layers and nothing else."""
    layers = [toy_layer(name, shape) for name, shape in shapes.items()]
    whole = Cost(sum(s.macs(DENSE) for s in shapes.values()), sum(s.params(DENSE) for s in shapes.values()))
    return space_of(layers, {name: valued(values) for name, values in importances.items()}, whole, **options)


def cells(space: Space) -> list[DirectionCell]:
    """The space's layers."""
    found = [cell for cell in space.cells if isinstance(cell, DirectionCell)]
    assert len(found) == len(space.cells)
    return found


def forms(space: Space, kept: Sequence[int]) -> dict[str, Ranks]:
    """What each layer becomes."""
    return {cell.name: cell.ranks(pick(cell, kept)) for cell in cells(space)}


def expected_loss(space: Space, kept: Sequence[int]) -> float:
    """What the quadratic model says that the layers' new forms cost; a side without a rotation loses nothing."""
    total = 0.0
    for cell in cells(space):
        ranks = cell.ranks(pick(cell, kept))
        if ranks.separable:
            assert cell.separation is not None and ranks.rank_in is not None
            total += float(cell.separation.losses[ranks.rank_in])
            continue
        left_in = cell.full[0] if ranks.rank_in is None else ranks.rank_in
        left_out = cell.full[1] if ranks.rank_out is None else ranks.rank_out
        total += float(cell.losses[left_out, left_in])
    return total


def replaced(decomposition: Decomposition, **fields: Tensor) -> Decomposition:
    """The same with other fields, as a mistake would leave it."""
    return dataclasses.replace(decomposition, **fields)
