"""The directions of all layers as a space to be cut, and what each layer's form is at given ranks (pure)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hybridprune.models.factored import Ranks
from hybridprune.progress_bar import Steps
from hybridprune.pruning.budget.space import Budget, Cost, Space, UnitSet, least_kept
from hybridprune.pruning.clock import DirectionTimes, NetworkTimes
from hybridprune.pruning.directions.decomposition import Decomposition
from hybridprune.pruning.directions.layer_forms import ConvShape
from hybridprune.pruning.directions.layers import PrunableLayer
from hybridprune.pruning.directions.separation import Separation, most_components, separation

MOST_STEPS = 512
"""Numbers of directions that are compared on each side of a layer: all pairs of them are in memory."""


@dataclass(frozen=True)
class FormPrice:
    """Weights by which a form's MACs, parameters and nanoseconds are one price.

    Without a clock MACs alone decide. With one, what is bounded does, each as a share of its bound: a form that is fast
    and spends the FLOPs of another bound would put this one out of reach.
    """

    macs: float = 1.0
    params: float = 0.0
    ns: float = 0.0

    @staticmethod
    def of_budget(budget: Budget | None) -> FormPrice:
        """The price of forms under this budget."""
        if budget is None or budget.ns is None:
            return FormPrice()
        return FormPrice(*(0.0 if bound is None else 1.0 / bound for bound in budget.bounds))

    def of(self, cost: Cost) -> float:
        """The price of one form."""
        return self.macs * cost.macs + self.params * cost.params + self.ns * cost.ns

    def of_many(self, macs: Tensor, params: Tensor, ns: Tensor) -> Tensor:
        """The prices of forms ``[M]``, in double precision: to the bit those that `of` gives."""
        return self.macs * macs.double() + self.params * params.double() + self.ns * ns.double()


@dataclass(frozen=True)
class DirectionCell:
    """One layer: the numbers of directions kept decide its form, and the form its cost.

    A layer that may become separable has a third number, of the components that it is a sum of; all of them mean that
    it is none, and has the form that the directions say.
    """

    name: str
    sets: tuple[int, ...]
    """Of the input and the output side, and of the components, if there are."""
    shape: ConvShape
    form: Ranks
    """The form it has now, with all of its directions."""
    full: tuple[int, int]
    """Input and output directions it has now."""
    least: tuple[int, int]
    losses: Tensor
    """``[out directions + 1, in directions + 1]``"""
    allow_increase: bool
    """Whether the layer's parameters may grow."""
    multiple: int = 1
    """Ranks are multiples of it; what is kept is rounded up, at most to all that there is."""
    separation: Separation | None = None
    times: DirectionTimes | None = None
    """Of its forms; without them no form takes any time."""
    price: FormPrice = FormPrice()
    """By which one form of the same directions is cheaper than another."""

    def ranks(self, kept: tuple[int, ...]) -> Ranks:
        """The cheapest form that keeps at least these directions; an uncut layer keeps the form it has."""
        if self.separation is not None and kept[2] < self.separation.everything:
            number = math.ceil(kept[2] / self.multiple) * self.multiple
            return Ranks(number, number, separable=True)
        kept = tuple(self._rounded(k, full) for k, full in zip(kept[:2], self.full, strict=True))
        if kept == self.full:
            return self.form
        wanted = Ranks(
            None if kept[0] == self.shape.in_channels else kept[0],
            None if kept[1] == self.shape.out_channels else kept[1],
        )
        found = self.shape.cheapest(wanted, None if self.allow_increase else self.shape.params(self.form), self._dear)
        if found is None:
            return self.form
        # Of a separable layer all directions are there, and cheap.
        return found if not self.form.separable or self._dear(found) < self._dear(self.form) else self.form

    def cost(self, kept: tuple[int, ...]) -> Cost:
        """The form's cost."""
        return self.form_cost(self.ranks(kept))

    def form_cost(self, ranks: Ranks) -> Cost:
        """The cost of the layer with these ranks, whatever is kept."""
        ns = 0 if self.times is None else int(self.times.of(ranks))
        return Cost(self.shape.macs(ranks), self.shape.params(ranks), ns)

    def relaxed_macs(self, kept: tuple[int, ...]) -> float:
        """MACs of the two-sided form."""
        return self.shape.macs(Ranks(kept[0], kept[1]))

    def loss(self, kept: tuple[int, ...]) -> float:
        """The expected rise of the loss in the form that ``ranks`` says."""
        ranks = self.ranks(kept)
        if ranks.separable and ranks != self.form:
            assert self.separation is not None and ranks.rank_in is not None
            return float(self.separation.losses[ranks.rank_in])
        sides = (ranks.rank_in, ranks.rank_out) if ranks != self.form else self.full
        rank_in, rank_out = (full if r is None else r for r, full in zip(sides, self.full, strict=True))
        return float(self.losses[rank_out, rank_in])

    def choices(self) -> Choices:
        """All forms of the layer, one for each pair of numbers of directions, that cost less than it does now."""
        now = self.form_cost(self.form)
        (full_in, full_out), (least_in, least_out) = self.full, self.least
        sides = (self._steps(least_in, full_in), self._steps(least_out, full_out))
        grid = torch.meshgrid(*sides, indexing="ij")
        kept = grid[0].flatten(), grid[1].flatten()
        forms: list[Choices] = []
        squares: list[Tensor] = []
        for rotate_in, rotate_out in itertools.product((False, True), repeat=2):
            ranks = Ranks(kept[0] if rotate_in else None, kept[1] if rotate_out else None)  # type: ignore[arg-type]
            macs, params, ns = (each.expand_as(kept[0]) for each in self._costs(ranks))
            # A side that ends without a rotation keeps all that there is of it.
            left_in = kept[0] if rotate_in else torch.full_like(kept[0], full_in)
            left_out = kept[1] if rotate_out else torch.full_like(kept[1], full_out)
            whole = torch.full_like(left_in, self._everything)
            forms.append(Choices(left_in, left_out, macs, params, self.losses[left_out, left_in], whole, ns))
            # A square rotation is none: ``ranks`` does not know it, and a clock might like it.
            squares.append(
                (kept[0] == self.shape.in_channels) & rotate_in | (kept[1] == self.shape.out_channels) & rotate_out
            )
        table = Choices(*(torch.stack(columns) for columns in zip(*(f.columns() for f in forms), strict=True)))
        allowed = ((table.params <= now.params) | self.allow_increase) & ~torch.stack(squares)
        dear = self.price.of_many(*table.costs)
        # The first of equals: as in ``ConvShape.cheapest``, that with fewer rotations.
        cheapest = torch.where(allowed, dear, torch.inf).argmin(0)
        best = table.at((cheapest, torch.arange(len(cheapest))))
        cut = (best.kept_in < full_in) | (best.kept_out < full_out)
        cheaper = self.price.of_many(*best.costs) < self.price.of(now)
        found = [Choices.single((*self.full, self._everything), now), best.at(cut & cheaper)]
        return Choices.joined([*found, *self._separable_choices()])

    def _separable_choices(self) -> list[Choices]:
        if self.separation is None:
            return []
        numbers = torch.arange(self.separation.least, self.separation.everything)
        numbers = numbers[numbers % self.multiple == 0]
        ranks = Ranks(numbers, numbers, separable=True)  # type: ignore[arg-type]
        macs, params, ns = (each.expand_as(numbers) for each in self._costs(ranks))
        full_in, full_out = (torch.full_like(numbers, full) for full in self.full)
        return [Choices(full_in, full_out, macs, params, self.separation.losses[numbers], numbers, ns)]

    def _costs(self, ranks: Ranks) -> tuple[Tensor, Tensor, Tensor]:
        """MACs, parameters and nanoseconds of a form, of many ranks at once."""
        ns = torch.zeros((), dtype=torch.int64) if self.times is None else self.times.of(ranks)
        return torch.as_tensor(self.shape.macs(ranks)), torch.as_tensor(self.shape.params(ranks)), ns

    def _dear(self, ranks: Ranks) -> float:
        return self.price.of(self.form_cost(ranks))

    @property
    def _everything(self) -> int:
        """The number of components that means none."""
        return 0 if self.separation is None else self.separation.everything

    def _rounded(self, kept: int, full: int) -> int:
        return min(math.ceil(kept / self.multiple) * self.multiple, full)

    def _steps(self, least: int, full: int) -> Tensor:
        """The numbers of directions that one side may keep; of a wide layer some of them, from the least to all."""
        numbers = torch.tensor(sorted({self._rounded(kept, full) for kept in range(least, full + 1)}))
        places = torch.linspace(0, len(numbers) - 1, min(len(numbers), MOST_STEPS), dtype=torch.float64)
        return numbers[places.round().long()]


@dataclass(frozen=True)
class Choices:
    """Forms that a layer may take: kept units, cost and expected rise of the loss of each, ``[M]``."""

    kept_in: Tensor
    kept_out: Tensor
    macs: Tensor
    params: Tensor
    loss: Tensor
    components: Tensor
    ns: Tensor

    @property
    def costs(self) -> tuple[Tensor, Tensor, Tensor]:
        """The columns of a `Cost`, in its order."""
        return self.macs, self.params, self.ns

    @staticmethod
    def single(kept: tuple[int, int, int], cost: Cost) -> Choices:
        """A layer that stays as it is."""
        kept_in, kept_out, components, macs, params, ns = (torch.tensor([value]) for value in (*kept, *cost))
        return Choices(kept_in, kept_out, macs, params, torch.zeros(1, dtype=torch.float64), components, ns)

    @staticmethod
    def joined(parts: Sequence[Choices]) -> Choices:
        """All of them, in order."""
        return Choices(*(torch.cat(columns) for columns in zip(*(p.columns() for p in parts), strict=True)))

    def kept(self, choice: int) -> tuple[int, int, int]:
        """The units that one of them keeps, in the order of its cell's sets, of which there may be fewer."""
        return int(self.kept_in[choice]), int(self.kept_out[choice]), int(self.components[choice])

    def columns(self) -> tuple[Tensor, ...]:
        """The fields, in order."""
        return self.kept_in, self.kept_out, self.macs, self.params, self.loss, self.components, self.ns

    def at(self, index: Tensor | tuple[Tensor, ...]) -> Choices:
        """The choices at a mask or at places."""
        return Choices(*(column[index] for column in self.columns()))


def direction_space(
    layers: Sequence[PrunableLayer],
    decompositions: Mapping[str, Decomposition],
    whole: Cost,
    *,
    limit: float,
    normalize: bool,
    allow_increase: bool,
    multiple: int = 1,
    separable: int = 0,
    times: NetworkTimes[DirectionTimes] | None = None,
    price: FormPrice | None = None,
) -> Space:
    """The space of all directions; ``whole`` is the present network's cost.

    No side loses more than the share ``limit`` of its channels. ``normalize`` scales each layer's scores to sum 1.
    Ranks are multiples of ``multiple``, or all. Layers of at most so many weights as ``separable`` may also become sums
    of components (which takes its time: some numbers of them are tried), for an allocation that compares forms. With
    ``times`` the cost has nanoseconds: those of the whole network, of which the layers' are taken away as its MACs are,
    so that what else takes time is in ``other``. Forms are compared by ``price``, by default their MACs.
    """
    if times is not None:
        whole = whole._replace(ns=times.whole_ns)
    sets: list[UnitSet] = []
    cells: list[DirectionCell] = []
    other = whole
    for layer in Steps(layers, "separating", "layer") if separable else layers:
        decomposition = decompositions[layer.name]
        full_in, full_out = decomposition.importance.shape[1], decomposition.importance.shape[0]
        assert layer.directions == (full_in, full_out)
        total = float(decomposition.importance.sum()) if normalize else 1.0
        scale = 1.0 / total if total > 0 else 1.0
        least = (
            least_kept(layer.shape.in_channels, full_in, limit),
            least_kept(layer.shape.out_channels, full_out, limit),
        )
        apart = None
        if separable and decomposition.core.numel() <= separable:
            bound = layer.shape.params(layer.form) if not allow_increase else None
            most = most_components(layer.shape, layer.form, bound, multiple)
            apart = separation(decomposition, max(*least, 2), most, scale)
        cells.append(
            DirectionCell(
                name=layer.name,
                sets=tuple(range(len(sets), len(sets) + (2 if apart is None else 3))),
                shape=layer.shape,
                form=layer.form,
                full=(full_in, full_out),
                least=least,
                losses=decomposition.losses() * scale,
                allow_increase=allow_increase,
                multiple=multiple,
                separation=apart,
                times=None if times is None else times.layers.get(layer.name),
                price=price or FormPrice(),
            )
        )
        sets.append(UnitSet(f"{layer.name}:in", decomposition.in_scores * scale, least[0]))
        sets.append(UnitSet(f"{layer.name}:out", decomposition.out_scores * scale, least[1]))
        if apart is not None:
            sets.append(UnitSet(f"{layer.name}:components", apart.scores, apart.least))
        other = other.minus(cells[-1].form_cost(layer.form))
    return Space(sets, cells, other)
